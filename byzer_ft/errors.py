"""Everything that can go wrong, as one tree whose branches say what a caller can do about it.

    ByzerError
    |-- ScriptError          the text is wrong: change the script        (400, exit 1)
    |   |-- SqlError             a statement cannot be read
    |   |-- OptionError          an option is unknown, mistyped or contradicts another
    |   |-- NotSupportedError    a known statement that this version does not execute
    |   `-- ScriptErrors         several of the above, all that one pass found
    |-- NotFoundError        a table, column, model, job, function or path does not exist (404)
    |-- AccessError          outside the allowed roots, or code that must be trusted first (403)
    |-- ConflictError        the name is taken, the thing exists or is still in use (409)
    |-- DataError            rows that cannot be used: malformed, empty, unknown shape (422)
    |-- ModelError           a model directory or table that cannot be used (422)
    |-- ResourceError        the machines cannot give what was asked for (503)
    |-- JobError             a job failed; carries the tail of the worker's traceback (500)
    |-- EngineError          the SQL engine or the storage failed (500)
    `-- Cancelled            the user stopped it (499, exit 130)

Each error says what was given, what exists and what to do next (`hint`), and points at the user's own text
(`span`) where it has one: a late error found far from the parser still underlines the line that caused it.
Knows nothing of SQL, engines or terminals.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A script's text and the name shown for it (`my.sql`, `<sql>`, `cell 3`)."""

    text: str
    name: str = "<sql>"

    def span(self, start: int, end: int) -> Span:
        """The half-open range [start, end) of this text, in characters."""
        return Span(self, start, max(start, end))

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self.text)} characters)"


@dataclass(frozen=True)
class Span:
    """A half-open range of a source text. `line` and `column` count from 1, as editors do."""

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.text.count("\n", 0, self.start) + 1

    @property
    def column(self) -> int:
        return self.start - (self.source.text.rfind("\n", 0, self.start) + 1) + 1

    def where(self) -> str:
        """`file:line:column`, which editors and terminals can jump to."""
        return f"{self.source.name}:{self.line}:{self.column}"

    def underlined(self) -> str:
        """The first line of the range with carets below it, indented by four spaces."""
        text = self.source.text
        begin = text.rfind("\n", 0, self.start) + 1
        stop = text.find("\n", self.start)
        line = text[begin : stop if stop >= 0 else len(text)]
        offset = self.start - begin
        width = max(1, min(self.end - self.start, len(line) - offset))
        shown, lead, width = _window(line, offset, width)
        # A wide (Chinese) character takes two cells in a terminal: the carets must follow it.
        pad = "".join("\t" if c == "\t" else " " * _cells(c) for c in shown[:lead])
        carets = "^" * max(1, sum(_cells(c) for c in shown[lead : lead + width]))
        return f"    {shown}\n    {pad}{carets}"


def _window(line: str, offset: int, width: int, limit: int = 160) -> tuple[str, int, int]:
    """A cut of a very long line around the marked range: (shown, offset in it, width in it)."""
    if len(line) <= limit:
        return line, offset, width
    left = max(0, offset - 40)
    right = min(len(line), left + limit)
    prefix, suffix = ("…" if left else ""), ("…" if right < len(line) else "")
    return prefix + line[left:right] + suffix, offset - left + len(prefix), min(width, right - offset)


def _cells(char: str) -> int:
    import unicodedata

    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class ByzerError(Exception):
    """Base of all errors that a user is meant to read."""

    http_status = 500
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, span: Span | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.span = span

    def at(self, span: Span | None) -> ByzerError:
        """This error, pointing at `span` unless it already points somewhere more exact."""
        if self.span is None:
            self.span = span
        return self

    def render(self) -> str:
        """Several lines for a terminal: where, what, the underlined text and the hint."""
        lines = [f"{self.span.where()}: error: {self.message}" if self.span else f"error: {self.message}"]
        if self.span is not None:
            lines.append(self.span.underlined())
        if self.hint:
            lines += [("  hint: " if i == 0 else "        ") + part for i, part in enumerate(self.hint.split("\n"))]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The same as fields, for JSON: type, message, hint, file, line, column, start, end, text."""
        out: dict[str, object] = {"type": type(self).__name__, "message": self.message, "hint": self.hint}
        if self.span is not None:
            s = self.span
            out |= {"file": s.source.name, "line": s.line, "column": s.column, "start": s.start, "end": s.end}
            out["text"] = s.text[:200]
        return out


class ScriptError(ByzerError):
    http_status = 400


class SqlError(ScriptError):
    """A statement that cannot be read."""


class OptionError(ScriptError):
    """An option that is unknown, mistyped, out of range or contradicts another."""


class NotSupportedError(ScriptError):
    """A known statement or option that this version reads but does not execute."""

    http_status = 501


class ScriptErrors(ScriptError):
    """All errors that one pass over a script found, in the order of the text. Never empty."""

    def __init__(self, errors: Sequence[ByzerError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(e.message for e in errors), hint=None, span=errors[0].span)

    def render(self) -> str:
        return "\n".join(e.render() for e in self.errors)


class NotFoundError(ByzerError):
    http_status = 404


class AccessError(ByzerError):
    http_status = 403


class ConflictError(ByzerError):
    http_status = 409


class DataError(ByzerError):
    http_status = 422


class ModelError(ByzerError):
    http_status = 422


class ResourceError(ByzerError):
    http_status = 503


class JobError(ByzerError):
    """A job failed. `tail` holds the last lines of the worker's own traceback, if there is one."""

    def __init__(
        self, message: str, *, hint: str | None = None, span: Span | None = None, tail: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, span=span)
        self.tail = tail

    def render(self) -> str:
        text = super().render()
        if self.tail:
            text += "\n  the worker said:\n" + "\n".join("    " + line for line in self.tail.rstrip().split("\n"))
        return text


class EngineError(ByzerError):
    pass


class Cancelled(ByzerError):
    http_status = 499
    exit_code = 130


def did_you_mean(given: str, known: Iterable[str]) -> str | None:
    """`did you mean \\`x\\`?` for the nearest known name, or None when nothing is near."""
    names = list(known)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.6)
    return f"did you mean `{lowered[near[0]]}`?" if near else None


def listing(names: Iterable[str], *, limit: int = 12, empty: str = "none") -> str:
    """A short, sorted list for an error message: `a, b, c and 3 more`."""
    ordered = sorted(set(names))
    if not ordered:
        return empty
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"
