"""A directory on this machine -> a manifest: which regular files it holds and their hashes.

Links are followed only to regular files inside the directory, or wherever a PathGuard allows. A directory that changes
while it is read is an error, never a mixture. Hashing 26 GB costs minutes, so `root_hash` keeps the hashes of files
that have not changed since. Knows nothing of tables.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzer_ft.errors import AccessError, EngineError, ModelError, NotFoundError
from byzer_ft.lake.manifest import FileEntry, Manifest, check_stored_path
from byzer_ft.paths import PathGuard

SKIPPED = frozenset({".git", ".cache", "__pycache__", ".ipynb_checkpoints"})  # directories that are no part of a model
_BLOCK = 4 << 20
_SETTLED_NS = 2_000_000_000  # a file younger than this may still change within one tick of its mtime


@dataclass(frozen=True)
class Found:
    """One file as the walk saw it: its stored path, the real path to open, and what must not change."""

    path: str
    real: str
    size: int
    mtime_ns: int
    inode: int


def scan_directory(directory: Path, *, guard: PathGuard | None = None) -> Manifest:
    """Hashes every file below `directory`. Without a guard no link may leave the directory.

    Raises NotFoundError, ModelError (empty, a pipe or socket, changed while read) or AccessError (a link that leaves).
    """
    return _manifest(directory, guard, {})


def root_hash(directory: Path, cache: Path, *, guard: PathGuard | None = None) -> str:
    """`scan_directory(directory).root_hash`, reading only files whose path, size, mtime or inode is new to `cache`."""
    record = cache / "hashes" / f"{_name_of(directory)}.json"
    known = _read_record(record)
    manifest = _manifest(directory, guard, known)
    _write_record(record, known)
    return manifest.root_hash


def walk(directory: Path, guard: PathGuard | None) -> tuple[list[Found], list[str]]:
    """Every regular file below `directory`, sorted by stored path, and the names that were left out."""
    root = Path(os.path.realpath(directory))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise NotFoundError(
            f"model directory {str(directory)!r} {what}", hint="name the directory that holds config.json"
        )
    skipped: list[str] = []
    try:
        found = sorted(_walk(root, guard, skipped), key=lambda f: f.path)
    except OSError as error:
        raise _unreadable(directory, error) from None
    if not found:
        raise ModelError(f"model directory {str(directory)!r} holds no files", hint="there is nothing to save")
    return found, sorted(skipped)


def read_blocks(file: Found, block: int = _BLOCK) -> Iterator[bytes]:
    """The file's bytes, `block` at a time (the last one shorter). ModelError when it is not what the walk saw."""
    try:
        # O_NOFOLLOW: `real` was resolved and allowed by the walk; a link put in its place since then is not.
        handle = os.open(file.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb", buffering=0) as stream:
            _same(file, os.fstat(stream.fileno()))
            left = file.size
            while left:
                data = _read_fully(stream, min(block, left))
                left -= len(data)
                if not data:
                    raise _changed(file.path)
                yield data
            if stream.read(1):
                raise _changed(file.path)
            _same(file, os.fstat(stream.fileno()))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT):
            raise _changed(file.path) from None
        raise _unreadable(Path(file.path), error) from None


def unchanged(directory: Path, guard: PathGuard | None, before: list[Found]) -> None:
    """Raises ModelError when the directory no longer is what the walk saw."""
    after = {f.path: f for f in walk(directory, guard)[0]}
    for file in before:
        if after.pop(file.path, None) != file:
            raise _changed(file.path)
    for path in after:
        raise _changed(path)


def hash_file(file: Found) -> str:
    from blake3 import blake3

    hasher = blake3()
    for block in read_blocks(file):
        hasher.update(block)
    return str(hasher.hexdigest())


# ------------------------------------------------------------------------------------------------------------ walking


def _walk(root: Path, guard: PathGuard | None, skipped: list[str]) -> Iterator[Found]:
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = str(Path(entry.path).relative_to(root))
                if not entry.is_dir(follow_symlinks=False):
                    yield _found(entry, path, root, guard)
                elif entry.name in SKIPPED:
                    skipped.append(path + "/")
                else:
                    folders.append(Path(entry.path))


def _found(entry: os.DirEntry[str], path: str, root: Path, guard: PathGuard | None) -> Found:
    try:
        check_stored_path(path)
    except ValueError as error:
        raise ModelError(f"a file's name cannot be stored: {error}", hint="rename the file") from None
    real = _follow(entry.path, path, root, guard) if entry.is_symlink() else entry.path
    info = os.stat(real, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode):
        raise ModelError(f"{path!r} is not a regular file", hint="a model is files; remove it from the directory")
    return Found(path, real, info.st_size, info.st_mtime_ns, info.st_ino)


def _follow(link: str, path: str, root: Path, guard: PathGuard | None) -> str:
    real = os.path.realpath(link)
    inside = real.startswith(str(root).rstrip(os.sep) + os.sep)
    if not inside and guard is None:
        raise AccessError(f"link {path!r} leaves the model directory", hint="copy the file to where the link stands")
    if not inside and guard is not None:
        real = guard.resolve(link, what=f"the target of link {path!r}")
    if not os.path.exists(real):
        raise ModelError(f"link {path!r} points at nothing", hint="download or copy the file that is missing")
    return real


def _same(file: Found, info: os.stat_result) -> None:
    if (info.st_size, info.st_mtime_ns, info.st_ino) != (file.size, file.mtime_ns, file.inode):
        raise _changed(file.path)


def _read_fully(stream: Any, size: int) -> bytes:
    """`size` bytes unless the file ends: a raw read may return less, and chunk borders must not depend on that."""
    data: bytes = stream.read(size)
    if data and len(data) < size:
        parts = [data]
        while (missing := size - sum(map(len, parts))) and (more := stream.read(missing)):
            parts.append(more)
        data = b"".join(parts)
    return data


def _changed(path: str) -> ModelError:
    return ModelError(
        f"the model directory changed while it was read: {path!r}", hint="wait until its writer is done, then try again"
    )


def _unreadable(path: Path, error: OSError) -> EngineError | AccessError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessError(f"cannot read {str(path)!r}: {error.strerror}")
    return EngineError(f"cannot read {str(path)!r}: {error.strerror or error}")


# ------------------------------------------------------------------------------------------------------------ hashing


def _manifest(directory: Path, guard: PathGuard | None, known: dict[str, list[Any]]) -> Manifest:
    """Hashes what is not in `known`, then leaves exactly this directory's settled files in it."""
    found, skipped = walk(directory, guard)
    started = time.time_ns()
    entries, settled = [], {}
    for file in found:
        key = [file.real, file.size, file.mtime_ns, file.inode]
        record = known.get(file.path)
        digest = record[1] if record and record[0] == key else hash_file(file)
        entries.append(FileEntry(path=file.path, size=file.size, hash=digest))
        if file.mtime_ns < started - _SETTLED_NS:
            settled[file.path] = [key, digest]
    unchanged(directory, guard, found)
    known.clear()
    known.update(settled)
    return Manifest(files=tuple(entries), skipped=tuple(skipped))


def _name_of(directory: Path) -> str:
    from blake3 import blake3

    return str(blake3(os.fsencode(os.path.realpath(directory))).hexdigest()[:32])


def _read_record(path: Path) -> dict[str, list[Any]]:
    """A lost or damaged record costs hashing again, nothing else."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["format_version"] != 1:
            return {}
        return {k: [v[0], v[1]] for k, v in raw["files"].items() if re.fullmatch("[0-9a-f]{64}", v[1])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return {}


def _write_record(path: Path, known: dict[str, list[Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"format_version": 1, "files": known}), "utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full or read-only cache: the hash itself is right all the same
            temporary.unlink()
