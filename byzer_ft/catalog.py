"""What exists and who owns it: jobs, model tables and functions, as rows of a database.

SQLite in the home by default, PostgreSQL by URL; the same SQLAlchemy Core statements serve both. Every key is
(owner, name). The catalog is not the truth of a running job (its actor and its directory are): it is what is left
to ask when they are gone. Knows nothing of SQL scripts, Ray or Delta.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from byzer_ft.errors import ConflictError, EngineError, NotFoundError, did_you_mean, listing

FORMAT_VERSION = 1

JobState = Literal["queued", "running", "succeeded", "failed", "stopped", "lost"]
ModelState = Literal["pending", "ready", "failed"]
ACTIVE: tuple[JobState, ...] = ("queued", "running")

_tables = sa.MetaData()

_meta = sa.Table("meta", _tables, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String))

_jobs = sa.Table(
    "jobs",
    _tables,
    sa.Column("uid", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("directory", sa.String, nullable=False),
    sa.Column("output_table", sa.String),
    sa.Column("sql", sa.Text, nullable=False, default=""),
    sa.Column("workers", sa.Integer),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("reason", sa.Text),
    sa.Column("hint", sa.Text),
    sa.Column("tail", sa.Text),
    sa.Column("progress", sa.JSON),
    sa.Column("summary", sa.JSON),
)

_models = sa.Table(
    "models",
    _tables,
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("directory", sa.String),
    sa.Column("uri", sa.String),
    sa.Column("version", sa.Integer),
    sa.Column("root_hash", sa.String),
    sa.Column("family", sa.String),
    sa.Column("base", sa.JSON),
    sa.Column("job_uid", sa.String),
    sa.Column("reason", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
)

_functions = sa.Table(
    "functions",
    _tables,
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("application", sa.String, nullable=False),
    sa.Column("deployment", sa.JSON, nullable=False),
    sa.Column("function", sa.JSON, nullable=False),
    sa.Column("model", sa.String),
    sa.Column("created_at", sa.Float, nullable=False),
)

# Ordered and only ever appended to; entry i brings a catalog of version i to version i + 1.
_MIGRATIONS = [_tables.create_all]


@dataclass(frozen=True)
class JobRow:
    """One run of a fine-tune. Times are seconds since 1970 (UTC); `progress` is its last progress event."""

    uid: str
    owner: str
    name: str
    state: JobState
    directory: str
    output_table: str | None
    sql: str
    workers: int | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    reason: str | None
    hint: str | None
    tail: str | None
    progress: dict[str, Any] | None
    summary: dict[str, Any] | None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True)
class ModelRow:
    """A model table: a handle on a directory or a lake version; pending until the job that makes it ends.

    `base` is None for a full model, else {directory, root_hash, uri} of the model that the adapter belongs to.
    """

    owner: str
    name: str
    state: ModelState
    directory: str | None
    uri: str | None
    version: int | None
    root_hash: str | None
    family: str | None
    base: dict[str, Any] | None
    job_uid: str | None
    reason: str | None
    created_at: float


@dataclass(frozen=True)
class FunctionRow:
    """A SQL function that asks a model. `deployment` and `function` are serving's specifications as JSON."""

    owner: str
    name: str
    application: str
    deployment: dict[str, Any]
    function: dict[str, Any]
    model: str | None
    created_at: float


class Catalog:
    """Opens the database of `url`, creating or migrating it. Safe to open from several processes of one machine."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _open(url)
        _migrate(self._engine, url)

    def close(self) -> None:
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------------------- jobs

    def add_job(
        self,
        *,
        uid: str,
        owner: str,
        name: str,
        directory: str,
        output_table: str | None = None,
        sql: str = "",
        workers: int | None = None,
    ) -> JobRow:
        """A new queued job. ConflictError when the owner has a queued or running job of that name."""
        with self._begin() as db:
            taken = db.execute(
                sa.select(_jobs.c.uid).where(
                    _jobs.c.owner == owner, _jobs.c.name == name, _jobs.c.state.in_(ACTIVE), _jobs.c.uid != uid
                )
            ).first()
            if taken:
                raise ConflictError(
                    f"a job named {name!r} is already queued or running",
                    hint=f"choose another name, wait for it, or stop it: !byzerllm model remove {name};",
                )
            db.execute(
                _jobs.insert().values(
                    uid=uid,
                    owner=owner,
                    name=name,
                    state="queued",
                    directory=directory,
                    output_table=output_table,
                    sql=sql,
                    workers=workers,
                    created_at=time.time(),
                )
            )
        return self.job_by_uid(uid)

    def update_job(self, uid: str, **values: Any) -> None:
        """Sets columns of a job: state, reason, hint, tail, progress, summary, workers, directory.

        Moving to `running` stamps started_at once; moving to an ended state stamps ended_at.
        """
        state = values.get("state")
        now = time.time()
        with self._begin() as db:
            if state == "running":
                values["started_at"] = sa.func.coalesce(_jobs.c.started_at, now)
            elif state is not None and state not in ACTIVE:
                values.setdefault("ended_at", now)
            db.execute(_jobs.update().where(_jobs.c.uid == uid).values(**values))

    def job(self, owner: str, name: str) -> JobRow:
        """The newest job of that name, or NotFoundError that lists the owner's jobs."""
        for row in self.jobs(owner):
            if row.name == name or row.uid == name:
                return row
        names = [row.name for row in self.jobs(owner)]
        raise NotFoundError(f"there is no job {name!r}", hint=did_you_mean(name, names) or f"jobs: {listing(names)}")

    def job_by_uid(self, uid: str) -> JobRow:
        with self._begin() as db:
            row = db.execute(sa.select(_jobs).where(_jobs.c.uid == uid)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no job with uid {uid!r}")
        return JobRow(**row)

    def jobs(self, owner: str | None = None) -> list[JobRow]:
        """Newest first."""
        query = sa.select(_jobs).order_by(_jobs.c.created_at.desc())
        if owner is not None:
            query = query.where(_jobs.c.owner == owner)
        with self._begin() as db:
            return [JobRow(**row) for row in db.execute(query).mappings()]

    # ----------------------------------------------------------------------------------------------------- models

    def put_model(self, owner: str, name: str, *, state: ModelState, **values: Any) -> None:
        """Creates or replaces the model table `name`; columns as in ModelRow."""
        row = {"state": state, "created_at": time.time(), **values}
        self._put(_models, {"owner": owner, "name": name}, row)

    def finish_model(self, job_uid: str, *, state: ModelState, **values: Any) -> None:
        """Moves the model that this job makes out of `pending`; a name that a newer job took over is left alone."""
        with self._begin() as db:
            db.execute(_models.update().where(_models.c.job_uid == job_uid).values(state=state, **values))

    def model(self, owner: str, name: str) -> ModelRow | None:
        with self._begin() as db:
            row = (
                db.execute(sa.select(_models).where(_models.c.owner == owner, _models.c.name == name))
                .mappings()
                .first()
            )
        return ModelRow(**row) if row else None

    def models(self, owner: str) -> list[ModelRow]:
        with self._begin() as db:
            rows = db.execute(sa.select(_models).where(_models.c.owner == owner).order_by(_models.c.name)).mappings()
            return [ModelRow(**row) for row in rows]

    def drop_model(self, owner: str, name: str) -> bool:
        return self._drop(_models, owner, name)

    # -------------------------------------------------------------------------------------------------- functions

    def put_function(self, owner: str, name: str, **values: Any) -> None:
        """Creates or replaces the function `name` (lower case); columns as in FunctionRow."""
        self._put(_functions, {"owner": owner, "name": name.lower()}, {"created_at": time.time(), **values})

    def function(self, owner: str, name: str) -> FunctionRow | None:
        with self._begin() as db:
            row = (
                db.execute(sa.select(_functions).where(_functions.c.owner == owner, _functions.c.name == name.lower()))
                .mappings()
                .first()
            )
        return FunctionRow(**row) if row else None

    def functions(self, owner: str | None = None) -> list[FunctionRow]:
        query = sa.select(_functions).order_by(_functions.c.name)
        if owner is not None:
            query = query.where(_functions.c.owner == owner)
        with self._begin() as db:
            return [FunctionRow(**row) for row in db.execute(query).mappings()]

    def drop_function(self, owner: str, name: str) -> bool:
        return self._drop(_functions, owner, name.lower())

    # --------------------------------------------------------------------------------------------------- plumbing

    def _put(self, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        where = [table.c[k] == v for k, v in key.items()]
        with self._begin() as db:
            db.execute(table.delete().where(*where))
            db.execute(table.insert().values(**key, **values))

    def _drop(self, table: sa.Table, owner: str, name: str) -> bool:
        with self._begin() as db:
            done = db.execute(table.delete().where(table.c.owner == owner, table.c.name == name))
            return bool(done.rowcount)

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except DBAPIError as error:
            raise EngineError(
                f"the catalog {_shown(self.url)} failed: {error.orig}",
                hint="is its disk full, or was its file moved?",
            ) from None


def _open(url: str) -> sa.Engine:
    try:
        parsed = sa.engine.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
        if parsed.database:
            from pathlib import Path

            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": 30, "check_same_thread": False})
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, OSError) as error:
        raise EngineError(
            f"the catalog {_shown(url)} cannot be opened: {error}",
            hint="BYZER_FT_CATALOG is a database URL such as sqlite:///…/catalog.sqlite or postgresql+psycopg://…",
        ) from None

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin (deferred) transactions of its own
        for pragma in ("journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # Immediate: a deferred transaction that turns into a writer fails instead of waiting.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _migrate(engine: sa.Engine, url: str) -> None:
    """Brings the schema up to FORMAT_VERSION; refuses a catalog that a newer version wrote."""
    try:
        with engine.begin() as db:
            _meta.create(db, checkfirst=True)
            found = db.execute(sa.select(_meta.c.value).where(_meta.c.key == "format_version")).scalar()
            version = int(found or 0)
            if version > FORMAT_VERSION:
                raise EngineError(
                    f"the catalog {_shown(url)} has format version {version}, newer than {FORMAT_VERSION}",
                    hint="upgrade byzer_ft, or use another BYZER_FT_HOME",
                )
            for step in _MIGRATIONS[version:]:
                step(db)
            if version < FORMAT_VERSION:
                db.execute(_meta.delete().where(_meta.c.key == "format_version"))
                db.execute(_meta.insert().values(key="format_version", value=str(FORMAT_VERSION)))
    except DBAPIError as error:
        raise EngineError(
            f"the catalog {_shown(url)} cannot be used: {error.orig}",
            hint="is it a byzer_ft catalog, and may this user write to it?",
        ) from None


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.engine.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "URL"
