"""A query's text -> how deep its tree can be, in linear time and without a parser, and the refusal of one too deep.

Every parser and planner behind here recurses: what is nested without end would end the process. The depth is an upper
bound: brackets and `case … end` inside one another, plus the operators that stand side by side in each of them. Knows
nothing of what a query means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from byzer_ft.errors import Span, SqlError

MAX_DEPTH = 1_200  # a thousand terms and some; the engine bears more, but its time grows with the square and worse

# From the loosest to the tightest: an operator ends the chains of all that bind tighter.
_BINDING = (
    frozenset({"union", "intersect", "except", "minus", "join"}),
    frozenset({"or"}),
    frozenset({"and"}),
    frozenset(
        {"not", "!", "=", "<", ">", "<=", ">=", "<>", "!=", "==", "is", "in", "like", "rlike", "ilike", "between"}
    ),
    frozenset({"+", "-", "*", "/", "%", "|", "||", "&", "^", "~", "div", "::", "["}),
)
_STRENGTH = {word: strength for strength, words in enumerate(_BINDING) for word in words}
_CLAUSES = frozenset(
    {",", ";", "select", "from", "where", "having", "group", "order", "by", "on", "qualify", "limit"}
    | {"when", "then", "else"}
)
_TOKEN = re.compile(
    r"""(?: '(?:[^'\\]|\\.)*+' | "(?:[^"\\]|\\.)*+" | `[^`]*+` | --[^\r\n]*+ | /\*.*?\*/ | \s++ )
      | (?P<word> \w+ | \|\| | :: | [<>=!]= | <> | . )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass
class _Level:
    """What stands between one pair of brackets: the chains at this place, and the deepest of what ended."""

    opened: str = ""
    chains: list[int] = field(default_factory=lambda: [0] * len(_BINDING))
    longest: int = 0
    inside: int = 0
    deepest: int = 0

    def operator(self, strength: int) -> None:
        self.chains[strength] += 1
        self.chains[strength + 1 :] = [0] * (len(_BINDING) - strength - 1)
        self.longest = max(self.longest, sum(self.chains))

    def clause(self) -> None:
        self.deepest = max(self.deepest, self.longest + self.inside)
        self.chains[1:] = [0] * (len(_BINDING) - 1)
        self.longest, self.inside = self.chains[0], 0

    def depth(self) -> int:
        return 1 + max(self.deepest, self.longest + self.inside)


def depth(text: str) -> int:
    """An upper bound of the depth of a query's tree. Any text at all is accepted."""
    levels = [_Level()]
    for found in _TOKEN.finditer(text):
        word = (found["word"] or "").lower()
        if word in _STRENGTH:
            levels[-1].operator(_STRENGTH[word])
        if word in ("(", "[", "case"):
            levels.append(_Level(word))
        elif word in (")", "]"):
            _close(levels, "case")
            _close(levels, "(", "[", only_one=True)
        elif word == "end":
            _close(levels, "case", only_one=True)
        elif word in _CLAUSES:
            levels[-1].clause()
    _close(levels, "(", "[", "case")
    return levels[0].depth()


def _close(levels: list[_Level], *opened: str, only_one: bool = False) -> None:
    while levels[-1].opened in opened:
        closed = levels.pop().depth()
        levels[-1].inside = max(levels[-1].inside, closed)
        if only_one:
            return


def check(text: str, span: Span | None) -> None:
    """Raises SqlError for a query that nothing behind here should be asked to read."""
    if len(text) > MAX_DEPTH and depth(text) > MAX_DEPTH:
        raise too_deep(span)


def too_deep(span: Span | None) -> SqlError:
    return SqlError(
        "the query is nested too deeply",
        hint="compute a part of it in a select before; many values fit in a list: a in (1, 2, …)",
        span=span,
    )
