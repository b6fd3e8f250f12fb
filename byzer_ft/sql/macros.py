"""`!name args` -> an intent. Knows every command that the original documents: what is not executed says so.

Knows nothing of the bodies of macros that a `set` defines.
"""

from __future__ import annotations

from collections.abc import Callable

from byzer_ft.errors import OptionError, SqlError, did_you_mean, listing
from byzer_ft.intents import AnyIntent, Describe, Kill, ModelAdmin, Setup, Show, Unsupported
from byzer_ft.sql.options import RESOURCE, SetupOptions, resource_amount, shown, spellings, typed
from byzer_ft.sql.setup import MODES
from byzer_ft.sql.statements import Macro, Part
from byzer_ft.sql.variables import Scope

SHOWN = ("tables", "jobs", "models", "functions")
SHOWN_NOT_YET = (
    *("resource", "datasources", "et", "function", "commands", "version", "api", "conf", "log", "progress"),
    *("deployments", "variables", "setup"),
)
NOT_YET = (
    *("if", "elif", "else", "then", "fi", "assert", "delta", "hdfs", "fs", "profiler", "ray", "cache", "unCache"),
    *("lastCommand", "lastTableName", "tableRepartition", "emptyTable", "println", "runScript", "saveFile", "jdbc"),
    *("saveUploadFileToHome", "callback", "scheduler", "plugin", "model", "split", "resource", "kafkaTool"),
    *("persist_table", "pyInclude", "withWatermark", "copyFromLocal", "changeMapping", "feishu", "mlib", "sql"),
)


def plan_macro(macro: Macro, scope: Scope) -> AnyIntent:
    name = macro.name.value
    planner = COMMANDS.get(name.lower())
    if planner is not None:
        return planner(macro, scope)
    if name.lower() in (n.lower() for n in NOT_YET):
        return Unsupported(statement=f"!{name}", span=macro.span)
    if name in scope.variables or name in scope.later:
        return Unsupported(statement=f"!{name} (a macro)", span=macro.span)
    known = [*COMMANDS, *NOT_YET, *scope.variables]
    near = did_you_mean(name, known)
    hint = near.replace("`", "`!", 1) if near else f"commands: {', '.join('!' + c for c in COMMANDS)}"
    raise SqlError(f"unknown command `!{name}`", hint=hint, span=macro.name.span)


def _byzerllm(macro: Macro, scope: Scope) -> AnyIntent:
    usage = '!byzerllm setup sft|single|…; !byzerllm setup "key=value"; !byzerllm model remove|exists "name";'
    if not macro.args:
        raise SqlError("`!byzerllm` says nothing to do", hint=usage, span=macro.span)
    word, rest = macro.args[0], macro.args[1:]
    match scope.fill(word).lower():
        case "setup":
            return _setup(macro, rest, scope)
        case "model":
            return _model(macro, word, rest, scope)
        case other:
            hint = did_you_mean(other, ("setup", "model")) or usage
            if "=" in other:
                hint = f'did you mean `!byzerllm setup "{other}"`?'
            raise SqlError(f"unknown `!byzerllm {other}`", hint=hint, span=word.span)


def _setup(macro: Macro, args: tuple[Part, ...], scope: Scope) -> AnyIntent:
    if not args:
        return Setup(span=macro.span)  # changes nothing, shows everything
    text = "".join(scope.fill(a) for a in args) if len(args) > 1 else scope.fill(args[0])
    first = args[0]
    if len(args) > 1 and "=" in scope.fill(first) and not scope.fill(first).endswith("="):
        raise SqlError("one key at a time", hint=f'write: !byzerllm setup "{scope.fill(first)}";', span=args[1].span)
    mode = text.strip().lower().partition("/")[0]
    key, equals, value = (piece.strip() for piece in text.partition("="))
    if not equals:
        if mode not in MODES or len(args) > 1:
            hint = did_you_mean(mode, MODES) or f'modes: {", ".join(MODES)}; a key is set by "key=value"'
            raise SqlError(f"unknown setup `{text.strip()}`", hint=hint, span=first.span)
        return Setup(mode=mode, span=macro.span)
    return Setup(key=_checked_key(key, value, first, scope), value=value, span=macro.span)


def _checked_key(key: str, value: str, part: Part, scope: Scope) -> str:
    """The key's canonical spelling; its value has been looked at."""
    if key.startswith(RESOURCE):
        amount = resource_amount(key, value, part.span, part.span)
        if isinstance(amount, OptionError):
            raise amount
        return key
    name = spellings(SetupOptions).get(key)
    if name is None:
        known = shown(SetupOptions)
        hint = did_you_mean(key, [*spellings(SetupOptions), f"{RESOURCE}master"])
        if key.startswith("resources."):
            hint = f"did you mean `{RESOURCE}{key.removeprefix('resources.')}`?"
        raise OptionError(
            f"unknown setup key `{key}`", hint=hint or f"keys: {', '.join(known)}, {RESOURCE}NAME", span=part.span
        )
    found = typed(SetupOptions, name, value, shown_as=key, span=part.span)
    if isinstance(found, OptionError):
        raise found
    if name == "owner" and scope.owner and value != scope.owner:
        raise OptionError(
            f"owner={value!r}: this session belongs to {scope.owner!r}",
            hint="BYZER_FT_OWNER says who a session belongs to",
            span=part.span,
        )
    return next(s for s, n in spellings(SetupOptions).items() if n == name)


def _model(macro: Macro, word: Part, args: tuple[Part, ...], scope: Scope) -> AnyIntent:
    usage = '!byzerllm model remove "name"; !byzerllm model exists "name";'
    action = scope.fill(args[0]).lower() if args else ""
    if action not in ("remove", "exists"):
        hint = did_you_mean(action, ("remove", "exists")) or usage
        raise SqlError(f"unknown `!byzerllm model {action}`".rstrip(), hint=hint, span=(args or (word,))[0].span)
    name = _single(macro, args[1:], f"!byzerllm model {action}", usage, scope)
    return ModelAdmin(action=action, name=name, span=macro.span)


def _python(macro: Macro, scope: Scope) -> AnyIntent:
    """`!python conf "k=v"` sets the same keys as `!byzerllm setup`."""
    word = scope.fill(macro.args[0]).lower() if macro.args else ""
    if word == "conf" and len(macro.args) > 1:
        return _setup(macro, macro.args[1:], scope)
    return Unsupported(statement=f"!python {word}".rstrip(), span=macro.span)


def _show(macro: Macro, scope: Scope) -> AnyIntent:
    words = [w for a in macro.args for w in scope.fill(a).split("/") if w]
    if not words:
        raise SqlError("`!show` what?", hint=f"!show {'|'.join(SHOWN)};", span=macro.span)
    what = words[0].lower()
    if what in SHOWN:
        return Show(what=what, args=tuple(words[1:]), span=macro.span)
    if what in SHOWN_NOT_YET:
        return Unsupported(statement=f"!show {what}", span=macro.span)
    hint = did_you_mean(what, [*SHOWN, *SHOWN_NOT_YET]) or f"!show {listing(SHOWN)}"
    raise SqlError(f"unknown `!show {words[0]}`", hint=hint, span=macro.args[0].span)


def _kill(macro: Macro, scope: Scope) -> AnyIntent:
    return Kill(name=_single(macro, macro.args, "!kill", "!kill job-name;", scope), span=macro.span)


def _desc(macro: Macro, scope: Scope) -> AnyIntent:
    args = macro.args
    if len(args) == 2 and scope.fill(args[1]).lower() == "json":
        args = args[:1]
    return Describe(table=_single(macro, args, "!desc", "!desc table;", scope), span=macro.span)


def _single(macro: Macro, args: tuple[Part, ...], command: str, usage: str, scope: Scope) -> str:
    names = [scope.fill(a).strip() for a in args]
    if len(names) == 1 and names[0]:
        return names[0]
    span = args[1].span if len(args) > 1 else macro.span
    raise SqlError(f"`{command}` takes one name", hint=f"for example: {usage}", span=span)


COMMANDS: dict[str, Callable[[Macro, Scope], AnyIntent]] = {
    "byzerllm": _byzerllm,
    "python": _python,
    "show": _show,
    "kill": _kill,
    "desc": _desc,
}
