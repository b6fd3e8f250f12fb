"""The address of a table -> the files in it, through pyarrow's file systems: a local path or an object store's URL.

Names inside a table are ours and plain ASCII; only the table's own address is a user's. Every failure comes out as an
EngineError that says what was being done. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from byzer_ft.errors import EngineError, ModelError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem


class Storage:
    """The folder of one table (or of a whole lake)."""

    def __init__(self, uri: str) -> None:
        self.local: Path | None = None
        if urlsplit(uri).scheme == "file":
            uri = unquote(urlsplit(uri).path)
        if "://" not in uri:
            self.local = Path(uri).absolute()
            uri = str(self.local)
            if re.search(r"\\|%[0-9A-Fa-f]{2}", uri):  # deltalake decodes these in paths and then looks elsewhere
                raise ModelError(
                    f"the Delta library cannot use the path {uri!r}", hint="use a path without backslash and `%` codes"
                )
        self.uri = uri
        self._opened: tuple[FileSystem, str] | None = None

    @property
    def _place(self) -> tuple[FileSystem, str]:
        if self._opened is None:
            from pyarrow import fs

            if self.local is not None:
                self._opened = fs.LocalFileSystem(), str(self.local)
            else:
                self._opened = fs.FileSystem.from_uri(re.sub("^s3a://", "s3://", self.uri))
        return self._opened

    def create(self, name: str) -> pa.NativeFile:
        files, root = self._place
        if self.local is not None:
            files.create_dir(root, recursive=True)
        return files.open_output_stream(f"{root}/{name}")

    def open(self, name: str) -> pa.NativeFile:
        files, root = self._place
        return files.open_input_file(f"{root}/{name}")

    def size(self, name: str) -> int:
        files, root = self._place
        return int(files.get_file_info(f"{root}/{name}").size)

    def remove(self, name: str) -> None:
        files, root = self._place
        with contextlib.suppress(OSError):
            files.delete_file(f"{root}/{name}")

    def sync(self, name: str = "") -> None:
        """Bytes and names reach the disk before a commit speaks of them. Object stores do that by themselves."""
        if self.local is not None:
            sync(self.local / name)

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders directly below, sorted; none when it does not exist."""
        from pyarrow.fs import FileSelector, FileType

        files, root = self._place
        found = files.get_file_info(FileSelector(f"{root}/{name}".rstrip("/"), allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)


def sync(path: Path) -> None:
    """Flushes a file's bytes, or a directory's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Turns what pyarrow and the operating system raise into an EngineError that says what failed and why."""
    try:
        yield
    except OSError as error:
        raise failed(what, error) from error


def failed(what: str, error: Exception) -> EngineError:
    """The reason alone, and what to do about a full disk; other libraries say it in words instead of an errno."""
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error)
    hint = "make room on that disk, then run the statement again; nothing half-written is visible" if full else None
    return EngineError(f"{what} failed: {getattr(error, 'strerror', None) or plain(error)}", hint=hint)


def plain(error: Exception) -> str:
    """deltalake's messages are coloured trees over several lines."""
    return re.sub(r"(\x1b\[[0-9;]*m|↳|\s)+", " ", str(error)).strip()
