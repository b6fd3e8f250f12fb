"""A version of a model table -> a local directory that holds exactly its files, kept under the model's root hash.

{cache}/models/{root_hash}/ exists only when it is complete: chunks are streamed and checked one by one into a temporary
directory that is renamed last. Its files are read-only. Two processes that want the same model wait for each other.
Knows nothing of Delta or Parquet: it asks `table` for rows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from byzer_ft.errors import EngineError, ModelError
from byzer_ft.lake.manifest import LARGEST_CHUNK, StoredFile, StoredManifest
from byzer_ft.lake.storage import Storage, doing, sync
from byzer_ft.lake.table import StoreReader, open_version

_SPARE_BYTES = 64 << 20  # left free on the disk beside a model


def materialize(uri: str, version: int | None, cache: Path) -> Path:
    """A verified local directory with the files of `version` (None: the newest). A second call copies nothing.

    Raises ModelError when stored bytes are damaged or gone, EngineError when this machine cannot take them; in both
    cases nothing of the version is visible and what was written is removed.
    """
    storage = Storage(uri)
    number, manifest = open_version(storage, version)
    models = cache / "models"
    target = models / manifest.root_hash
    what = f"version {number} of {storage.uri}"
    if _is_complete(target, manifest):
        return target
    with doing(f"preparing the cache {models}"):
        models.mkdir(parents=True, exist_ok=True)
    with _alone(models, manifest.root_hash):
        if not _is_complete(target, manifest):
            _room_for(sum(f.size for f in manifest.files), models, what)
            _restore(storage, manifest, models, target, what)
    return target


def _restore(storage: Storage, manifest: StoredManifest, models: Path, target: Path, what: str) -> None:
    temporary = models / f".{manifest.root_hash}.{uuid.uuid4().hex}"
    try:
        with doing(f"restoring {what} into {models}"):
            temporary.mkdir()
            with StoreReader(storage) as reader:
                for file in manifest.files:
                    _restore_file(reader, manifest, file, temporary, what)
            _sync_folders(temporary)
            _replace(temporary, target)
            sync(models)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _restore_file(reader: StoreReader, manifest: StoredManifest, file: StoredFile, folder: Path, what: str) -> None:
    from blake3 import blake3

    path = folder / file.path  # `file.path` was checked when the manifest was read: relative, no `..`
    path.parent.mkdir(parents=True, exist_ok=True)
    whole, offset = blake3(), 0
    # `x` and O_NOFOLLOW: the directory is ours and new, so an existing file or link here is an attack or a bug.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    with os.fdopen(handle, "wb", buffering=0) as stream:
        for chunk in file.chunks:
            place = f"{file.path!r} at byte {offset} in {what}"
            data = reader.row(manifest.stores[chunk.store], chunk.row_group, LARGEST_CHUNK, place, chunk.hash)
            if len(data) != chunk.size:
                raise ModelError(f"{place} is damaged: {len(data)} bytes instead of {chunk.size}")
            _write_fully(stream.fileno(), data)
            if len(file.chunks) > 1:
                whole.update(data)
            offset += chunk.size
        os.fsync(handle)
    # Chunks in the right order make the right file only if the manifest is honest, and the cache is shared.
    if (whole.hexdigest() if len(file.chunks) > 1 else file.chunks[0].hash) != file.hash:
        raise ModelError(f"{file.path!r} in {what} is damaged: its chunks do not make the file with hash {file.hash}")


def _write_fully(handle: int, left: memoryview) -> None:
    while left:
        left = left[os.write(handle, left) :]


def _replace(temporary: Path, target: Path) -> None:
    """Renames into place. A directory that stands there is damaged (files missing or cut): it makes way first."""
    damaged = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    if target.exists() or target.is_symlink():
        target.rename(damaged)
    temporary.rename(target)
    if damaged.is_dir() and not damaged.is_symlink():
        shutil.rmtree(damaged, ignore_errors=True)
    else:
        damaged.unlink(missing_ok=True)


def _is_complete(target: Path, manifest: StoredManifest) -> bool:
    """Whether the directory is there with every file at its size. Contents were checked before it got its name."""
    if target.is_symlink() or not target.is_dir():
        return False
    for file in manifest.files:
        path = target / file.path
        if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
            return False
    return True


@contextlib.contextmanager
def _alone(models: Path, root_hash: str) -> Iterator[None]:
    """One process or thread at a time for one model; the kernel frees the lock of a killed one, and we its leavings."""
    with doing(f"locking the cache {models}"):
        handle = os.open(models / f".{root_hash}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        locked = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # a mount without locks: unique names and the rename still keep it right
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            locked = False
        if locked:
            for left in models.glob(f".{root_hash}.*"):
                if left.suffix != ".lock":
                    shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _room_for(size: int, models: Path, what: str) -> None:
    free = shutil.disk_usage(models).free
    needed = size + _SPARE_BYTES
    if free < needed:
        raise EngineError(
            f"{what} needs {needed / 1e6:,.0f} MB and {models} has {free / 1e6:,.0f} MB free",
            hint="make room there, or set BYZER_FT_HOME to a larger disk",
        )


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        sync(Path(folder))
