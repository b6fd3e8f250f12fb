"""What planning a statement checks whatever the statement: names, paths, formats, options read as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from byzer_ft.errors import ByzerError, NotSupportedError, ScriptErrors, Span, SqlError, did_you_mean
from byzer_ft.sql.options import Read
from byzer_ft.sql.options import read as read_options
from byzer_ft.sql.statements import Load, Option, Options, Part, Run, Save, Set
from byzer_ft.sql.variables import Scope

S = TypeVar("S", Load, Save, Set, Run)

NO_TABLE = "command"  # `run command as X`: no input; `model="command"`: no model table


def filled(statement: S, scope: Scope) -> S:
    """The statement with the variables in its option values filled in; their places stay."""
    items = tuple(Option(o.key, replace(o.value, value=scope.fill(o.value))) for o in statement.options)
    return replace(statement, options=Options(items))


def read(model: type[Any], options: Iterable[Option], statement: str) -> Read:
    found = read_options(model, options, statement, final=True)
    if found.errors:
        raise one(found.errors)
    return found


def one(errors: Sequence[ByzerError]) -> ByzerError:
    return errors[0] if len(errors) == 1 else ScriptErrors(errors)


def path_of(part: Part, scope: Scope) -> str:
    path = scope.fill(part)
    if not path.strip():
        raise SqlError("the path is empty", hint="write it in back-quotes: json.`/data/rows.jsonl`", span=part.span)
    if "\0" in path:
        raise SqlError("the path contains a NUL character", span=part.span)
    return path


def table_of(part: Part, scope: Scope, *, made: bool = True) -> str:
    name = scope.fill(part)
    check_table_name(name, part.span)
    if made and name.lower() == NO_TABLE:
        raise SqlError(
            "`command` stands for no table and cannot be a table's name", hint="take another name", span=part.span
        )
    return name


def check_table_name(name: str, span: Span) -> None:
    if not name.strip() or len(name) > 255 or re.search(r"[\x00-\x1f\x7f`]", name):
        shown = name if len(name) <= 40 else name[:37] + "…"
        raise SqlError(
            f"{shown!r} cannot name a table", hint="one line of at most 255 characters without back-quotes", span=span
        )


def refuse_unknown(part: Part, given: str, what: str, done: Sequence[str], documented: Sequence[str]) -> None:
    """A name that is near one that runs is a typo; a documented one, or any other, is only not executed here."""
    if given.lower() in (k.lower() for k in documented):
        return
    hint = did_you_mean(given, done)
    if hint is not None:
        raise SqlError(f"unknown {what} `{given}`", hint=f"{hint}\n{what}s that run: {', '.join(done)}", span=part.span)


def option_not_yet(option: Option, name: str) -> ByzerError:
    return NotSupportedError(f"option `{option.key.value}` of {name} is not supported yet", span=option.key.span)
