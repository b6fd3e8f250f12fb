"""Tokens: what is one, that nothing but white space and comments lies between them, and that no text is too much."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byzer_ft.errors import ScriptErrors, Source, SqlError
from byzer_ft.sql import Scope, check, parse, parse_json
from byzer_ft.sql.scanner import scan

PIECES = [
    *("load", "select", "run", "set", "save", "as", "where", "and", "LLM", "json", "t", "表", "x1", "1", "-2.5e3"),
    *(".", ",", "=", ";", ";;", "(", ")", "``", "`a`", '"s"', "'s'", "'''b'''", '"""b"""', "''", '""', "`"),
    *('"', "'", "'''", "\\", "--", "-- c\n", "/*", "*/", "/* c */", "/*+ h */", "!", "!show", "!byzerllm setup"),
    *(" ", "\n", "\r\n", "\t", "\0", "\ufeff", "${x}", "${", "$", "#", "{}", "；", "“", "é", "😀", "\u2028"),
    *("`sft.int.lora_rank`", '"512"', "action", "partitionBy x", "overwrite"),
]
scripts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map(
    lambda pieces: " ".join(pieces) if len(pieces) % 2 else "".join(pieces)
)
HIDDEN = re.compile(r"(?:[\s\ufeff]|--[^\r\n]*|/\*(?!\+).*?\*/)*", re.DOTALL)


def kinds(text: str) -> list[tuple[str, str]]:
    tokens, broken = scan(Source(text))
    assert broken is None
    return [(t.kind, t.text) for t in tokens]


def test_kinds() -> None:
    assert kinds("load json.`a b` -- c\nas /* c */ t;") == [
        ("word", "load"),
        ("word", "json"),
        ("punct", "."),
        ("quoted", "`a b`"),
        ("word", "as"),
        ("word", "t"),
        ("end", ";"),
    ]
    assert kinds("a=1 b=2.5e-3 2x 0.a.1 表") == [
        *(("word", "a"), ("punct", "="), ("number", "1"), ("word", "b"), ("punct", "="), ("number", "2.5e-3")),
        *(("word", "2x"), ("number", "0"), ("punct", "."), ("word", "a"), ("punct", "."), ("number", "1")),
        ("word", "表"),
    ]


@pytest.mark.parametrize(
    "text",
    ['"a;b"', "'a\nb'", r'"a\"b"', r"'\\'", "'''a''b'''", '"""a"b"""', "''''a'''", "''", '""', "''''''", '""""""'],
)
def test_string_forms(text: str) -> None:
    assert kinds(f"x {text} ;") == [("word", "x"), ("string", text), ("end", ";")]


def test_values_keep_backslashes_and_lose_quotes() -> None:
    text = "\n".join([r'"a\"b"', r"'c\' '", "''", '''"'d"''', "`e``f`", "'''g'h'''"])
    tokens, _ = scan(Source(text))
    assert [t.value for t in tokens] == [r"a\"b", r"c\' ", "", "'d", "e`f", "g'h"]


def test_command_lines() -> None:
    assert kinds('!fs -ls /tmp/*;!x "a;b" c--d -- e\n/* f */ g;/*;*/ !y /*;') == [
        *(("raw", "!fs"), ("raw", "-ls"), ("raw", "/tmp/*"), ("end", ";")),
        *(("raw", "!x"), ("string", '"a;b"'), ("raw", "c--d"), ("raw", "g"), ("end", ";")),
        *(("raw", "!y"), ("raw", "/*"), ("end", ";")),
    ]
    assert kinds("select 1 != 2") == [
        *(("word", "select"), ("number", "1"), ("punct", "!"), ("punct", "="), ("number", "2")),
    ]


@pytest.mark.parametrize("opening", ["'", '"', "`", "'''", '"""', "/*", "/*+"])
@pytest.mark.parametrize("before", ["select 1 as a as t;\n select ", "!show "])
def test_unterminated_points_at_its_start(opening: str, before: str) -> None:
    _, broken = scan(Source(f"{before}{opening} rest; of the script"))
    assert isinstance(broken, SqlError)
    assert broken.span is not None
    assert broken.span.start == len(before)
    assert opening.startswith(broken.span.text)


@settings(deadline=None)
@given(scripts)
def test_only_hidden_text_lies_between_tokens(text: str) -> None:
    tokens, broken = scan(Source(text))
    end = broken.span.start if broken and broken.span else len(text)
    position = 0
    for token in tokens:
        assert position <= token.start < token.end
        assert text[token.start : token.end] == token.text
        assert HIDDEN.fullmatch(text, position, token.start)
        position = token.end
    assert position <= end
    assert HIDDEN.fullmatch(text, position, end)


@settings(deadline=None)
@given(scripts)
def test_any_text_gives_statements_or_errors_with_places(text: str) -> None:
    source = Source(text)
    try:
        statements = parse(source)
    except ScriptErrors as error:
        found = list(error.errors)
        assert found
    else:
        assert len(parse_json(statements)) == len(statements)
        for before, after in zip(statements, statements[1:], strict=False):
            assert before.span.end < after.span.start
        found = check(statements, Scope(owner="me"))
    for error in found:
        assert error.span is not None
        assert 0 <= error.span.start <= error.span.end <= len(text)
        assert error.message
        assert error.render()
        assert error.as_dict()["line"] == error.span.line


@settings(deadline=None)
@given(data=st.data())
def test_mutated_documentation_gives_statements_or_errors(data: st.DataObject, acceptance: str) -> None:
    start = data.draw(st.integers(0, len(acceptance)))
    end = data.draw(st.integers(start, min(len(acceptance), start + 40)))
    text = acceptance[:start] + data.draw(scripts) + acceptance[end:]
    try:
        assert check(parse(Source(text)), Scope(owner="me")) is not None
    except ScriptErrors as error:
        assert all(e.span is not None and e.render() for e in error.errors)


# Each of these once was, or could be, walked over and over by a careless pattern or loop.
GROWING: dict[str, Callable[[int], str]] = {
    "statements": lambda n: "select a, b from t where x = 'y' as u;\n" * (n // 8),
    "options": lambda n: "load json.`a` where " + "and ".join(f'`k{i}`="v" ' for i in range(n // 4)) + "as t;",
    "block quotes": lambda n: "'''" * n,
    "quotes": lambda n: "'\"" * n,
    "backslashes": lambda n: '"' + "\\" * n,
    "back-quotes": lambda n: "`" * (2 * n + 1),
    "comments": lambda n: "/* " * n,
    "hints": lambda n: "/*+ " * n,
    "closed comments": lambda n: "/**/" * n,
    "digits": lambda n: "1" * n + "a",
    "dots": lambda n: "set a=1" + ".1" * n,
    "dotted words": lambda n: "load json.a" + ".a" * n,
    "words": lambda n: "select " + "as " * n,
    "ends": lambda n: ";" * n,
    "white space": lambda n: "; " + " " * n + "\n" * n,
    "commands": lambda n: "!x " + "/*a " * n,
    "bangs": lambda n: "!;" * n,
    "unknown statements": lambda n: "foo;" * n,
    "unknown options": lambda n: "run t as LLM.`` where x=1 " + "and abcd=1 " * n,
    "variables": lambda n: "set a='1'; select '" + "${a}" * n + "' as b as t",
    "sets": lambda n: "".join(f"set a{i}='1';" for i in range(n // 4)),
    "brackets": lambda n: "select " + "(" * n + " as t",
    "partition columns": lambda n: "save t as json.`a` partitionBy a" + ",a" * n,
}


@pytest.mark.parametrize("name", GROWING)
def test_work_grows_with_the_text(name: str) -> None:
    """Function calls, not seconds, are counted: twice the text is about twice the calls."""
    small, large = (calls(lambda n=n: attempt(GROWING[name](n))) for n in (400, 800))
    assert large <= 2.3 * small + 2000


PATTERNS = (
    *("block quotes", "quotes", "backslashes", "back-quotes", "comments", "hints", "closed comments", "digits"),
    *("white space", "commands"),
)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_large_text_is_scanned(name: str) -> None:
    """What calls cannot show: a pattern that walks back. On texts of this size quadratic work would not end."""
    text = GROWING[name](300_000)
    tokens, broken = scan(Source(text))
    assert sum(t.end - t.start for t in tokens) <= len(text)


def attempt(text: str) -> None:
    try:
        statements = parse(Source(text))
    except ScriptErrors as error:
        assert error.errors
    else:
        parse_json(statements)
        check(statements, Scope(owner="me"))


def calls(work: Callable[[], Any]) -> int:
    count = 0

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count
