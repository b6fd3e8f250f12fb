"""A model directory -> one commit of a Delta table, and the handle of any version of it.

One row is one chunk of a file (at most 16 MiB) and one Parquet row group; `version` is a partition column and equals
the Delta version that made it. Three kinds of rows belong to a version:

    path         part  value
    ''           -1    the manifest: JSON, all that a reader of bytes needs
    'a.bin'      0..   the bytes of a chunk that this version brought
    'a.bin'      0..   null: the same bytes (same hash) are in another row already

So a handle is read from one small row, a plain SQL engine sees every chunk of every version, and a chunk is stored
once. A version becomes visible in a single commit; what a killed writer leaves is files that no commit names.
Knows nothing of SQL text, sessions or caches.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ByzerError, ConflictError, ModelError, NotFoundError, OptionError
from byzer_ft.intents import SaveMode
from byzer_ft.lake.manifest import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    Chunk,
    FileEntry,
    ModelMeta,
    ModelVersion,
    StoredFile,
    StoredManifest,
    hash_of_files,
    newer_format,
    parse_manifest,
)
from byzer_ft.lake.scan import Found, read_blocks, unchanged, walk
from byzer_ft.lake.storage import Storage, doing, failed, plain
from byzer_ft.paths import PathGuard

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

COLUMNS = {"version": "long", "path": "string", "part": "integer", "offset": "long", "size": "long", "hash": "string"}
_DESCRIPTION = "byzer_ft model table, format "
_CONFIGURATION: Mapping[str, str | None] = {
    "delta.dataSkippingStatsColumns": "path,part,offset,size,hash",  # never `value`: statistics would copy chunks
    "delta.logRetentionDuration": "interval 3650 days",  # the log is tiny, and a version is loadable while it stands
}
_STORE_BYTES = 1 << 30  # a data file is closed at this size, or at this many chunks
_STORE_ROWS = 1024
_LARGEST_MANIFEST = 1 << 30
_PATIENCE_SECONDS = 120.0


def save_model(
    directory: Path, uri: str, mode: SaveMode, meta: ModelMeta, *, guard: PathGuard | None = None
) -> ModelVersion:
    """Stores `directory` as a new version of the model table at `uri`, in one commit.

    overwrite hides the versions before it (they stay loadable by number), append keeps them, ignore returns what
    exists, errorifexists refuses. Until the commit nothing is visible; whatever stops it leaves the table as it was.
    """
    storage = Storage(uri)
    table = _existing(storage)
    if table is not None and mode in ("ignore", "errorifexists"):
        return _already_there(storage, mode)
    _refuse_inside(storage, directory)
    found, _ = walk(directory, guard)
    writer = _Writer(storage, _Known(storage, table))
    try:
        files = tuple(writer.add(file) for file in found)
        unchanged(directory, guard, found)
        manifest = writer.finish(files, meta)
    except BaseException:
        writer.discard()
        raise
    version = _commit(storage, mode, writer, manifest)
    return _already_there(storage, mode) if version is None else _handle(storage, version, manifest)


def read_version(uri: str, version: int | None = None) -> ModelVersion:
    """The handle of a version (the newest by default). Reads a manifest row, never the bytes."""
    storage = Storage(uri)
    number, manifest = open_version(storage, version)
    return _handle(storage, number, manifest)


def find_version(uri: str, root_hash: str) -> ModelVersion | None:
    """The newest version with this content, hidden ones included; None when no version has it."""
    storage = Storage(uri)
    number = int(_model_table(storage).version())
    while number >= 0:
        number, manifest = open_version(storage, number)
        if manifest.root_hash == root_hash:
            return _handle(storage, number, manifest)
        number -= 1
    return None


def is_model_table(uri: str) -> bool:
    """Whether a table that holds models stands at `uri`. False for ordinary tables, other files and nothing at all."""
    try:
        table = _open(Storage(uri))
    except ModelError:
        return False
    return table is not None and _holds_models(table)


def list_models(lake_root: str, owner: str, *, notice: Callable[[str], None] | None = None) -> list[ModelVersion]:
    """The newest version of every model of `owner`, by address. A table that cannot be read is told to `notice`, or
    raised when there is none: it must not hide the others, nor vanish."""
    lake = Storage(f"{lake_root.rstrip('/')}/{owner}")
    models = []
    with doing(f"listing the lake {lake.uri}"):
        names = [f"{db}/{name}" for db in lake.folders() for name in lake.folders(db)]
    for name in names:
        uri = f"{lake.uri}/{name}"
        try:
            table = _open(Storage(uri))
            if table is not None and _holds_models(table):
                models.append(read_version(uri))
        except ByzerError as error:
            if notice is None:
                raise
            notice(f"table {name} is left out: {error.message}")
    return models


def open_version(storage: Storage, version: int | None) -> tuple[int, StoredManifest]:
    """The manifest in force at Delta version `version`, and the number of the version that wrote it."""
    table = _model_table(storage, version)
    stored = _manifests(table)
    if not stored:
        raise NotFoundError(f"model table {storage.uri} holds no version", hint="save a model into it first")
    number, name = max(stored)
    return number, _read_manifest(storage, name, number)


def _handle(storage: Storage, version: int, manifest: StoredManifest) -> ModelVersion:
    return ModelVersion(
        uri=storage.uri,
        version=version,
        root_hash=manifest.root_hash,
        meta=manifest.meta,
        size=sum(f.size for f in manifest.files),
        files=tuple(FileEntry(path=f.path, size=f.size, hash=f.hash) for f in manifest.files),
        created_at=manifest.created_at,
    )


# ------------------------------------------------------------------------------------------------------ Delta, reading


def _open(storage: Storage, version: int | None = None) -> DeltaTable | None:
    """The table, or None when there is none. ModelError when what stands there is no readable Delta table."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    with doing(f"opening the table {storage.uri}"):
        try:
            return DeltaTable(storage.uri, version=version)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            raise ModelError(f"{storage.uri} is not a readable Delta table: {plain(error)}") from None


def _model_table(storage: Storage, version: int | None = None) -> DeltaTable:
    newest = _existing(storage)
    if newest is None:
        raise NotFoundError(f"there is no model table at {storage.uri}", hint="`!show models` lists what exists")
    if version is None or version == newest.version():
        return newest
    if not 0 <= version < newest.version():
        raise NotFoundError(
            f"model table {storage.uri} has no version {version}", hint=f"its versions are 0 to {newest.version()}"
        )
    table = _open(storage, version)
    if table is None:
        raise NotFoundError(f"version {version} of {storage.uri} is gone", hint="its log entry was cleaned up")
    return table


def _existing(storage: Storage) -> DeltaTable | None:
    """The model table at this address, or None. An ordinary table, or a newer format, is refused."""
    table = _open(storage)
    if table is None:
        return None
    if not _holds_models(table):
        raise ConflictError(
            f"{storage.uri} is an ordinary table, not a model table", hint="give the model a name of its own"
        )
    stated = re.search(_DESCRIPTION + r"(\d+)", table.metadata().description or "")
    if stated and int(stated[1]) > FORMAT_VERSION:
        raise newer_format(int(stated[1]), storage.uri)
    return table


def _holds_models(table: DeltaTable) -> bool:
    fields = {f.name: getattr(f.type, "type", None) for f in table.schema().fields}
    wanted = {**COLUMNS, "value": "binary"}
    return wanted.items() <= fields.items() and table.metadata().partition_columns == ["version"]


@dataclass(frozen=True)
class _Stored:
    """A data file that a snapshot names."""

    name: str
    size: int
    version: int
    rows: int


def _active(table: DeltaTable) -> dict[str, _Stored]:
    import pyarrow as pa

    rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return {
        r["path"]: _Stored(r["path"], r["size_bytes"], int(r["partition.version"]), r.get("num_records") or 0)
        for r in rows
    }


def _manifests(table: DeltaTable) -> list[tuple[int, str]]:
    return [(file.version, name) for name, file in _active(table).items() if name.startswith("manifest-")]


def _read_manifest(storage: Storage, name: str, version: int) -> StoredManifest:
    where = f"version {version} of {storage.uri}"
    with StoreReader(storage) as reader:
        return parse_manifest(bytes(reader.row(name, 0, _LARGEST_MANIFEST, f"the manifest of {where}")), where)


class StoreReader:
    """Reads single rows of data files; keeps the last file open, since chunks are stored in the order they are read."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._name = ""
        self._file: Any = None

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close(force=True)
        self._file = None

    def row(self, name: str, row_group: int, limit: int, what: str, digest: str | None = None) -> memoryview:
        """The value of row group `row_group`, which must have the hash `digest` (default: the one in its own row)."""
        import pyarrow as pa
        from blake3 import blake3

        try:
            file = self._open(name)
            group = file.metadata.row_group(row_group)
            if group.num_rows != 1 or group.total_byte_size > limit + 4096:
                raise ValueError(f"row group {row_group} is not one chunk")
            row = file.read_row_group(row_group, columns=["hash", "value"], use_threads=False)
            value = row.column("value")[0].as_buffer()
            digest = digest or row.column("hash")[0].as_py()
        except FileNotFoundError:
            raise ModelError(
                f"{what} is gone: data file {name} of {self._storage.uri} does not exist (vacuumed?)",
                hint="load a newer version",
            ) from None
        except (pa.ArrowException, OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise self._damaged(what, name, str(error)) from None
        if value is None or blake3(value).hexdigest() != digest:
            raise self._damaged(what, name, f"row group {row_group} does not have the hash {digest}")
        return memoryview(value)

    def _damaged(self, what: str, name: str, reason: str) -> ModelError:
        return ModelError(
            f"{what} is damaged: data file {name} of {self._storage.uri}: {reason}",
            hint="nothing of it is served; load another version, or save the model again under a new name",
        )

    def _open(self, name: str) -> Any:
        import pyarrow.parquet as pq

        if name != self._name:
            self.__exit__()
            self._file = pq.ParquetFile(self._storage.open(name), pre_buffer=False)
            self._name = name
        return self._file


# ----------------------------------------------------------------------------------------------------- Parquet, writing


class _Known:
    """Chunks that the table's present snapshot already stores, by hash."""

    def __init__(self, storage: Storage, table: DeltaTable | None) -> None:
        self.stores: dict[str, _Stored] = _active(table) if table is not None else {}
        self.chunks: dict[str, tuple[str, int]] = {}
        for version, name in sorted(_manifests(table)) if table is not None else ():
            for chunk, store in _chunks(storage, name, version):
                if store in self.stores:
                    self.chunks[chunk.hash] = (store, chunk.row_group)


def _chunks(storage: Storage, name: str, version: int) -> Iterator[tuple[Chunk, str]]:
    try:
        manifest = _read_manifest(storage, name, version)
    except ModelError:
        return  # an older version that cannot be read must not stop a new one from being saved
    for file in manifest.files:
        for chunk in file.chunks:
            yield chunk, manifest.stores[chunk.store]


class _Writer:
    """Files of a model -> rows in new data files, and the manifest that joins them. No commit names them yet."""

    def __init__(self, storage: Storage, known: _Known) -> None:
        self.id = uuid.uuid4().hex
        self.written: list[_Stored] = []  # complete data files of this save
        self.reused: dict[str, _Stored] = {}  # data files of earlier versions that this one refers to
        self._storage = storage
        self._known = known
        self._stores: dict[str, int] = {}  # name -> its number in the manifest
        self._index: list[dict[str, Any]] = []  # rows without bytes
        self._sink: _Sink | None = None
        self._opened: list[str] = []

    def add(self, file: Found) -> StoredFile:
        from blake3 import blake3

        whole, chunks, offset = blake3(), [], 0
        for part, data in enumerate(read_blocks(file, CHUNK_BYTES) if file.size else [b""]):
            digest = blake3(data).hexdigest()
            if file.size > CHUNK_BYTES:
                whole.update(data)
            row = {"path": file.path, "part": part, "offset": offset, "size": len(data), "hash": digest}
            store, row_group = self._place(row, data)
            number = self._stores.setdefault(store, len(self._stores))
            chunks.append(Chunk(hash=digest, size=len(data), store=number, row_group=row_group))
            offset += len(data)
        content = whole.hexdigest() if file.size > CHUNK_BYTES else chunks[0].hash
        return StoredFile(path=file.path, size=file.size, hash=content, chunks=tuple(chunks))

    def finish(self, files: tuple[StoredFile, ...], meta: ModelMeta) -> StoredManifest:
        """Closes the data files and writes the manifest beside them."""
        from blake3 import blake3

        self._close()
        manifest = StoredManifest(
            root_hash=hash_of_files(files),
            created_at=datetime.now(UTC),
            meta=meta,
            stores=tuple(self._stores),
            files=files,
        )
        document = manifest.to_json()
        row = {"path": "", "part": -1, "offset": 0, "size": len(document), "hash": blake3(document).hexdigest()}
        sink = self._sink = self._new_sink(f"manifest-{self.id}.parquet")
        with doing(f"writing the manifest to {self._storage.uri}"):
            sink.write([row], [document])
            if self._index:
                sink.write(self._index, [None] * len(self._index))
        self._close()
        with doing(f"flushing {self._storage.uri}"):
            self._storage.sync()
        return manifest

    def discard(self) -> None:
        """Removes what was written. Only before a commit was tried: afterwards it may be somebody's model."""
        if self._sink is not None:
            self._sink.abandon()
            self._sink = None
        for name in self._opened:
            self._storage.remove(name)

    def _place(self, row: dict[str, Any], data: bytes) -> tuple[str, int]:
        """Where these bytes are: in a row that exists, or in a new one."""
        known = self._known.chunks.get(row["hash"])
        if known is not None:
            self._index.append(row)
            if known[0] in self._known.stores:
                self.reused[known[0]] = self._known.stores[known[0]]
            return known
        with doing(f"writing {row['path']!r} to {self._storage.uri}"):
            if self._sink is None:
                self._sink = self._new_sink(f"chunks-{self.id}-{len(self.written):05}.parquet")
            place = self._sink.name, self._sink.write([row], [data])
        self._known.chunks[row["hash"]] = place
        if self._sink.bytes >= _STORE_BYTES or self._sink.rows >= _STORE_ROWS:
            self._close()
        return place

    def _new_sink(self, name: str) -> _Sink:
        self._opened.append(name)
        with doing(f"writing to {self._storage.uri}"):
            return _Sink(self._storage, name)

    def _close(self) -> None:
        if self._sink is not None:
            with doing(f"writing to {self._storage.uri}"):
                self._sink.close()
                self._storage.sync(self._sink.name)
                size = self._storage.size(self._sink.name)
            self.written.append(_Stored(self._sink.name, size, -1, self._sink.rows))
            self._sink = None


class _Sink:
    """One Parquet file being written: each call of `write` is one row group, its bytes stored as they are."""

    def __init__(self, storage: Storage, name: str) -> None:
        import pyarrow.parquet as pq

        self.name, self.rows, self.bytes, self._groups = name, 0, 0, 0
        self._stream = storage.create(name)
        self._writer = pq.ParquetWriter(
            self._stream, _file_schema(), compression="none", use_dictionary=False, write_statistics=False
        )

    def write(self, rows: list[dict[str, Any]], values: list[bytes] | list[None]) -> int:
        import pyarrow as pa

        schema = _file_schema()
        columns = [pa.array([row[n] for row in rows], schema.field(n).type) for n in schema.names[:-1]]
        columns.append(_one_value(values[0]) if len(values) == 1 and values[0] else pa.array(values, pa.binary()))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows))
        self.rows += len(rows)
        self.bytes += sum(len(v) for v in values if v)
        self._groups += 1
        return self._groups - 1

    def close(self) -> None:
        self._writer.close()
        self._stream.close()

    def abandon(self) -> None:
        for part in (self._writer, self._stream):
            with contextlib.suppress(Exception):  # the file is removed next, and its first error is on its way up
                part.close()


def _one_value(data: bytes) -> pa.Array:
    """A binary array of one element around `data`, without copying it."""
    import pyarrow as pa

    offsets = pa.py_buffer(len(data).to_bytes(4, "little").rjust(8, b"\0"))
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)])


def _file_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("part", pa.int32()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("hash", pa.string()),
            ("value", pa.binary()),
        ]
    )


# ---------------------------------------------------------------------------------------------------- Delta, committing


def _commit(storage: Storage, mode: SaveMode, writer: _Writer, manifest: StoredManifest) -> int | None:
    """Makes the written files the next version and returns its number; None when the mode yields to somebody else's.

    deltalake's own retry is off: it would keep a number that was right before somebody else's commit.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    started, existed, failure = time.monotonic(), False, None
    for attempt in itertools.count():
        table = _existing(storage)
        landed = table.transaction_version(writer.id) if table is not None else None
        if landed is not None:  # the answer to an earlier attempt was lost, the commit was not
            return int(landed)
        if table is not None and mode in ("ignore", "errorifexists"):
            writer.discard()  # somebody made the table while we wrote; ours was never committed
            return None
        if failure is not None:
            others_came_first = isinstance(failure, CommitFailedError) or (table is not None and not existed)
            if not others_came_first or time.monotonic() - started > _PATIENCE_SECONDS:
                writer.discard()
                raise failed(f"committing to {storage.uri}", failure) from failure
            time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(attempt, 7))))
            table = _existing(storage)
        existed = table is not None
        try:
            return _try_commit(storage, table, mode, writer, manifest)
        except (DeltaError, OSError) as error:
            failure = error
    raise AssertionError("unreachable")


def _try_commit(
    storage: Storage, table: DeltaTable | None, mode: SaveMode, writer: _Writer, manifest: StoredManifest
) -> int:
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import create_table_with_add_actions

    version = 0 if table is None else int(table.version()) + 1
    active = {} if table is None else _active(table)
    added = [_add(file, version) for file in writer.written]
    # A chunk we refer to may have been hidden by somebody's overwrite since: its file is named again.
    added += [_add(file, file.version) for name, file in writer.reused.items() if name not in active]
    hidden = [f for n, f in active.items() if mode == "overwrite" and n not in writer.reused]
    properties = CommitProperties(
        custom_metadata={"byzer_ft.rootHash": manifest.root_hash, "byzer_ft.kind": manifest.meta.kind},
        max_commit_retries=0,
        app_transactions=[Transaction(writer.id, version)],
    )
    if table is None:
        create_table_with_add_actions(
            storage.uri,
            _table_schema(),
            added,
            mode="error",
            partition_by=["version"],
            description=f"{_DESCRIPTION}{FORMAT_VERSION}",
            configuration=_CONFIGURATION,
            commit_properties=properties,
        )
    else:
        table.create_write_transaction(
            [*added, *map(_remove, hidden)], "append", table.schema(), ["version"], commit_properties=properties
        )
    return version


def _add(file: _Stored, version: int) -> Any:
    from deltalake.transaction import AddAction

    stats = json.dumps({"numRecords": file.rows})
    return AddAction(file.name, file.size, {"version": str(version)}, _now_ms(), True, stats)


def _remove(file: _Stored) -> Any:
    from deltalake.transaction import RemoveAction

    return RemoveAction(file.name, True, _now_ms(), file.size, {"version": str(file.version)})


def _now_ms() -> int:
    return int(time.time() * 1000)


def _table_schema() -> Any:
    import pyarrow as pa
    from deltalake import Schema

    return Schema.from_arrow(pa.schema([pa.field("version", pa.int64()), *_file_schema()]))


def _already_there(storage: Storage, mode: SaveMode) -> ModelVersion:
    if mode == "errorifexists":
        raise ConflictError(
            f"model table {storage.uri} exists", hint="save append adds a version, save overwrite hides the older ones"
        )
    return read_version(storage.uri)


def _refuse_inside(storage: Storage, directory: Path) -> None:
    if storage.local is not None and storage.local.resolve().is_relative_to(directory.resolve()):
        raise OptionError(
            f"the table {storage.uri} lies inside the directory {str(directory)!r} that is to be saved",
            hint="save the model's own directory",
        )
