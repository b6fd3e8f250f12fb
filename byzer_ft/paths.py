"""A path as a user wrote it -> a real path that may be touched, or AccessError. The only resolver there is.

Every statement that names a file goes through `PathGuard`: load, save, include, macros, model directories, and
files named inside SELECT, CREATE or INSERT. The resolved path is handed on, never the spelling, so a link that
changes its target later, or `..`, buys nothing. Knows nothing of what is in the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from byzer_ft.errors import AccessError, NotFoundError

ASSETS = Path(__file__).parent / "assets"  # shipped data and the built-in model: everybody may read it, nobody write
BUILTIN = "builtin:"  # `builtin:tickets.jsonl` is a shipped file
REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "hdfs")


class PathGuard:
    """Holds the allowed roots (None: whatever the process may do) and answers one question."""

    def __init__(self, roots: Iterable[Path] | None) -> None:
        self.roots = None if roots is None else tuple(Path(os.path.realpath(r)) for r in roots)

    def resolve(self, path: str, *, what: str = "path", write: bool = False) -> str:
        """The real, absolute path of `path` (a local path, `file://` URL, `builtin:` name or object-store URL).

        Works for files that do not exist yet: their nearest existing parent decides. Raises AccessError when the
        path is outside the roots or uses a scheme that is not known. Glob characters are left as they are; each
        match must be resolved again, since a match may be a link.
        """
        if "\0" in path:
            raise AccessError(f"{what} contains a NUL character")
        if path.startswith(BUILTIN):
            path = str(_builtin(path))
        scheme = urlsplit(path).scheme.lower() if "://" in path else ""
        if scheme in REMOTE_SCHEMES:
            if self.roots is not None:
                raise AccessError(f"{what} {path!r} is outside the allowed roots", hint=self._hint())
            return path
        if scheme == "file":
            path = unquote(urlsplit(path).path)
        elif scheme:
            raise AccessError(
                f"{what} {path!r}: scheme {scheme!r} is not known",
                hint=f"use a local path, file:// or one of {', '.join(s + '://' for s in REMOTE_SCHEMES)}",
            )
        real = os.path.realpath(os.path.expanduser(path))
        if _below(real, Path(os.path.realpath(ASSETS))):
            if write:
                raise AccessError(f"{what} {path!r} belongs to byzer_ft itself", hint="write somewhere else")
        elif self.roots is not None and not any(_below(real, root) for root in self.roots):
            raise AccessError(f"{what} {path!r} is outside the allowed roots", hint=self._hint())
        return real

    def _hint(self) -> str:
        roots = ", ".join(str(r) for r in self.roots or ())
        return f"BYZER_FT_ALLOWED_ROOTS allows: {roots or 'nothing'}"


def _builtin(path: str) -> Path:
    """`builtin:tickets.jsonl` -> the shipped file. NotFoundError that lists what is shipped."""
    name = path.removeprefix(BUILTIN)
    shipped = sorted(p.name for p in (ASSETS / "data").iterdir() if p.is_file())
    if name not in shipped:
        raise NotFoundError(f"there is no {path}", hint=f"shipped files: {', '.join(BUILTIN + n for n in shipped)}")
    return ASSETS / "data" / name


def _below(real: str, root: Path) -> bool:
    return real == str(root) or real.startswith(str(root).rstrip(os.sep) + os.sep)
