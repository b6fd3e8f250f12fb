"""A table -> delta, parquet, json or csv. What was there stays whole until the new is; nothing half-written is seen.

Directories are written beside their target and renamed; Delta commits. Knows nothing of queries or models.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from byzer_ft.engine import deltas
from byzer_ft.errors import (
    AccessError,
    Cancelled,
    ConflictError,
    EngineError,
    NotFoundError,
    NotSupportedError,
    OptionError,
    ResourceError,
    did_you_mean,
    listing,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.engine.engine import SparkEngine, View
    from byzer_ft.intents import SaveTable

FORMATS = ("delta", "parquet", "json", "csv")
# What a save of a table, ours or Spark's, leaves in a folder: nothing else may be deleted by overwriting it.
_PART = r"part-(\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})([-_.][\w.-]*)?"
_COMMIT_TRIES = 20
_MARKER = r"_(SUCCESS|committed_\w+|started_\w+)"
_WRITTEN = re.compile(rf"{_PART}|{_MARKER}|\.({_PART}|{_MARKER})\.crc")
_PARTITION = re.compile(r"[^=]+=.*", re.DOTALL)


def save(engine: SparkEngine, intent: SaveTable, view: View) -> str:
    """Carries out a save; returns what was done, for a person."""
    fmt = intent.format.lower()
    if fmt not in FORMATS:
        near = did_you_mean(fmt, FORMATS)
        raise NotSupportedError(
            f"save as {intent.format} is not supported", hint=near or f"formats: {', '.join(FORMATS)}"
        )
    partitions = _partition_columns(intent, view)
    _check_options(fmt, intent)
    if fmt == "delta":
        return _save_delta(engine, intent, view, partitions)
    return _save_directory(engine, intent, view, fmt, partitions)


def _partition_columns(intent: SaveTable, view: View) -> list[str]:
    columns = {name.lower(): name for name, _ in view.columns}
    found = []
    for wanted in intent.partition_by:
        if wanted.lower() not in columns:
            raise NotFoundError(
                f"partitionBy: table `{view.name}` has no column `{wanted}`. "
                f"Columns: {listing(columns.values(), limit=30)}",
                hint=did_you_mean(wanted, columns.values()),
            )
        found.append(columns[wanted.lower()])
    if found and len(set(found)) == len(view.columns):
        raise OptionError("partitionBy names every column: none would be left in the files")
    return found


def _check_options(fmt: str, intent: SaveTable) -> None:
    wanted = {"delta": {"file_num", "mode", "comment"}, "csv": {"file_num", "header", "sep"}}.get(fmt, {"file_num"})
    for name in sorted(intent.options.model_fields_set - wanted):
        raise OptionError(f"option `{name}` has no effect on {fmt}", hint=f"{fmt} takes: {', '.join(sorted(wanted))}")


# --------------------------------------------------------------------------------------------------------- delta


def _save_delta(engine: SparkEngine, intent: SaveTable, view: View, partitions: list[str]) -> str:
    """One commit; when another writer's came first, everything is looked at again and tried again."""
    from deltalake.exceptions import CommitFailedError

    for _ in range(_COMMIT_TRIES):
        try:
            return _try_delta(engine, intent, view, partitions)
        except CommitFailedError as error:
            failed = error
            time.sleep(random.uniform(0.05, 0.5))
    raise _storage_error(f"delta.`{intent.path}`", failed)


def _try_delta(engine: SparkEngine, intent: SaveTable, view: View, partitions: list[str]) -> str:
    from deltalake import DeltaTable, write_deltalake
    from deltalake.exceptions import CommitFailedError

    by_path = intent.options.mode == "path"
    uri = deltas.address(engine.settings, engine.guard, intent.path, by_path, intent.span, write=True)
    shown = f"delta.`{intent.path}`"
    local = "://" not in uri
    exists = DeltaTable.is_deltatable(uri)
    if not exists and local and Path(uri).exists() and (Path(uri).is_file() or any(Path(uri).iterdir())):
        raise ConflictError(f"{shown}: {uri} exists and is not a delta table", hint="choose another path, or move it")
    if exists and intent.mode != "ignore" and deltas.holds_models(uri):
        raise ConflictError(
            f"{shown} holds a model, not a table",
            hint="choose another name; a model is saved there as model.`…`",
            span=intent.span,
        )
    if exists and intent.mode == "errorifexists":
        raise ConflictError(
            f"{shown} exists", hint=f"save overwrite {view.name} as …, or append, or ignore", span=intent.span
        )
    if exists and intent.mode == "ignore":
        return f"{shown} exists and was left as it is"
    if intent.options.file_num is not None:
        engine.notice(f"{shown}: fileNum is a hint; delta chooses the number of files by their size")
    schema, batches = engine.stream(view.name)
    _check_delta_types(schema)
    rows = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for batch in batches:
            rows += batch.num_rows
            yield batch

    import pyarrow as pa

    if local:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    partition = partitions or (DeltaTable(uri).metadata().partition_columns if exists else [])
    try:
        write_deltalake(
            uri,
            pa.RecordBatchReader.from_batches(schema, counted()),
            mode="overwrite" if intent.mode == "overwrite" else "append",
            schema_mode="overwrite" if intent.mode == "overwrite" else None,
            partition_by=partition or None,
            description=intent.options.comment,
        )
    except CommitFailedError:
        raise  # another writer's table stands there now
    except (Exception, pyo3_panic()) as error:
        if local and not exists and not DeltaTable.is_deltatable(uri):
            shutil.rmtree(uri, ignore_errors=True)
        raise _storage_error(shown, error) from None
    version = DeltaTable(uri).version()
    return f"saved {rows} rows to {shown}, version {version}"


def pyo3_panic() -> type[BaseException]:
    """What a panic in a Rust library is raised as; it is no Exception and has no importable name."""
    kinds = {kind.__name__: kind for kind in BaseException.__subclasses__()}
    return kinds.get("PanicException", KeyError)


def _check_delta_types(schema: pa.Schema) -> None:
    import pyarrow as pa

    for field in schema:
        if pa.types.is_duration(field.type) or pa.types.is_time(field.type) or pa.types.is_interval(field.type):
            raise NotSupportedError(
                f"column `{field.name}` is {field.type}, which delta cannot hold",
                hint=f"cast({field.name} as string) in a select first",
            )


def _storage_error(shown: str, error: BaseException) -> Exception:
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if "No space left" in text or getattr(error, "errno", None) == 28:
        return ResourceError(
            f"{shown}: the disk is full; what was there before is intact", hint="free some disk space and save again"
        )
    if "the query was stopped" in text:
        return Cancelled("the save was stopped; what was there before is intact")
    if "chema" in first or "type" in first:
        return ConflictError(
            f"{shown}: the columns do not fit those of the table: {first}", hint="save overwrite replaces them"
        )
    return EngineError(f"{shown}: saving failed: {first}")


# --------------------------------------------------------------------------------------------------- directories


def _save_directory(engine: SparkEngine, intent: SaveTable, view: View, fmt: str, partitions: list[str]) -> str:
    target = Path(_target(engine, intent, fmt))
    shown = f"{fmt}.`{intent.path}`"
    occupied = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if occupied and intent.mode == "errorifexists":
        raise ConflictError(f"{shown} exists", hint=f"save overwrite {view.name} as …, or append, or ignore")
    if occupied and intent.mode == "ignore":
        return f"{shown} exists and was left as it is"
    if occupied:
        _check_replaceable(target, shown, engine, intent.mode)
    temporary = target.parent / f".{target.name[:100]}.saving-{uuid.uuid4().hex[:12]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        rows = _write(engine, intent, view, fmt, partitions, temporary)
        if intent.mode == "append" and occupied:
            _add(temporary, target)
        else:
            _swap(temporary, target, engine)
    except OSError as error:
        raise _storage_error(shown, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"saved {rows} rows to {shown}"


def _target(engine: SparkEngine, intent: SaveTable, fmt: str) -> str:
    if not intent.path.strip():
        raise NotFoundError("save: no path is given", hint=f"save … as {fmt}.`a/folder`")
    target = engine.guard.resolve(intent.path, what=f"{fmt} path", write=True)
    if "://" in target:
        raise NotSupportedError(f"saving {fmt} to an object store is not supported", hint="save it as delta")
    return target


def _check_replaceable(target: Path, shown: str, engine: SparkEngine, mode: str) -> None:
    """Overwriting deletes: only what the save of a table wrote may go, never a home or a root."""
    roots = engine.guard.roots or ()
    keep = {Path.home(), Path.cwd(), Path(engine.settings.home), *roots}
    if any(target == k or target in k.parents for k in (Path(os.path.realpath(p)) for p in keep)):
        raise AccessError(
            f"{shown} is or contains a folder that must not be replaced", hint="save to a folder of its own"
        )
    if not target.is_dir():
        raise ConflictError(f"{shown} is a file; a table is saved as a folder of files", hint="choose a folder")
    if (target / "_delta_log").exists():
        raise ConflictError(f"{shown} is a delta table", hint='save it as delta with where mode="path"')
    strange = list(_strange(target)) if mode == "overwrite" else []
    if strange:
        found = listing((str(p.relative_to(target)) for p in strange), limit=5)
        raise ConflictError(
            f"{shown} holds what no save of a table wrote, and overwriting would delete it: {found}",
            hint="choose another folder, or move these away",
        )


def _strange(folder: Path) -> Iterator[Path]:
    """What stands in a folder, partitions included, and is not known to come from the save of a table."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and _PARTITION.fullmatch(path.name):
            yield from _strange(path)
        elif path.is_dir() or not _WRITTEN.fullmatch(path.name):
            yield path


def _write(engine: SparkEngine, intent: SaveTable, view: View, fmt: str, partitions: list[str], folder: Path) -> int:
    """All rows through one Parquet file in the scratch into `folder`, in the wanted format and number of files."""
    from byzer_ft.engine.engine import full_disk

    schema, batches = engine.stream(view.name)
    if fmt == "csv":
        _check_flat(schema)
    staged = engine.new_folder()
    try:
        rows = engine.write_parquet(schema, batches, staged)
        source = staged / "part-00000.parquet"
        with full_disk():
            if fmt == "parquet" and not partitions and intent.options.file_num in (None, 1):
                shutil.copyfile(source, folder / _part(0, fmt))
            else:
                _copy(engine, intent, source, rows, schema, partitions, folder, fmt)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return rows


def _check_flat(schema: pa.Schema) -> None:
    import pyarrow as pa

    for field in schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            raise NotSupportedError(
                f"column `{field.name}` is {field.type}, which csv cannot hold",
                hint=f"select to_json({field.name}) as {field.name} … first, or save as json or parquet",
            )


def _copy(
    engine: SparkEngine,
    intent: SaveTable,
    source: Path,
    rows: int,
    schema: pa.Schema,
    partitions: list[str],
    folder: Path,
    fmt: str,
) -> None:
    import duckdb

    options = {
        "parquet": "format parquet, compression zstd",
        "json": "format json",
        "csv": f"format csv, header {str(intent.options.header).lower()}, delimiter {_literal(_separator(intent))}",
    }[fmt]
    fields = ", ".join(_field(f, fmt) for f in schema)
    select = f"select {fields} from read_parquet({_literal(str(source))}, file_row_number=true)"
    connection = duckdb.connect(config={"threads": 2, "autoinstall_known_extensions": "false"})
    engine.watch(connection)
    try:
        if partitions:
            keys = ", ".join(_name(p) for p in partitions)
            connection.execute(
                f"copy ({select}) to {_literal(str(folder))} ({options}, partition_by ({keys}), "
                f"filename_pattern {_literal('part-{uuid}')})"
            )
            return
        for i, (first, last) in enumerate(_ranges(rows, intent.options.file_num or 1)):
            part = f"{select} where file_row_number >= {first} and file_row_number < {last} order by file_row_number"
            connection.execute(f"copy ({part}) to {_literal(str(folder / _part(i, fmt)))} ({options})")
    except duckdb.InterruptException:
        raise Cancelled("the save was stopped; what was there before is intact") from None
    except duckdb.Error as error:
        raise _storage_error(f"{fmt}.`{intent.path}`", error) from None
    finally:
        engine.unwatch(connection)
        connection.close()


def _field(field: pa.Field, fmt: str) -> str:
    import pyarrow as pa

    name = _name(field.name)
    return f"to_base64({name}) as {name}" if fmt == "json" and pa.types.is_binary(field.type) else name


def _separator(intent: SaveTable) -> str:
    separator = {"\\t": "\t", "tab": "\t"}.get(intent.options.sep or ",", intent.options.sep or ",")
    if len(separator) != 1:
        raise OptionError(f"sep={separator!r} must be one character")
    return separator


def _ranges(rows: int, files: int) -> Iterator[tuple[int, int]]:
    """`files` even ranges of rows; at least one, so that the columns of an empty table are kept."""
    files = max(1, min(files, rows or 1))
    for i in range(files):
        yield rows * i // files, rows * (i + 1) // files


def _part(number: int, fmt: str) -> str:
    return f"part-{number:05d}-{uuid.uuid4().hex[:12]}.{fmt}"


def _add(temporary: Path, target: Path) -> None:
    """Moves new files into an existing folder; each appears whole."""
    for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
        place = target / file.relative_to(temporary)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)


def _swap(temporary: Path, target: Path, engine: SparkEngine) -> None:
    """Puts the new in the place of the old by renaming; views that read the old in place keep its files."""
    if not target.exists():
        temporary.rename(target)
        return
    old = target.parent / f".{target.name[:100]}.old-{uuid.uuid4().hex[:12]}"
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    _rescue(engine, target, old)
    shutil.rmtree(old, ignore_errors=True)


def _rescue(engine: SparkEngine, target: Path, old: Path) -> None:
    """Views read Parquet files of the user through links: those that are being replaced become their own copies."""
    folders = {f for view in engine.views() if view.inputs for f in view.folders}
    for link in (p for folder in folders for p in folder.iterdir() if p.is_symlink()):
        meant = Path(os.readlink(link))
        if target not in meant.parents:
            continue
        kept = old / meant.relative_to(target)
        copy = link.with_name(f".{link.name}.copy")
        try:
            os.link(kept, copy)
        except OSError:
            shutil.copyfile(kept, copy)
        copy.replace(link)
    engine.forget_inputs(target)


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
