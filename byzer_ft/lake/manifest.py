"""What a model version is made of, and its stored form: one JSON document beside the chunks.

A manifest names files by relative path, size and blake3; a stored manifest says as well which chunks make a file and
where each chunk's bytes lie. Everything read back is checked here before anyone acts on it: a stored document is input
from a stranger. Knows nothing of Delta, Parquet or file systems.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from byzer_ft.errors import ModelError
from byzer_ft.intents import BaseModelRef, Frozen

FORMAT_VERSION = 1
CHUNK_BYTES = 16 << 20  # measured best; Arrow's binary type ends at 2 GiB a column chunk
LARGEST_CHUNK = 32 << 20  # what a reader accepts, so that a stored size cannot exhaust memory


def check_stored_path(path: str) -> str:
    """A relative POSIX path that stays below its directory, or ValueError. Never touches the file system."""
    parts = path.split("/")
    if not path or "\0" in path or path.startswith("/") or any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"stored path {path!r} is not a relative path below the model's directory")
    try:
        longest = max(len(p.encode("utf-8")) for p in parts)
    except UnicodeEncodeError:
        raise ValueError(f"stored path {path!r} is not valid Unicode") from None
    if longest > 255 or len(path) > 1000:
        raise ValueError(f"stored path {path[:60]!r}… is too long")
    return path


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
StoredPath = Annotated[str, AfterValidator(check_stored_path)]


class FileEntry(Frozen):
    """One file of a model: path below its directory, size in bytes, blake3 of its content."""

    path: StoredPath
    size: int = Field(ge=0)
    hash: Hash


class Manifest(Frozen):
    """The files of a model directory, sorted by path. `skipped` names what was left out: caches and `.git`."""

    files: tuple[FileEntry, ...]
    skipped: tuple[str, ...] = ()

    @property
    def root_hash(self) -> str:
        """The model's identity: paths, sizes and contents. Chunk borders and times have no part in it."""
        return hash_of_files(self.files)

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)


def hash_of_files(files: Iterable[FileEntry]) -> str:
    from blake3 import blake3

    rows = sorted((f.path, f.size, f.hash) for f in files)
    return blake3(
        json.dumps(["byzer_ft model 1", rows], ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


class ModelMeta(Frozen):
    """What is known about a model besides its bytes. An adapter names its base by hash and says where that was."""

    kind: Literal["full", "adapter"]
    family: str | None = None
    base: BaseModelRef | None = None
    comment: str | None = None
    lineage: dict[str, Any] = {}

    @model_validator(mode="after")
    def _adapter_has_base(self) -> ModelMeta:
        if self.kind == "adapter" and (self.base is None or not self.base.root_hash):
            raise ModelError(
                "an adapter needs base.root_hash: it is nothing without its base model",
                hint="give ModelMeta(base=BaseModelRef(directory, root_hash=root_hash(directory, cache)))",
            )
        return self


class ModelVersion(Frozen):
    """A handle: everything about one stored version but its bytes."""

    uri: str
    version: int
    root_hash: str
    meta: ModelMeta
    size: int
    files: tuple[FileEntry, ...]
    created_at: datetime


class Chunk(Frozen):
    """Bytes of a file, and where they are stored: row group `row_group` of data file `stores[store]`."""

    hash: Hash
    size: int = Field(ge=0, le=LARGEST_CHUNK)
    store: int = Field(ge=0)
    row_group: int = Field(ge=0)


class StoredFile(FileEntry):
    chunks: tuple[Chunk, ...] = Field(min_length=1)


class StoredManifest(Frozen):
    """The document that a version's manifest row holds. `stores` are data files, relative to the table."""

    format_version: Literal[1] = 1
    root_hash: Hash
    created_at: datetime
    meta: ModelMeta
    stores: tuple[StoredPath, ...]
    files: tuple[StoredFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> StoredManifest:
        for file in self.files:
            if sum(c.size for c in file.chunks) != file.size:
                raise ValueError(f"chunks of {file.path!r} do not add up to its {file.size} bytes")
            if any(c.store >= len(self.stores) for c in file.chunks):
                raise ValueError(f"a chunk of {file.path!r} names no data file")
        paths = {f.path for f in self.files}
        parents = {p[:i] for p in paths for i, c in enumerate(p) if c == "/"}
        if len(paths) != len(self.files) or paths & parents:
            raise ValueError("two files have the same path, or one is below the other")
        if hash_of_files(self.files) != self.root_hash:
            raise ValueError("the root hash does not belong to these files")
        return self

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_defaults=False).encode()


def parse_manifest(document: bytes, where: str) -> StoredManifest:
    """The stored document, checked. A newer format and a damaged one are different ModelErrors."""
    try:
        raw = json.loads(document)
        number = raw["format_version"]
        if isinstance(number, int) and number > FORMAT_VERSION:
            raise newer_format(number, where)
        return StoredManifest.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"the manifest of {where} is damaged: {place}: {first['msg']}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"the manifest of {where} is damaged: {error}") from None


def newer_format(number: int, where: str) -> ModelError:
    return ModelError(
        f"{where} was written in model format {number}; this byzer_ft reads up to {FORMAT_VERSION}",
        hint="install a newer byzer_ft",
    )
