"""Load, Query, Save -> views of one session on a Spark Connect engine. The door of this room.

A load is read by us into Parquet and becomes a view over it. A select is vetted, then becomes a lazy view; one that
calls a model or would give other rows each time is computed once and kept. Knows nothing of jobs, serving or lakes
of models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.engine import deltas, nesting, references
from byzer_ft.engine.built_ins import BUILT_INS
from byzer_ft.engine.files import expand
from byzer_ft.engine.models import Models
from byzer_ft.engine.readers import read_to_parquet
from byzer_ft.engine.references import FILE_FORMATS, Reference, Select
from byzer_ft.errors import (
    ByzerError,
    EngineError,
    NotFoundError,
    NotSupportedError,
    OptionError,
    ResourceError,
    Span,
    SqlError,
    did_you_mean,
    listing,
)
from byzer_ft.intents import LoadOptions, LoadTable, Query, SaveTable
from byzer_ft.paths import PathGuard

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.engine.spark import Spark
    from byzer_ft.settings import Settings

STAGE_SHARD_ROWS = 100_000
STAGE_SHARD_BYTES = 128 << 20
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class View:
    """A table of the session: how the user spells it, its columns, and the files that must outlive it."""

    name: str
    columns: tuple[tuple[str, str], ...]
    folders: frozenset[Path] = frozenset()  # of our scratch
    inputs: frozenset[str] = frozenset()  # of the user, read in place
    hidden: bool = False


class SparkEngine:
    """Tables in, tables out. One per session; calls come one at a time, except `interrupt`."""

    def __init__(self, settings: Settings, guard: PathGuard, scratch: Path, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._guard = guard
        self._scratch = Path(scratch).absolute()
        self._notice = notice
        self._views: dict[str, View] = {}  # by lower-case name
        self._spark: Spark | None = None
        self._reading: list[Any] = []  # reader connections that interrupt() must reach
        self._lock = threading.RLock()
        self._count = 0

    # ------------------------------------------------------------------------------------------------- statements

    def load(self, intent: LoadTable) -> None:
        """Reads the files that are meant, with a schema from all rows, and makes them a view."""
        with self._lock, _at(intent.span):
            fmt = intent.format.lower()
            if fmt not in FILE_FORMATS:
                raise NotSupportedError(
                    f"load {intent.format} is not supported", hint=f"formats: {', '.join(FILE_FORMATS)}, model"
                )
            self._check_load_options(fmt, intent.options)
            self._open(fmt, intent.path, intent.options, intent.table)

    def query(self, intent: Query, models: Models | None = None) -> None:
        """Makes a view of a select. Computed now only where reading it twice would differ, or ask a model twice."""
        from byzer_ft.engine.llm_map import calls_models, rewrite_built_ins

        with self._lock, _at(intent.span), _not_too_deep(intent.span):
            select = self._vetted(intent)
            functions = models.functions() if models is not None else frozenset()
            if select.tree is None:
                self._refuse_deep(select, functions, intent.span)
                self._refuse_unread_calls(select, functions)
                self._keep_or_view(intent, select.text, select, self.views(), functions)
                return
            select, used = self._resolved(select, intent.span)
            select = rewrite_built_ins(select, intent.span)
            try:
                if models is not None and calls_models(select, functions):
                    self._ask_models(intent, select, models, used)
                else:
                    self._keep_or_view(intent, select.text, select, used, functions)
            finally:
                self._forget_files()

    def save(self, intent: SaveTable) -> str:
        """Writes a table to delta, parquet, json or csv; what was there stays whole until the new is. A message."""
        from byzer_ft.engine.writers import save

        with self._lock, _at(intent.span):
            with _at_word(intent.span, intent.table):
                view = self._view(intent.table)
            return save(self, intent, view)

    # ----------------------------------------------------------------------------------------------------- tables

    def arrow(self, table: str, limit: int | None = None) -> pa.Table:
        """The rows of a table, at most `limit`."""
        import pyarrow as pa

        with self._lock:
            schema, batches = self.stream(table, limit)
            return pa.Table.from_batches(list(batches), schema=schema)

    def register(self, table: str, data: pa.Table, hidden: bool = False) -> None:
        """Makes an Arrow table a view. A hidden one can be read by name but is not listed."""
        with self._lock:
            from byzer_ft.engine.spark import plain_schema, plain_table

            schema = plain_schema(data.schema)
            folder = self.new_folder()
            self.write_parquet(schema, iter(plain_table(data, schema).to_batches()), folder)
            self.adopt_folder(table, folder, hidden=hidden)

    def register_for(self, intent: Query, table: str, data: pa.Table) -> None:
        """A table that a query needs and that is not the session's own: readable, not listed."""
        with _at(intent.span):
            self.register(table, data, hidden=True)

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """Every table's columns with their Spark types, in the order of creation."""
        return {v.name: list(v.columns) for v in self._views.values() if not v.hidden}

    def columns(self, table: str) -> list[tuple[str, str]]:
        return list(self._view(table).columns)

    def drop(self, table: str) -> None:
        """Forgets a table; tables made from it stay."""
        with self._lock:
            view = self._view(table)
            self.spark.drop_view(view.name)
            del self._views[view.name.lower()]
            self._sweep(view.folders)

    def stage(self, table: str, directory: Path) -> int:
        """Writes the rows as Parquet shards and `manifest.json` last, so that its existence means complete."""
        with self._lock:
            schema, batches = self.stream(table)
            return _stage(schema, batches, Path(directory))

    def interrupt(self) -> None:
        """Stops what runs; the call that ran it raises Cancelled. May be called from another thread."""
        for connection in list(self._reading):
            connection.interrupt()
        if self._spark is not None:
            self._spark.interrupt()

    def close(self) -> None:
        """Ends the session, stops the embedded server and deletes the scratch files."""
        with self._lock:
            if self._spark is not None:
                self._spark.stop()
                self._spark = None
            self._views.clear()
            shutil.rmtree(self._scratch, ignore_errors=True)

    # ------------------------------------------------------------------------- for the other files of this room

    @property
    def spark(self) -> Spark:
        if self._spark is None:
            from byzer_ft.engine.spark import Spark

            self._scratch.mkdir(parents=True, exist_ok=True)
            self._spark = Spark(self._settings.engine)
        return self._spark

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def guard(self) -> PathGuard:
        return self._guard

    @property
    def notice(self) -> Callable[[str], None]:
        return self._notice

    def view(self, table: str) -> View:
        return self._view(table)

    def views(self) -> list[View]:
        return list(self._views.values())

    def watch(self, connection: Any) -> None:
        """From now on `interrupt` stops this reader connection too."""
        self._reading.append(connection)

    def unwatch(self, connection: Any) -> None:
        self._reading.remove(connection)

    def forget_inputs(self, target: Path) -> None:
        """The user's files at or below `target` have been replaced; views keep copies of their own."""

        def gone(path: str) -> bool:
            return Path(path) == target or target in Path(path).parents

        for key, view in self._views.items():
            if any(gone(i) for i in view.inputs):
                kept = frozenset(i for i in view.inputs if not gone(i))
                self._views[key] = replace(view, inputs=kept)

    def stream(self, table: str, limit: int | None = None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The rows of a table as they arrive."""
        view = self._view(table)
        self._check_inputs(view)
        clause = "" if limit is None else f" limit {max(0, limit)}"
        return self.spark.batches(self.spark.frame(f"select * from {quoted(view.name)}{clause}"))

    def new_folder(self) -> Path:
        """An empty folder of the scratch, for one view's files."""
        self._count += 1
        folder = self._scratch / f"v{self._count:05d}"
        folder.mkdir(parents=True)
        return folder

    def write_parquet(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], folder: Path) -> int:
        """Streams rows into one Parquet file; returns their number."""
        import pyarrow.parquet as pq

        rows = 0
        with full_disk(), pq.ParquetWriter(folder / "part-00000.parquet", schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        return rows

    def adopt_folder(
        self, table: str, folder: Path, *, hidden: bool = False, inputs: frozenset[str] = frozenset()
    ) -> None:
        """Makes the Parquet files of a scratch folder the table `table`."""
        files = sorted(str(p) for p in folder.glob("*.parquet"))
        frame = self.spark.parquet(files)
        columns = self.spark.columns(frame)
        _check_columns(columns, files)
        self.spark.create_view(frame, table)
        self._put(View(table, tuple(columns), frozenset([folder]), inputs, hidden))

    # ---------------------------------------------------------------------------------------------------- loading

    def _check_load_options(self, fmt: str, options: LoadOptions) -> None:
        """An option that its format would ignore is an error, so that nobody believes in it."""
        csv_only = {"header", "sep", "quote", "escape"}
        wanted = {
            "json": {"encoding", "mode", "infer_schema", "multi_line"},
            "csv": csv_only | {"encoding", "mode", "infer_schema", "multi_line"},
            "text": {"encoding", "wholetext", "mode"},
            "parquet": {"mode", "infer_schema"},
            "delta": {"mode", "version_as_of", "timestamp_as_of", "infer_schema"},
        }[fmt]
        for name in sorted(options.model_fields_set - wanted):
            raise OptionError(
                f"option `{name}` has no effect on {fmt}", hint=f"{fmt} takes: {', '.join(sorted(wanted))}"
            )
        if options.mode == "path" and fmt != "delta" and "mode" in options.model_fields_set:
            raise OptionError('mode="path" is for delta only', hint=f"a {fmt} path is always a path")
        if options.version_as_of is not None and options.timestamp_as_of is not None:
            raise OptionError("versionAsOf and timestampAsOf exclude each other", hint="give one of them")

    def _open(self, fmt: str, path: str, options: LoadOptions, table: str, hidden: bool = False) -> None:
        if fmt == "delta":
            self._open_delta(path, options, table, hidden)
            return
        inputs = expand(path, self._guard, what=f"{fmt} path")
        folder = self.new_folder()
        try:
            read_to_parquet(fmt, inputs, options, folder, self._notice, self._reading)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        in_place = frozenset(os.path.realpath(p) for p in folder.iterdir() if p.is_symlink())
        self.adopt_folder(table, folder, hidden=hidden, inputs=in_place)

    def _open_delta(self, path: str, options: LoadOptions, table: str, hidden: bool) -> None:
        uri = deltas.address(self._settings, self._guard, path, options.mode == "path", None)
        opened, version = deltas.open_version(uri, options, self._settings, self._guard, path)
        folder = self.new_folder()
        readable = uri
        if "://" not in uri and re.search(r"[^A-Za-z0-9_./-]", uri):  # the engine escapes these twice
            readable = str(folder / "table")
            Path(readable).symlink_to(uri)
        # The version is pinned: an overwrite of the table must not change a view that reads it.
        frame = self.spark.delta(readable, version)
        columns = self.spark.columns(frame)
        wanted = [f.name for f in opened.schema().fields]
        if [c for c, _ in columns] != wanted:
            raise EngineError(f"the SQL engine cannot read the delta table at {uri}")
        self.spark.create_view(frame, table)
        self._put(View(table, tuple(columns), frozenset([folder]), frozenset(), hidden))

    # ---------------------------------------------------------------------------------------------------- queries

    def _vetted(self, intent: Query) -> Select:
        select = references.read(intent.body, intent.span)
        if select.deep and self._guard.roots is not None:
            raise nesting.too_deep(intent.span)
        if select.tree is None and self._guard.roots is not None:
            raise SqlError(
                f"the query cannot be read: {select.problem}",
                hint="with BYZER_FT_ALLOWED_ROOTS set, only queries whose references can be checked are run",
            )
        if select.tree is None and not re.match(r"(select|with|from|values)\b|\(", select.text.lstrip(), re.IGNORECASE):
            raise SqlError(f"the query cannot be read: {select.problem}", hint="a query begins with select")
        return select

    def _refuse_deep(self, select: Select, functions: frozenset[str], span: Span | None) -> None:
        """The engine follows deeper than we can; it may, where nothing in the query needs us."""
        ours = {*functions, *BUILT_INS}
        if select.deep and (references.may_name_files(select.text) or select.words & {f.lower() for f in ours}):
            raise nesting.too_deep(span)

    def _refuse_unread_calls(self, select: Select, functions: frozenset[str]) -> None:
        called = sorted(w for w in functions if re.search(rf"\b{re.escape(w)}\s*\(", select.text, re.IGNORECASE))
        if called:
            raise SqlError(f"a query that calls the model {called[0]} cannot be read: {select.problem}")

    def _resolved(self, select: Select, span: Span | None) -> tuple[Select, list[View]]:
        """The query with paths replaced by views over them, and the views that it reads."""
        names: dict[Reference, View] = {}
        for reference in select.tables:
            with _at_word(span, reference.name):
                names[reference] = self._referenced(reference)
        if all(r.format is None and r.name == v.name for r, v in names.items()):
            return select, list(names.values())
        text = references.replaced(select.text, select.tables, lambda r: quoted(names[r].name))
        return references.read(text), list(names.values())

    def _referenced(self, reference: Reference) -> View:
        if reference.format is None:
            return self._view(reference.name)
        name = f"__{reference.format}_{self._count + 1}"
        options = LoadOptions(mode="path") if reference.format == "delta" and "/" in reference.name else LoadOptions()
        self._open(reference.format, reference.name, options, name, hidden=True)
        return self._view(name)

    def _ask_models(self, intent: Query, select: Select, models: Models, used: list[View]) -> None:
        from byzer_ft.engine.llm_map import run_with_models

        for view in used:
            self._check_inputs(view)
        try:
            folder = run_with_models(self, select, models, intent.span)
        except ByzerError as error:
            raise self._explained(error, select, used, intent, models.functions()) from None
        called = sorted(select.words & models.functions())
        self._notice(f"{intent.table}: computed once and kept, since it calls {', '.join(called)}")
        self.adopt_folder(intent.table, folder)

    def _forget_files(self) -> None:
        """The nameless tables that stood for paths in a query; what was made from them keeps their files."""
        for view in [v for v in self.views() if v.hidden and v.name.startswith("__")]:
            self.drop(view.name)

    def _keep_or_view(
        self, intent: Query, text: str, select: Select, used: list[View], functions: frozenset[str]
    ) -> None:
        for view in used:
            self._check_inputs(view)
        try:
            frame = self.spark.frame(text)
        except ByzerError as error:
            raise self._explained(error, select, used, intent, functions) from None
        words = references.non_deterministic(select)
        if words:
            self._notice(f"{intent.table}: computed once and kept, since {', '.join(words)} would differ each time")
            self.adopt_folder(intent.table, self.materialise(frame))
            return
        columns = self.spark.columns(frame)
        _check_names(columns)
        self.spark.create_view(frame, intent.table)
        folders = frozenset(f for v in used for f in v.folders)
        inputs = frozenset(i for v in used for i in v.inputs)
        self._put(View(intent.table, tuple(columns), folders, inputs))

    def materialise(self, frame: Any) -> Path:
        """Computes a result into a folder of the scratch."""
        schema, batches = self.spark.batches(frame)
        _check_names([(f.name, "") for f in schema])
        folder = self.new_folder()
        self.write_parquet(schema, batches, folder)
        return folder

    # --------------------------------------------------------------------------------------------------- plumbing

    def _view(self, table: str) -> View:
        found = self._views.get(table.lower())
        if found is None:
            names = [v.name for v in self._views.values() if not v.hidden]
            near = did_you_mean(table, names)
            raise NotFoundError(
                f"table `{table}` does not exist. Tables: {listing(names)}",
                hint=near or "make it with load … as name, or select … as name",
            )
        return found

    def _put(self, view: View) -> None:
        old = self._views.pop(view.name.lower(), None)
        self._views[view.name.lower()] = view
        if old is not None:
            if old.name != view.name:
                self.spark.drop_view(old.name)
            self._sweep(old.folders)

    def _sweep(self, folders: frozenset[Path]) -> None:
        """Deletes scratch folders that no table needs any more; a lazy view needs those of all it reads."""
        needed = {f for v in self._views.values() for f in v.folders}
        for folder in folders - needed:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_inputs(self, view: View) -> None:
        """The engine would read a file that has gone as no rows."""
        for path in view.inputs:
            if not Path(path).exists():
                raise NotFoundError(f"table `{view.name}` reads {path}, which has gone", hint="load it again")

    def _explained(
        self, error: ByzerError, select: Select, used: list[View], intent: Query, functions: frozenset[str]
    ) -> ByzerError:
        """The engine's error, with what exists and where it stands in the user's text."""
        from byzer_ft.engine.spark import UnknownColumn

        if isinstance(error, UnknownColumn):
            return self._unknown_column(error, select, used, intent)
        function = re.match(r"function `(.+)` does not exist", error.message)
        if function:
            error.at(locate(intent.span, function[1]))
            models = f"model functions: {listing(functions)}"
            error.hint = did_you_mean(function[1], [*functions, *BUILT_INS]) or models
        offset = getattr(error, "offset", None)
        if offset and intent.span is not None:
            error.at(_sub_span(intent.span, select.text, *offset))
        return error

    def _unknown_column(self, error: Any, select: Select, used: list[View], intent: Query) -> ByzerError:
        path: list[str] = error.path
        known = {c for v in used for c, _ in v.columns}
        if select.tree is None and path[-1].lower() in {c.lower() for c in known}:
            return SqlError(f"the query cannot be read: {select.problem}")
        shown = "; ".join(f"{_shown(v.name)}: {listing((c for c, _ in v.columns), limit=30)}" for v in _once(used))
        word = path[-1]
        if len(path) > 1 and any(c.lower() == word.lower() for c in known):
            word = path[0]  # the column is right, its qualifier is not
        near = did_you_mean(word, known)
        message = f"column `{'.'.join(path)}` does not exist. " + (
            f"Columns of {shown}" if shown else "No table is read"
        )
        return NotFoundError(message, hint=near, span=locate(intent.span, word) or intent.span)


# ---------------------------------------------------------------------------------------------------------- helpers


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def locate(span: Span | None, word: str) -> Span | None:
    """Where a name stands in the user's text, the first time."""
    if span is None:
        return None
    found = re.search(rf"(?<![\w`]){re.escape(word)}(?!\w)|`{re.escape(word)}`", span.text, re.IGNORECASE)
    return span.source.span(span.start + found.start(), span.start + found.end()) if found else None


def _sub_span(span: Span, body: str, start: int, end: int) -> Span | None:
    """The range of a query's text inside the statement; None where variables changed the text."""
    at = span.text.find(body[:end]) if end <= len(body) else -1
    return span.source.span(span.start + at + start, span.start + at + end) if at >= 0 else None


def _shown(name: str) -> str:
    return "the file" if name.startswith("__") else f"`{name}`"


def _once(views: list[View]) -> list[View]:
    return list({v.name: v for v in views}.values())


@contextmanager
def _at(span: Span | None) -> Iterator[None]:
    """Errors of this statement point at it, unless they already point somewhere more exact."""
    try:
        yield
    except ByzerError as error:
        raise error.at(span) from None


@contextmanager
def _not_too_deep(span: Span | None) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise nesting.too_deep(span) from None


@contextmanager
def _at_word(span: Span | None, word: str) -> Iterator[None]:
    """Errors about a thing that the statement names point at its name."""
    try:
        yield
    except ByzerError as error:
        raise error.at(locate(span, word)) from None


@contextmanager
def full_disk() -> Iterator[None]:
    """OSError while writing as an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"writing failed: {error.strerror or error}",
            hint="free some disk space, or set BYZER_FT_HOME to a larger disk" if error.errno == 28 else None,
        ) from None


def _check_columns(columns: list[tuple[str, str]], files: list[str]) -> None:
    """The engine reads a path that it takes for a glob as no rows and no columns, without an error."""
    import pyarrow.parquet as pq

    wanted = pq.read_schema(files[0]).names
    if [c for c, _ in columns] != wanted:
        raise EngineError(f"the SQL engine cannot read {files[0]}", hint="set BYZER_FT_HOME to a path without *?[]{}%")


def _check_names(columns: list[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for name, _ in columns:
        if name.lower() in seen:
            raise SqlError(
                f"two columns of the result are named `{name}`", hint="give one of them another name with as"
            )
        seen.add(name.lower())


def _stage(schema: pa.Schema, batches: Iterator[pa.RecordBatch], directory: Path) -> int:
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    writer: Any = None
    rows = size = 0

    def finish() -> None:
        nonlocal writer, rows, size
        if writer is not None:
            writer.close()
            path = directory / shards[-1]["file"]
            shards[-1] |= {"rows": rows, "bytes": path.stat().st_size}
        writer, rows, size = None, 0, 0

    with full_disk():
        try:
            for batch in batches:
                if writer is None:
                    shards.append({"file": f"part-{len(shards):05d}.parquet"})
                    writer = pq.ParquetWriter(directory / shards[-1]["file"], schema, compression="zstd")
                writer.write_batch(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows >= STAGE_SHARD_ROWS or size >= STAGE_SHARD_BYTES:
                    finish()
        finally:
            finish()
        total = sum(s["rows"] for s in shards)
        columns = [{"name": f.name, "type": str(f.type)} for f in schema]
        write_marker(
            directory / "manifest.json",
            {"format_version": MANIFEST_VERSION, "rows": total, "columns": columns, "shards": shards},
        )
    return int(total)


def write_marker(path: Path, content: dict[str, Any]) -> None:
    """A JSON file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        json.dump(content, out, ensure_ascii=False, indent=1)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
