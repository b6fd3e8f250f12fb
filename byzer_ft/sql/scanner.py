"""A script's text -> tokens with positions, in one pass and linear time. Any text at all is accepted.

Knows the four string forms, back-quotes, comments (hidden, but `/*+ hint */` is kept) and `!` command lines, where
words end at white space only, so that `!fs -ls /tmp/*` is no comment. Backslashes are kept: what they mean is the
engine's business. Knows nothing of statements.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from byzer_ft.errors import Source, SqlError

WORD, NUMBER, STRING, QUOTED, HINT, PUNCT, END, RAW = (
    "word",
    "number",
    "string",
    "quoted",
    "hint",
    "punct",
    "end",
    "raw",
)


class Token(NamedTuple):
    """`text` is as written, quotes included; [start, end) is its place."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        """The text without its quotes; a doubled back-quote inside back-quotes is one."""
        if self.kind == STRING:
            width = 3 if self.text.startswith(("'''", '"""')) else 1
            return self.text[width:-width]
        return self.text[1:-1].replace("``", "`") if self.kind == QUOTED else self.text

    def is_word(self, *words: str) -> bool:
        return self.kind == WORD and self.text.lower() in words


# `.*?` finds its end in one walk, and a missing end stops the scan: no text is walked twice.
_STRINGS = r"""
    (?P<string> '{3} .*? '{3} | "{3} .*? "{3}
              | (?!'{3}) ' (?: [^'\\] | \\. )*+ '
              | (?!"{3}) " (?: [^"\\] | \\. )*+ " )
  | (?P<quoted> ` (?: [^`] | `` )*+ ` )
"""
_SKIP = r"(?P<skip> (?: [\s\ufeff] | --[^\r\n]*+ | /\*(?!\+) .*? \*/ )++ )"
_SCRIPT = re.compile(
    rf"""{_SKIP}
  | (?P<number> \d+ (?: \.\d+ )? (?: [eE][+-]?\d+ )? (?!\w) )
  | (?P<word> \w+ )
  | {_STRINGS}
  | (?P<end> ; )
  | (?P<hint> /\*\+ .*? \*/ )
  | (?P<punct> (?! /\* ) [^"'`] )
    """,
    re.VERBOSE | re.DOTALL,
)
# In a `!` line a comment begins only where a word could; `/*;` is a glob at the end of the line.
_COMMAND = re.compile(
    rf"""(?P<skip> (?: [\s\ufeff] | --[^\r\n]*+ | /\*(?!;) .*? \*/ )++ )
  | {_STRINGS}
  | (?P<end> ; )
  | (?P<raw> (?! /\*(?!;) ) [^\s;"'`\ufeff]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def scan(source: Source) -> tuple[list[Token], SqlError | None]:
    """All tokens, and the error if a string, back-quote or comment is never closed (nothing after it is read)."""
    text = source.text
    tokens: list[Token] = []
    position, size, pattern = 0, len(text), _SCRIPT
    at_start = True  # of a statement: the only place where `!` begins a command line
    while position < size:
        if at_start and text[position] == "!":
            pattern, at_start = _COMMAND, False
        found = pattern.match(text, position)
        if found is None:
            return tokens, _unterminated(source, position, tokens)
        kind = found.lastgroup or PUNCT
        if kind == END:
            pattern, at_start = _SCRIPT, True
        elif kind != "skip":
            at_start = False
        if kind != "skip":
            tokens.append(Token(kind, found.group(), position, found.end()))
        position = found.end()
    return tokens, None


def _unterminated(source: Source, start: int, tokens: list[Token]) -> SqlError:
    opening = next(mark for mark in ("'''", '"""', "/*", "'", '"', "`") if source.text.startswith(mark, start))
    name = {"`": "back-quoted name", "/*": "comment"}.get(opening, "string")
    closing = "*/" if opening == "/*" else opening
    hint = f"close it with {closing}"
    # An odd quote far above turns every later string inside out: the first one that swallowed a `;` is the suspect.
    suspect = next((t for t in tokens if t.kind == STRING and len(t.text) > 1 and _swallowed(t)), None)
    if suspect is not None and opening != "/*":
        line = source.span(suspect.start, suspect.end).line
        hint += f"; or look at line {line}: a string begins there that runs over the end of a statement"
    # Only the opening is marked: the rest of the script is not what is wrong.
    return SqlError(f"unterminated {name}", hint=hint, span=source.span(start, start + len(opening)))


def _swallowed(token: Token) -> bool:
    return not token.text.startswith(("'''", '"""')) and re.search(r";\s*\n", token.text) is not None
