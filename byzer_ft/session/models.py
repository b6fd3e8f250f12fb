"""Names of model tables -> handles on models that can be trained on, deployed or saved.

A handle is a name with a place: a directory, or a version in the lake; an adapter's handle also knows its base. The
bytes are never rows. What `load` makes belongs to the session; what a job makes (`outputTable`) belongs to the owner,
is pending until the job ends, and is waited for here. Knows nothing of how models are trained or served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import (
    ConflictError,
    JobError,
    ModelError,
    NotFoundError,
    NotSupportedError,
    OptionError,
    did_you_mean,
    listing,
)
from byzer_ft.intents import BaseModelRef, LoadOptions, LoadTable, ModelRef, SaveOptions, SaveTable
from byzer_ft.paths import ASSETS, BUILTIN
from byzer_ft.session.rooms import Rooms

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.catalog import ModelRow
    from byzer_ft.modeldir import ModelDir


@dataclass(frozen=True)
class ModelHandle:
    """A model table. `base` is None for a full model, else the model that this adapter belongs to."""

    name: str
    family: str
    directory: str | None = None
    uri: str | None = None
    version: int | None = None
    root_hash: str | None = None
    base: BaseModelRef | None = None

    @property
    def kind(self) -> str:
        return "full" if self.base is None else "adapter"


class ModelTables:
    """The model tables that one session sees. `wait_for_job(uid)` returns when that job has ended, showing progress."""

    def __init__(self, rooms: Rooms, wait_for_job: Callable[[str], None]) -> None:
        self._rooms = rooms
        self._wait_for_job = wait_for_job
        self._loaded: dict[str, ModelHandle] = {}

    # ------------------------------------------------------------------------------------------------------- names

    def names(self) -> list[str]:
        owned = [row.name for row in self._rooms.catalog.models(self._rooms.settings.owner)]
        return sorted({*self._loaded, *owned})

    def knows(self, name: str) -> bool:
        return name in self._loaded or self._row(name) is not None

    def forget(self, name: str) -> None:
        """A table of that name was made by another statement: the session's handle gives way."""
        self._loaded.pop(name, None)

    def handle(self, name: str) -> ModelHandle:
        """The model table `name`, waited for while its job runs. JobError with the job's reason when that failed."""
        if name in self._loaded:
            return self._loaded[name]
        row = self._row(name)
        if row is not None and row.state == "pending" and row.job_uid:
            self._rooms.notice(f"model table {name} is made by a job that is still going on: waiting for it")
            self._wait_for_job(row.job_uid)
            row = self._row(name)
        if row is None:
            raise NotFoundError(
                f"there is no model table {name!r}",
                hint=did_you_mean(name, self.names()) or f"model tables: {listing(self.names())}",
            )
        if row.state != "ready":
            raise self._why_not(row)
        return _from_row(row)

    def describe(self, name: str) -> pa.Table:
        """What SELECT shows of a model table: its manifest, or the state of the job that is making it."""
        import pyarrow as pa

        row = None if name in self._loaded else self._row(name)
        if row is not None and row.state != "ready":
            job = self._rooms.catalog.job_by_uid(row.job_uid) if row.job_uid else None
            state = {
                "model": name,
                "state": row.state,
                "job": job.name if job else None,
                "job_state": job and job.state,
            }
            return pa.Table.from_pylist([{**state, "reason": row.reason or (job.reason if job else None)}])
        handle = self.handle(name)
        base = handle.base
        return pa.Table.from_pylist(
            [
                {
                    "model": name,
                    "kind": handle.kind,
                    "family": handle.family,
                    "place": handle.uri or handle.directory,
                    "version": handle.version,
                    "root_hash": handle.root_hash,
                    "base": base.directory if base else None,
                    "base_hash": base.root_hash if base else None,
                }
            ]
        )

    # -------------------------------------------------------------------------------------------------- load and save

    def load_directory(self, intent: LoadTable) -> ModelHandle:
        """``load model.`dir` as t``"""
        _refuse_options(intent.options, "load model", allowed=())
        opened = self.open(intent.path)
        handle = self._of_directory(intent.table, opened)
        self._loaded[intent.table] = handle
        return handle

    def load_lake(self, intent: LoadTable, uri: str) -> ModelHandle:
        """``load delta.`db.model` as t`` where the table holds a model"""
        from byzer_ft.lake import read_version

        _refuse_options(intent.options, "load of a model table", allowed=("mode", "version_as_of"))
        found = read_version(uri, intent.options.version_as_of)
        handle = ModelHandle(
            intent.table,
            found.meta.family or "auto",
            uri=uri,
            version=found.version,
            root_hash=found.root_hash,
            base=found.meta.base,
        )
        self._loaded[intent.table] = handle
        return handle

    def save(self, intent: SaveTable) -> str:
        """``save overwrite helper as delta.`ai_model.helper` ``; returns a line that says what was written."""
        from byzer_ft.lake import ModelMeta, delta_path, save_model

        if intent.format != "delta":
            raise NotSupportedError(
                f"saving a model as {intent.format} is not supported yet",
                hint=f"save {intent.mode} {intent.table} as delta.`ai_model.{intent.table}`;",
            )
        _refuse_options(intent.options, "save of a model", allowed=("comment",))
        if intent.partition_by:
            raise OptionError("save of a model: partitionBy does not apply to a model", hint="leave it out")
        handle = self.handle(intent.table)
        settings = self._rooms.settings
        uri = delta_path(settings, intent.path)
        source = self.directory(handle)
        meta = ModelMeta(
            kind="full" if handle.base is None else "adapter",
            family=handle.family,
            base=handle.base,
            comment=intent.options.comment,
            lineage=self._lineage(intent.table),
        )
        saved = save_model(source, uri, intent.mode, meta, guard=self._rooms.guard_of(source))
        row = self._row(intent.table)
        if row is not None and intent.table not in self._loaded:
            self._rooms.catalog.put_model(
                settings.owner,
                row.name,
                state="ready",
                directory=row.directory,
                uri=uri,
                version=saved.version,
                root_hash=saved.root_hash,
                family=row.family,
                base=row.base,
                job_uid=row.job_uid,
            )
        size = saved.size / 1e6
        return f"saved {meta.kind} {intent.table} ({size:,.1f} MB) as delta.`{intent.path}`, version {saved.version}"

    # --------------------------------------------------------------------------------------------------------- places

    def open(
        self,
        path: str,
        *,
        family: str = "auto",
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        need_tokenizer: bool = False,
        ours: bool = False,
    ) -> ModelDir:
        """A checked model directory. `ours`: the path comes from a handle, not from the statement's text."""
        from byzer_ft.modeldir import open_model_dir

        opened = open_model_dir(
            path,
            guard=self._rooms.guard_of(path) if ours else self._rooms.guard,
            family=family,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            need_tokenizer=need_tokenizer,
            settings=self._rooms.settings,
        )
        for text in opened.notices:
            self._rooms.notice(text)
        return opened

    def resolve(self, ref: ModelRef, **how: Any) -> ModelHandle:
        """The model that a statement names, by directory or by table. `how`: what the statement says for `open`."""
        if ref.directory is not None:
            return self._of_directory(ref.directory, self.open(ref.directory, **how))
        assert ref.table is not None, "the sql room gives one of the two"
        return self.handle(ref.table)

    def directory(self, handle: ModelHandle) -> Path:
        """A local directory with the model's files: its own, or a verified copy of the lake's version."""
        if handle.directory is not None:
            path = Path(handle.directory)
            if path.is_dir():
                return path
        if handle.uri is not None:
            from byzer_ft.lake import materialize

            return materialize(handle.uri, handle.version, self._rooms.settings.cache_root)
        raise ModelError(
            f"the directory of model table {handle.name!r} is gone: {handle.directory}",
            hint="load it again from the lake or from a directory",
        )

    def base_of(self, handle: ModelHandle, **trust: Any) -> BaseModelRef:
        """The full model below a handle, on this node, with its root hash; an adapter's base must be unchanged."""
        from byzer_ft.lake import root_hash

        cache = self._rooms.settings.cache_root
        if handle.base is None:
            directory = self.directory(handle)
            return BaseModelRef(
                directory=_portable(directory),
                root_hash=handle.root_hash or root_hash(directory, cache, guard=self._rooms.guard_of(directory)),
                uri=handle.uri,
            )
        base = handle.base
        if base.uri is not None:
            from byzer_ft.lake import find_version, materialize, read_version

            stored = find_version(base.uri, base.root_hash) if base.root_hash else read_version(base.uri)
            if stored is not None:
                return base.model_copy(update={"directory": str(materialize(base.uri, stored.version, cache))})
        opened = self.open(base.directory, ours=True, **trust)
        found = root_hash(opened.directory, cache, guard=self._rooms.guard_of(opened.directory))
        if base.root_hash not in (None, found):
            raise ModelError(
                f"the base of adapter {handle.name!r} has changed: it was trained on {base.root_hash}, "
                f"{base.directory} now holds {found}",
                hint="restore that model, or train the adapter again on the new one",
            )
        return base.model_copy(update={"directory": _portable(opened.directory), "root_hash": found})

    # -------------------------------------------------------------------------------------------------------- plumbing

    def _row(self, name: str) -> ModelRow | None:
        return self._rooms.catalog.model(self._rooms.settings.owner, name)

    def _of_directory(self, name: str, opened: ModelDir) -> ModelHandle:
        base = None
        if opened.base is not None:
            known = opened.marker.get("base") or {}
            base = BaseModelRef(
                directory=_portable(opened.base.directory), root_hash=known.get("root_hash"), uri=known.get("uri")
            )
        return ModelHandle(name, opened.family, directory=str(opened.directory), base=base)

    def _why_not(self, row: ModelRow) -> Exception:
        job = self._rooms.catalog.job_by_uid(row.job_uid) if row.job_uid else None
        if row.state == "pending":
            return ConflictError(f"model table {row.name!r} is still being made", hint="!show jobs; shows the job")
        return JobError(
            f"model table {row.name!r} was not made: job {job.name if job else '?'} {job.state if job else 'failed'}: "
            f"{row.reason or (job.reason if job else 'no reason was recorded')}",
            hint=job.hint if job else None,
            tail=job.tail if job else None,
        )

    def _lineage(self, name: str) -> dict[str, object]:
        row = self._row(name)
        if row is None or row.job_uid is None:
            return {}
        job = self._rooms.catalog.job_by_uid(row.job_uid)
        return {"job": job.name, "sql": job.sql, "summary": job.summary, "created_at": job.created_at}


def _refuse_options(options: LoadOptions | SaveOptions, what: str, *, allowed: tuple[str, ...]) -> None:
    """OptionError for what was given and would do nothing to a model."""
    for name in sorted(options.model_fields_set - set(allowed)):
        raise OptionError(
            f"{what}: option {name!r} does not apply to a model",
            hint=f"it takes {', '.join(allowed)}" if allowed else "it takes no options",
        )


def _from_row(row: ModelRow) -> ModelHandle:
    return ModelHandle(
        row.name,
        row.family or "auto",
        directory=row.directory,
        uri=row.uri,
        version=row.version,
        root_hash=row.root_hash,
        base=BaseModelRef(**row.base) if row.base else None,
    )


def _portable(directory: Path) -> str:
    """The directory's path; the built-in model by its name, since an installation may move."""
    below = directory.resolve()
    return f"{BUILTIN}{below.name}" if below.parent == ASSETS.resolve() else str(directory)
