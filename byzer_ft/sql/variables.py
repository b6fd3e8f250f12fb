"""`${name}` in a value -> the variable's text. Only `${…}` is special: `#`, `$` and `{}` alone are ordinary text.

A value is filled in after the statement was read, so it cannot end a string or begin an option: text stays text.
Knows nothing of statements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from byzer_ft.errors import Span, SqlError, did_you_mean, listing
from byzer_ft.sql.setup import SetupState
from byzer_ft.sql.statements import Part

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
MAX_CHARACTERS = 16 * 2**20  # a variable that holds itself twice, forty times over, would fill the memory


class NotYetKnown(Exception):
    """The value depends on a variable that only execution can tell. Internal to `check`."""


def interpolate(
    part: Part, variables: Mapping[str, str], *, later: Set[str] = frozenset(), keep_unknown: bool = False
) -> str:
    """The part's value with its variables filled in; SqlError for an undefined one, pointing at it in the text.

    `later`: names whose value is not known before execution. `keep_unknown`: what is not defined stays as it is.
    """
    text = part.value
    if "${" not in text:
        return text
    pieces: list[str] = []
    position = size = 0
    for found in _VARIABLE.finditer(text):
        name = found.group(1).strip()
        if name in later:
            raise NotYetKnown(name)
        value = variables.get(name)
        if value is None and not keep_unknown:
            raise _undefined(part, found, name, [*variables, *later])
        if value is not None and not keep_unknown and (hole := _VARIABLE.search(value)) is not None:
            raise SqlError(
                f"variable `{name}` still holds {hole.group()}, which was not defined when it was set",
                hint=f"set {hole.group(1).strip()} before {name}",
                span=_at(part, found),
            )
        pieces += [text[position : found.start()], found.group() if value is None else value]
        position = found.end()
        size += len(pieces[-1])
        if size > MAX_CHARACTERS:
            raise SqlError(f"the value grows over {MAX_CHARACTERS} characters", span=part.span)
    return "".join([*pieces, text[position:]])


def _undefined(part: Part, found: re.Match[str], name: str, variables: list[str]) -> SqlError:
    hint = did_you_mean(name, variables) or f"variables: {listing(variables)}"
    return SqlError(f"variable `{name}` is not defined", hint=hint, span=_at(part, found))


def _at(part: Part, found: re.Match[str]) -> Span:
    """The variable itself, inside the part's text."""
    text, written = part.span.source.text, found.group()
    start = part.span.start + len(part.quote) + found.start()
    if not text.startswith(written, start):  # a doubled back-quote before it, or a value of several tokens
        start = text.find(written, part.span.start, part.span.end)
    return part.span.source.span(start, start + len(written)) if start >= 0 else part.span


@dataclass(frozen=True)
class Scope:
    """What a statement may refer to. `later`: variables that get their values when their `set` runs."""

    variables: Mapping[str, str] = field(default_factory=dict)
    setup: Mapping[str, str] = field(default_factory=SetupState)
    owner: str = ""
    later: Set[str] = frozenset()

    def fill(self, part: Part, *, keep_unknown: bool = False) -> str:
        return interpolate(part, self.variables, later=self.later, keep_unknown=keep_unknown)
