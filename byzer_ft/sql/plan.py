"""A statement and what is known when it runs -> its intent: variables filled in, options typed, names checked.

`check` does the same for a whole script before anything starts, following what `set` and `!byzerllm setup` change.
Knows no table, model or job: whether a thing exists is found out by who carries the intent out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from byzer_ft.errors import ByzerError, NotSupportedError, OptionError, ScriptErrors
from byzer_ft.intents import (
    AnyIntent,
    LoadOptions,
    LoadTable,
    Query,
    SaveOptions,
    SaveTable,
    SetOptions,
    Setup,
    SetVariable,
    Unsupported,
)
from byzer_ft.sql.checks import filled, one, option_not_yet, path_of, read, refuse_unknown, table_of
from byzer_ft.sql.llm import plan_run
from byzer_ft.sql.macros import plan_macro
from byzer_ft.sql.setup import SetupState
from byzer_ft.sql.statements import (
    Command,
    Connect,
    Include,
    Load,
    Macro,
    Register,
    Run,
    Save,
    Select,
    Set,
    Statement,
    Unregister,
)
from byzer_ft.sql.validate import LOAD_FORMATS, NOT_YET, SAVE_FORMATS, judged
from byzer_ft.sql.variables import NotYetKnown, Scope

# Formats that the original documents and this version only reads.
LOAD_NOT_YET = (
    *("jsonStr", "csvStr", "excel", "jdbc", "hive", "model2", "modelList", "modelParams", "binaryFile", "image"),
    *("kafka", "es", "hbase", "redis", "mongo", "solr", "orc", "avro", "xml", "script", "rest", "mlsqlConf"),
    *("everything", "streamParquet", "webConsole", "newParquet", "crawlersql", "_mlsql_", "modelExplain"),
)
SAVE_NOT_YET = ("model", "model2", "jdbc", "hive", "es", "hbase", "redis", "mongo", "kafka", "excel", "text", "orc")


def plan(statement: Statement, scope: Scope) -> AnyIntent:
    """What the statement means. Raises a ScriptError that points at the part that is wrong, or several at once."""
    return _PLANNERS[type(statement)](statement, scope)


def check(statements: Sequence[Statement], scope: Scope) -> list[ByzerError]:
    """Every error that planning the whole script finds, in order. What only execution can know is let pass."""
    errors: list[ByzerError] = []
    known = _Known(dict(scope.variables), set(scope.later), scope.setup)
    for statement in statements:
        try:
            intent = plan(statement, replace(scope, variables=known.variables, later=known.later, setup=known.setup))
        except NotYetKnown:
            known.forget(statement)
        except ScriptErrors as error:
            errors += error.errors
            known.forget(statement)
        except ByzerError as error:
            errors.append(error.at(statement.span))
            known.forget(statement)
        else:
            if isinstance(intent, Unsupported):
                errors.append(not_supported(intent))
            known.follow(intent)
    return errors


def not_supported(intent: Unsupported) -> NotSupportedError:
    return NotSupportedError(f"{intent.statement} is not supported yet", span=intent.span)


@dataclass
class _Known:
    """What the statements so far will have set, as far as that can be told before they run."""

    variables: dict[str, str]
    later: set[str]
    setup: Mapping[str, str]

    def follow(self, intent: AnyIntent) -> None:
        if isinstance(intent, Setup) and isinstance(self.setup, SetupState):
            self.setup = self.setup.apply(intent)
        if isinstance(intent, SetVariable):
            self._set(intent)

    def _set(self, intent: SetVariable) -> None:
        match intent.options.type:
            case "sql":
                self.later.add(intent.name)
            case "defaultParam" if intent.name not in self.later:
                self.variables.setdefault(intent.name, intent.value)
            case "text":
                self.variables[intent.name] = intent.value
                self.later.discard(intent.name)

    def forget(self, statement: Statement) -> None:
        """After a `set` that failed: its name is known, so that later uses are no second error."""
        if isinstance(statement, Set):
            self.later.add(statement.name.value)


# ---------------------------------------------------------------------------------------------- tables and variables


def _load(statement: Load, scope: Scope) -> AnyIntent:
    given = scope.fill(statement.format)
    format = given.lower()
    if format not in LOAD_FORMATS:
        refuse_unknown(statement.format, given, "format", LOAD_FORMATS, LOAD_NOT_YET)
        return Unsupported(statement=f"load {given}", span=statement.span)
    _refuse_not_yet(statement, "load")
    options = read(LoadOptions, judged(filled(statement, scope)), "load")
    for name in ("version_as_of", "timestamp_as_of"):
        if name in options.origin and format != "delta":
            key = options.origin[name].key
            raise OptionError(f"option `{key.value}` concerns delta, not {format}", span=key.span)
    if {"version_as_of", "timestamp_as_of"} <= options.values.keys():
        span = options.origin["timestamp_as_of"].key.span
        raise OptionError("versionAsOf and timestampAsOf contradict each other", hint="give one of them", span=span)
    return LoadTable(
        format=format,
        path=path_of(statement.path, scope),
        options=LoadOptions(**options.values),
        table=table_of(statement.table, scope),
        span=statement.span,
    )


def _save(statement: Save, scope: Scope) -> AnyIntent:
    given = scope.fill(statement.format)
    if given.lower() not in SAVE_FORMATS:
        refuse_unknown(statement.format, given, "format", SAVE_FORMATS, SAVE_NOT_YET)
        return Unsupported(statement=f"save as {given}", span=statement.span)
    _refuse_not_yet(statement, "save")
    options = read(SaveOptions, judged(filled(statement, scope)), "save")
    mode: Any = statement.mode.value.lower() if statement.mode else "errorifexists"
    return SaveTable(
        table=table_of(statement.table, scope, made=False),
        mode=mode,
        format=given.lower(),
        path=path_of(statement.path, scope),
        options=SaveOptions(**options.values),
        partition_by=tuple(scope.fill(c) for c in statement.partition_by),
        span=statement.span,
    )


def _select(statement: Select, scope: Scope) -> AnyIntent:
    return Query(body=scope.fill(statement.body), table=table_of(statement.table, scope), span=statement.span)


def _set(statement: Set, scope: Scope) -> AnyIntent:
    options = read(SetOptions, filled(statement, scope).options, "set")
    typed = SetOptions(**options.values)
    if typed.type == "shell":
        raise NotSupportedError(
            '`set … type="shell"` would run a command on this machine: it is refused',
            hint="run the command yourself and set the variable to what it says",
            span=options.origin["type"].span,
        )
    if typed.visible is not None:
        raise NotSupportedError("`visible` is not supported yet", span=options.origin["visible"].span)
    # A block string may be the body of a macro, whose ${…} are filled in when the macro is called.
    value = scope.fill(statement.value, keep_unknown=len(statement.value.quote) == 3)
    return SetVariable(name=statement.name.value, value=value, options=typed, span=statement.span)


def _unsupported(statement: Statement, scope: Scope) -> AnyIntent:
    name = statement.kind
    if isinstance(statement, Command):
        name = statement.verb.value.lower()
    elif isinstance(statement, Connect):
        name = f"connect {statement.format.value}"
    return Unsupported(statement=name, span=statement.span)


def _refuse_not_yet(statement: Load | Save, name: str) -> None:
    found = [o for o in statement.options if o.key.value in NOT_YET[name]]
    if found:
        raise one([option_not_yet(o, name) for o in found])


_PLANNERS: dict[type[Statement], Callable[[Any, Scope], AnyIntent]] = {
    Load: _load,
    Save: _save,
    Select: _select,
    Set: _set,
    Run: plan_run,
    Macro: plan_macro,
    Command: _unsupported,
    Connect: _unsupported,
    Register: _unsupported,
    Unregister: _unsupported,
    Include: _unsupported,
}
