"""What can stand in a script, as typed statements whose parts know where they stand.

A part's value is the user's text without quotes, variables not yet filled in. Knows nothing of what a statement does.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from byzer_ft.errors import Source, Span


@dataclass(frozen=True)
class Part:
    """One piece of a statement. `quote` is what stood around it: `"`, `'`, `'''`, a back-quote, or nothing."""

    value: str
    span: Span
    quote: str = ""


@dataclass(frozen=True)
class Option:
    """`key="value"`"""

    key: Part
    value: Part

    @property
    def span(self) -> Span:
        return self.key.span.source.span(self.key.span.start, self.value.span.end)


@dataclass(frozen=True)
class Options:
    """The options of a statement in their order. `where` may hold the same key twice: the planner refuses it."""

    items: tuple[Option, ...] = ()

    def __iter__(self) -> Iterator[Option]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def get(self, key: str) -> Option | None:
        return next((o for o in reversed(self.items) if o.key.value == key), None)

    def as_map(self) -> dict[str, str]:
        return {o.key.value: o.value.value for o in self.items}


@dataclass(frozen=True)
class Statement:
    """One statement. `span` runs from its first to its last token, without the `;`."""

    kind: ClassVar[str] = ""
    span: Span

    @property
    def text(self) -> str:
        return self.span.text

    def as_json(self) -> dict[str, Any]:
        """Kind, place, text and the typed fields, for `byzer-ft parse`."""
        line, column = place(self.span)
        head = {"kind": self.kind, "line": line, "column": column}
        typed = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("span", "kind")}
        return {**head, **typed, "text": self.text}


@dataclass(frozen=True)
class Load(Statement):
    kind = "load"
    format: Part
    path: Part
    options: Options
    table: Part


@dataclass(frozen=True)
class Save(Statement):
    kind = "save"
    mode: Part | None
    table: Part
    format: Part
    path: Part
    options: Options
    partition_by: tuple[Part, ...]


@dataclass(frozen=True)
class Select(Statement):
    """`body` is the query from `select` up to the last `as`."""

    kind = "select"
    body: Part
    table: Part


@dataclass(frozen=True)
class Command(Statement):
    """`insert`, `create`, `drop`, `refresh`: text for the engine."""

    kind = "command"
    verb: Part
    body: Part

    def as_json(self) -> dict[str, Any]:
        out = super().as_json()
        return {**out, "kind": out.pop("verb").lower()}


@dataclass(frozen=True)
class Set(Statement):
    kind = "set"
    name: Part
    value: Part
    options: Options


@dataclass(frozen=True)
class Connect(Statement):
    kind = "connect"
    format: Part
    options: Options
    name: Part | None


@dataclass(frozen=True)
class Run(Statement):
    """`run table as ET.`path` where … as output`; `train` and `predict` are spelled in `verb`."""

    kind = "run"
    verb: Part
    table: Part
    et: Part
    path: Part
    options: Options
    outputs: tuple[Part, ...]

    def as_json(self) -> dict[str, Any]:
        out = super().as_json()
        return {**out, "kind": out.pop("verb").lower()}


@dataclass(frozen=True)
class Register(Statement):
    kind = "register"
    et: Part
    path: Part
    function: Part
    options: Options


@dataclass(frozen=True)
class Unregister(Statement):
    kind = "unregister"
    format: Part
    path: Part
    options: Options


@dataclass(frozen=True)
class Include(Statement):
    kind = "include"
    format: Part
    path: Part
    options: Options


@dataclass(frozen=True)
class Macro(Statement):
    """`!name args`"""

    kind = "macro"
    name: Part
    args: tuple[Part, ...]


def parse_json(statements: Sequence[Statement]) -> list[dict[str, Any]]:
    """What `byzer-ft parse` prints."""
    return [s.as_json() for s in statements]


def _plain(value: object) -> object:
    match value:
        case Part():
            return value.value
        case Options():
            return value.as_map()
        case tuple():
            return [_plain(v) for v in value]
        case _:
            return value


def place(span: Span) -> tuple[int, int]:
    """Line and column from 1. `Span.line` counts from the top each time: too slow for ten thousand statements."""
    starts = _line_starts(span.source)
    line = bisect_right(starts, span.start)
    return line, span.start - starts[line - 1] + 1


@functools.lru_cache(maxsize=4)
def _line_starts(source: Source) -> list[int]:
    starts, position = [0], source.text.find("\n")
    while position >= 0:
        starts.append(position + 1)
        position = source.text.find("\n", position + 1)
    return starts
