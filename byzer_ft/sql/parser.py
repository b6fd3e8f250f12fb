"""Tokens -> typed statements, every error of the script collected. No variable is filled in and nothing is looked up.

`STATEMENTS` is the one table from a statement's first word to the function that reads it. A statement that cannot be
read costs nothing else: reading goes on behind its `;`. Knows nothing of what a statement does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NoReturn

from byzer_ft.errors import ByzerError, ScriptErrors, Source, Span, SqlError, did_you_mean
from byzer_ft.sql.scanner import END, HINT, NUMBER, PUNCT, QUOTED, RAW, STRING, WORD, Token, scan
from byzer_ft.sql.statements import (
    Command,
    Connect,
    Include,
    Load,
    Macro,
    Option,
    Options,
    Part,
    Register,
    Run,
    Save,
    Select,
    Set,
    Statement,
    Unregister,
)
from byzer_ft.sql.validate import option_errors

MAX_ERRORS = 1000  # text that is no script at all: every error costs a search for a similar name
MODES = ("overwrite", "append", "errorifexists", "ignore")
# What a Chinese input method writes for a mark of SQL. None of them means anything outside strings.
FULL_WIDTH = dict(zip("；，＝（）．。！：｀", ";,=()..!:`", strict=True))
FULL_WIDTH |= dict.fromkeys("“”„＂", '"') | dict.fromkeys("‘’＇", "'")


def parse(source: Source) -> list[Statement]:
    """All statements of a script; raises ScriptErrors with every error in the order of the text."""
    tokens, broken = scan(source)
    statements: list[Statement] = []
    errors: list[ByzerError] = []
    groups = list(_split(tokens))
    if broken is not None:
        errors.append(broken)
        if tokens and tokens[-1].kind != END:
            groups.pop()  # its end is not known: whatever it lacks may stand in the broken token
    for group in groups:
        if len(errors) >= MAX_ERRORS:
            rest = source.span(group[0].start, group[0].end)
            errors.append(SqlError(f"more than {MAX_ERRORS} errors: the rest of the script was not read", span=rest))
            break
        try:
            statement = _statement(_Cursor(source, group))
        except SqlError as error:
            errors.append(error)
        else:
            statements.append(statement)
            errors += option_errors(statement)
    if errors:
        raise ScriptErrors(sorted(errors, key=lambda e: e.span.start if e.span else 0))
    return statements


def _split(tokens: list[Token]) -> Iterator[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        if token.kind != END:
            group.append(token)
        elif group:
            yield group
            group = []
    if group:
        yield group


class _Cursor:
    """The tokens of one statement and a place among them."""

    def __init__(self, source: Source, tokens: list[Token]) -> None:
        self.source, self.tokens, self.at = source, tokens, 0

    def peek(self, ahead: int = 0) -> Token | None:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else None

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, *words: str) -> Token | None:
        token = self.peek()
        return self.take() if token is not None and token.is_word(*words) else None

    def accept_mark(self, mark: str) -> Token | None:
        token = self.peek()
        return self.take() if token is not None and token.kind == PUNCT and token.text == mark else None

    def span(self, first: Token, last: Token | None = None) -> Span:
        return self.source.span(first.start, (last or first).end)

    def whole(self) -> Span:
        return self.span(self.tokens[0], self.tokens[-1])

    def part(self, first: Token, last: Token | None = None) -> Part:
        """A token as a part; several tokens (`a.b`, `-1`) as one."""
        if last is None or last is first:
            return Part(first.value, self.span(first), _quote(first))
        return Part(self.source.text[first.start : last.end], self.span(first, last))

    def fail(self, message: str, *, hint: str | None = None, token: Token | None = None) -> NoReturn:
        """An error at `token`, at the next token, or behind the last one when the statement has ended."""
        token = token or self.peek() or self.tokens[-1]
        if hint is None and token.kind == PUNCT and token.text in FULL_WIDTH:
            hint = f"`{token.text}` is a full-width character: write `{FULL_WIDTH[token.text]}`"
        raise SqlError(message, hint=hint, span=self.span(token))

    def expected(self, what: str, *, hint: str | None = None) -> NoReturn:
        token = self.peek()
        if token is None:
            self.fail(f"{what} is missing at the end of the statement", hint=hint)
        self.fail(f"expected {what}, found {_shown(token)}", hint=hint)


def _quote(token: Token) -> str:
    if token.kind == QUOTED:
        return "`"
    if token.kind != STRING:
        return ""
    return token.text[:3] if token.text.startswith(("'''", '"""')) else token.text[0]


def _shown(token: Token) -> str:
    text = _short(token.text)
    return text if "`" in text else f"`{text}`"


def _short(text: str) -> str:
    """Of a text that may be a megabyte, what a message can hold."""
    text = " ".join(text[:80].split()) if len(text) > 40 else text
    return text if len(text) <= 40 else text[:37] + "…"


# ------------------------------------------------------------------------------------------------ the statements


def _statement(cursor: _Cursor) -> Statement:
    first = cursor.tokens[0]
    if first.kind == RAW:
        return _macro(cursor)
    _refuse_full_width(cursor)
    reader = STATEMENTS.get(first.text.lower()) if first.kind == WORD else None
    if reader is None:
        cursor.fail(f"unknown statement {_shown(first)}", hint=_unknown_hint(first), token=first)
    cursor.take()
    statement = reader(cursor)
    if cursor.peek() is not None:
        _too_much(cursor)
    return statement


def _unknown_hint(first: Token) -> str | None:
    word, known = first.text.lower(), ", ".join(STATEMENTS)
    if first.kind == PUNCT and first.text == "#":
        return "a comment begins with `--`"
    if word == "with":
        return "put the query in brackets: select * from (with … select …) as table;"
    if word in ("show", "kill", "desc", "describe", "byzerllm"):
        return f"did you mean `!{'desc' if word == 'describe' else word}`?"
    near = did_you_mean(word, STATEMENTS)
    statements = f"a statement begins with one of: {known}, or `!command`"
    return f"{near}\n{statements}" if near else statements


def _refuse_full_width(cursor: _Cursor) -> None:
    for token in cursor.tokens:
        if token.kind == PUNCT and token.text in FULL_WIDTH:
            cursor.fail(f"`{token.text}` means nothing here", token=token)


def _too_much(cursor: _Cursor) -> NoReturn:
    token, before = cursor.tokens[cursor.at], cursor.tokens[cursor.at - 1]
    hint = None
    if token.is_word("where", "options"):
        hint = f"`{token.text}` and its options come before `as`"
    elif token.is_word(*STATEMENTS) or token.text == "!":
        hint = f"is a `;` missing after {_shown(before)}?"
    elif token.text in ("-", ".") or (token.kind == WORD and not token.text.isascii()):
        hint = "a name with other characters than letters, digits and `_` stands in back-quotes"
    cursor.fail(f"expected `;` after {_shown(before)}, found {_shown(token)}", hint=hint)


def _load(c: _Cursor) -> Statement:
    format, path = _source(c, "load", "load json.`/data/rows.jsonl` as rows;")
    options = _options(c)
    _as(c, "load", "load json.`/data/rows.jsonl` as rows;")
    return Load(c.whole(), format, path, options, _name(c, "a table name"))


def _save(c: _Cursor) -> Statement:
    mode = None
    while (token := c.accept(*MODES)) is not None:
        mode = c.part(token)  # the last one wins, as in the original
    example = "save overwrite t as delta.`db.t`;"
    table = _name(c, "a table name", hint=f"for example: {example}")
    token = c.peek()
    if token is not None and token.is_word(*MODES):
        c.fail(f"`{token.text}` stands before the table", hint=f"write: save {token.text} {_short(table.value)} as …")
    if token is not None and token.kind in (WORD, QUOTED) and not token.is_word("as"):
        first = c.tokens[c.at - 1]
        near = did_you_mean(first.text, MODES) if first.kind == WORD else None
        if near is not None:
            c.fail(f"unknown save mode `{_short(first.text)}`", hint=near, token=first)
    _as(c, "save", example)
    format, path = _source(c, "save", example)
    options = _options(c)
    return Save(c.whole(), mode, table, format, path, options, _partition_by(c))


def _partition_by(c: _Cursor) -> tuple[Part, ...]:
    if c.accept("partitionby") is None or c.peek() is None:
        return ()
    columns = [_name(c, "a column name")]
    while c.accept_mark(",") is not None:
        columns.append(_name(c, "a column name"))
    return tuple(columns)


def _select(c: _Cursor) -> Statement:
    """Cuts the last `as name`: to any SQL parser it would be an alias of the last table."""
    c.at = len(c.tokens)
    tokens = c.tokens
    example = "write `as` and a name for the result at the end: select a, b from t as result;"
    if len(tokens) == 1:
        c.fail("`select` selects nothing", hint=example)
    name, before = tokens[-1], tokens[-2]
    if name.is_word("as"):
        c.fail("a name is missing after `as`", hint=example, token=name)
    if not before.is_word("as") or name.kind not in (WORD, QUOTED):
        if name.kind == WORD and any(t.is_word("as") for t in tokens[-4:-1]):
            _refuse_odd_name(c)
        _refuse_unclosed(c)
        c.fail("the select has no result table: `as name` is missing at its end", hint=example, token=name)
    if len(tokens) == 3:
        c.fail("`select` selects nothing", hint=example, token=tokens[0])
    if _names_a_column(tokens):
        _refuse_unclosed(c)
        c.fail(
            f"`as {name.text}` names the column here: the result table is missing",
            hint=f"add its name: … as {name.text} as result;",
            token=name,
        )
    table = _checked_name(c, name, "a table name")
    return Select(c.whole(), c.part(tokens[0], tokens[-3]), table)


def _refuse_unclosed(c: _Cursor) -> None:
    """Of a query that is wrong anyway: a bracket without its end is why."""
    opened: list[Token] = []
    for token in c.tokens:
        if token.kind == PUNCT and token.text in ("(", "["):
            opened.append(token)
        elif token.kind == PUNCT and token.text in (")", "]") and opened:
            opened.pop()
    if opened:
        count = f" ({len(opened)} are open)" if len(opened) > 1 else ""
        c.fail(f"`{opened[-1].text}` is never closed{count}", token=opened[-1])


def _refuse_odd_name(c: _Cursor) -> None:
    """`as my-table`: the name stands behind an `as`, but in pieces."""
    last = max(i for i, t in enumerate(c.tokens) if t.is_word("as"))
    pieces = c.tokens[last + 1 :]
    if all(a.end == b.start for a, b in zip(pieces, pieces[1:], strict=False)) and "-" in (t.text for t in pieces):
        name = "".join(t.text for t in pieces)
        c.fail(f"`{_short(name)}` is no plain name", hint=f"write: as `{_short(name)}`", token=pieces[0])


def _names_a_column(tokens: list[Token]) -> bool:
    """`select 1 as x;`: no FROM, and without the last `as x` its last column would have no name."""
    depth, alias = 0, False
    for token in tokens[1:-2]:
        if token.text in ("(", "["):
            depth += 1
        elif token.text in (")", "]"):
            depth -= 1
        elif depth == 0 and token.is_word("from", "union", "intersect", "except", "minus"):
            return False
        elif depth == 0 and token.text == ",":
            alias = False
        elif depth == 0 and token.is_word("as"):
            alias = True
    return not alias and not _implicit_alias(tokens[-4:-2])


def _implicit_alias(last: list[Token]) -> bool:
    """`select 1 a as t`: two things side by side, the second a name."""
    if len(last) < 2 or last[1].kind not in (WORD, QUOTED) or last[1].is_word("end", "null", "true", "false"):
        return False
    return last[0].kind in (NUMBER, STRING, QUOTED) or last[0].text == ")" or last[0].is_word("end")


def _command(c: _Cursor) -> Statement:
    c.at = len(c.tokens)
    if len(c.tokens) == 1:
        c.fail(f"`{c.tokens[0].text}` says nothing: the rest of the statement is missing")
    return Command(c.whole(), c.part(c.tokens[0]), c.part(c.tokens[0], c.tokens[-1]))


def _set(c: _Cursor) -> Statement:
    example = 'for example: set city="Hangzhou";'
    name = _qualified(c, "a variable name", hint=example)
    if c.accept_mark("=") is None:
        c.expected(f"`=` after `{name.value}`", hint=example)
    token = c.peek()
    if token is None or token.kind not in (STRING, QUOTED, WORD, NUMBER, PUNCT):
        c.expected("a value", hint=example)
    if token.kind in (STRING, QUOTED):
        value = c.part(c.take())
    elif token.is_word("select"):
        c.fail("the query is not quoted", hint=f'write: set {name.value}=`select …` where type="sql";')
    else:
        value = _number(c) or _qualified(c, "a value", hint=f'put text in quotes: set {name.value}="…";')
    return Set(c.whole(), name, value, _options(c))


def _connect(c: _Cursor) -> Statement:
    format = _name(c, "a format", hint='for example: connect jdbc where url="…" as db;')
    options = _options(c)
    name = _name(c, "a name") if c.accept("as") is not None else None
    return Connect(c.whole(), format, options, name)


def _run(c: _Cursor) -> Statement:
    verb = c.tokens[0]
    example = f'for example: {verb.text} command as LLM.`` where action="finetune" and …;'
    table = _name(c, "a table name (or `command`)", hint=example)
    if c.accept("as", "into") is None:
        c.expected("`as`", hint=example)
    et, path = _source(c, verb.text, example)
    options = _options(c)
    outputs = []
    while c.accept("as") is not None:
        outputs.append(_name(c, "a table name"))
    return Run(c.whole(), c.part(verb), table, et, path, options, tuple(outputs))


def _register(c: _Cursor) -> Statement:
    example = "register LLM.`model` as function_name;"
    et, path = _source(c, "register", example)
    _as(c, "register", example)
    function = _name(c, "a function name")
    return Register(c.whole(), et, path, function, _options(c))


def _unregister(c: _Cursor) -> Statement:
    format, path = _source(c, "unregister", "unregister LLM.`name`;")
    return Unregister(c.whole(), format, path, _options(c))


def _include(c: _Cursor) -> Statement:
    format, path = _source(c, "include", "include local.`common.sql`;")
    return Include(c.whole(), format, path, _options(c))


def _macro(c: _Cursor) -> Statement:
    first = c.take()
    name = Part(first.text[1:], c.source.span(first.start + 1, first.end))
    if not name.value:
        token = c.peek()
        if token is None or token.kind != RAW:
            c.fail("a command name is missing after `!`", hint="for example: !show tables;", token=first)
        name = c.part(c.take())
    args: list[Part] = []
    previous = c.tokens[c.at - 1]
    while c.peek() is not None:
        token = c.take()
        if _begins_statement(c, previous, token):
            hint = f"is a `;` missing after {_shown(previous)}?"
            c.fail(f"the `!{_short(name.value)}` line runs into {_shown(token)}", hint=hint, token=token)
        if args and previous.end == token.start and RAW in (previous.kind, token.kind):
            last = args.pop()  # num_gpus="4" is one argument
            args.append(Part(last.value + token.value, c.source.span(last.span.start, token.end), last.quote))
        else:
            args.append(c.part(token))
        previous = token
    return Macro(c.whole(), name, tuple(args))


def _begins_statement(c: _Cursor, previous: Token, token: Token) -> bool:
    if token.kind != RAW or c.peek() is None or "\n" not in c.source.text[previous.end : token.start]:
        return False
    return token.text.lower() in STATEMENTS or re.match(r"![A-Za-z]", token.text) is not None


STATEMENTS: dict[str, Callable[[_Cursor], Statement]] = {
    "load": _load,
    "select": _select,
    "save": _save,
    "run": _run,
    "train": _run,
    "predict": _run,
    "set": _set,
    "register": _register,
    "unregister": _unregister,
    "include": _include,
    "connect": _connect,
    "insert": _command,
    "create": _command,
    "drop": _command,
    "refresh": _command,
}
KEYWORDS = frozenset(STATEMENTS) | {"as", "into", "where", "options", "and", "partitionby"} | set(MODES)

# ------------------------------------------------------------------------------------------------- their parts


def _as(c: _Cursor, verb: str, example: str) -> None:
    if c.accept("as") is None:
        token = c.peek()
        what = "`as`" if verb != "load" else "`as` and a table name"
        if token is None:
            c.fail(f"{what} is missing", hint=f"for example: {example}")
        c.expected(what, hint=f"for example: {example}")


def _source(c: _Cursor, verb: str, example: str) -> tuple[Part, Part]:
    """``format.`path` ``, also ``format.a.b``."""
    format = _name(c, "a format" if verb in ("load", "save") else "a name", hint=f"for example: {example}")
    if c.accept_mark(".") is None:
        c.expected(f"`.` and a path in back-quotes after `{format.value}`", hint=f"for example: {example}")
    token = c.peek()
    if token is not None and token.kind == STRING:
        c.fail("a path stands in back-quotes", hint=f"write: {format.value}.`{_short(token.value)}`")
    if token is not None and token.kind == QUOTED:
        return format, c.part(c.take())
    if token is None or token.kind not in (WORD, NUMBER):
        c.expected("a path in back-quotes", hint=f"for example: {example}")
    first = last = c.take()
    while (dot := c.peek()) is not None and dot.text == "." and dot.start == last.end:
        following = c.peek(1)
        if following is None or following.kind not in (WORD, NUMBER) or following.start != dot.end:
            break
        c.take()
        last = c.take()
    after = c.peek()
    if after is not None and after.start == last.end and after.text in ("/", "-", ":", "*"):
        c.fail("a path stands in back-quotes", hint=f"for example: {example}", token=first)
    return format, c.part(first, last)


def _name(c: _Cursor, what: str, *, hint: str | None = None) -> Part:
    token = c.peek()
    if token is None or token.kind not in (WORD, QUOTED, NUMBER):
        if token is not None and token.kind == STRING:
            hint = f"it is not quoted, or stands in back-quotes: `{_short(token.value)}`"
        elif token is not None and token.text == "$":
            hint = "a name made of a variable stands in back-quotes: `${name}`"
        c.expected(what, hint=hint)
    name = _checked_name(c, token, what)
    c.take()
    after = c.peek()
    if token.kind == WORD and after is not None and after.text == "-" and after.start == token.end:
        c.fail(f"{what} with `-` stands in back-quotes", token=token)
    return name


def _checked_name(c: _Cursor, token: Token, what: str) -> Part:
    if token.kind == WORD and not token.text.isascii():
        c.fail(f"{what} with such characters stands in back-quotes", hint=f"write: `{_short(token.text)}`", token=token)
    if token.is_word(*KEYWORDS):
        c.fail(
            f"expected {what}, found the keyword `{token.text}`",
            hint=f"a name that is a keyword stands in back-quotes: `{token.text}`",
            token=token,
        )
    if token.kind == QUOTED and not token.value.strip():
        c.fail(f"{what} is empty", token=token)
    return c.part(token)


def _qualified(c: _Cursor, what: str, *, hint: str | None = None) -> Part:
    """`a.b.c`, each step plain or in back-quotes; its value has no quotes."""
    first = c.peek()
    parts = [_name(c, what, hint=hint)]
    while (dot := c.peek()) is not None and dot.text == "." and (after := c.peek(1)) is not None:
        if after.kind not in (WORD, NUMBER, QUOTED):
            break
        c.take()
        parts.append(c.part(c.take()))
    if len(parts) == 1:
        return parts[0]
    assert first is not None
    return Part(".".join(p.value for p in parts), c.source.span(first.start, parts[-1].span.end))


def _number(c: _Cursor) -> Part | None:
    """`5`, `-0.5`, `1e-4` at the cursor."""
    token = c.peek()
    if token is None or not (token.kind == NUMBER or token.text in ("-", "+")):
        return None
    after = c.peek(1)
    if token.kind == NUMBER:
        if after is not None and after.start == token.end and after.text == ".":
            return None  # `0.a.b` is a dotted name
        return c.part(c.take())
    if after is None or after.kind != NUMBER or after.start != token.end:
        c.expected("a value", hint="put text in quotes")
    return c.part(c.take(), c.take())


def _options(c: _Cursor) -> Options:
    """`where a="1" and b="2"`: `where` may be missing, empty, or followed by `and`."""
    opened = c.accept("where", "options") is not None
    items: list[Option] = []
    while True:
        joined = c.accept("and")
        if joined is not None:
            items.append(_option(c))
        elif items and _is_option(c):
            c.expected("`and` before the next option")
        elif not items and (_is_option(c) or (opened and _is_broken_option(c))):
            items.append(_option(c))
        else:
            return Options(tuple(items))


def _is_option(c: _Cursor) -> bool:
    """Whether `name=` or `a.b=` stands at the cursor."""
    ahead, token = 0, c.peek()
    while token is not None and token.kind in (WORD, NUMBER, QUOTED):
        after = c.peek(ahead + 1)
        if after is None or after.kind != PUNCT:
            return False
        if after.text == "=":
            return True
        if after.text != ".":
            return False
        ahead += 2
        token = c.peek(ahead)
    return False


def _is_broken_option(c: _Cursor) -> bool:
    token = c.peek()
    return token is not None and not token.is_word("as", "partitionby") and token.kind != HINT


def _option(c: _Cursor) -> Option:
    key = _qualified(c, "an option", hint='for example: header="true"')
    if c.accept_mark("=") is None:
        c.expected(f"`=` after the option `{key.value}`", hint=f'write: {key.value}="…"')
    token = c.peek()
    if token is None:
        c.fail(f"the value of `{key.value}` is missing", hint=f'write: {key.value}="…"')
    if token.kind == STRING or token.is_word("true", "false"):
        return Option(key, c.part(c.take()))
    value = _number(c)
    if value is not None:
        return Option(key, value)
    if token.kind in (WORD, QUOTED):
        hint = f'put it in quotes: {_short(key.value)}="{_short(token.value)}"'
        c.fail(f"the value of `{key.value}` is not quoted", hint=hint)
    return c.expected(f"a value for `{key.value}`", hint=f'write: {key.value}="…"')
