"""A script -> results: parse, check everything that can be checked, then carry out one statement at a time.

The session knows the rooms by their doors (`rooms.py`) and each statement by one method below (`_CARRY_OUT`). It
keeps what lives between statements: variables, the setup of `!byzerllm`, loaded model tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ByzerError, NotFoundError, NotSupportedError, ScriptErrors, Source, SqlError, listing
from byzer_ft.intents import (
    AnyIntent,
    Deploy,
    Describe,
    Finetune,
    Kill,
    LoadTable,
    ModelAdmin,
    Query,
    SaveTable,
    Setup,
    SetVariable,
    Show,
    Unsupported,
)
from byzer_ft.session.functions import Functions
from byzer_ft.session.models import ModelTables
from byzer_ft.session.results import Event, Result
from byzer_ft.session.rooms import Rooms
from byzer_ft.session.training import Trainer
from byzer_ft.settings import Settings, load_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.sql import Statement

__all__ = ["Event", "Result", "Session"]


class Session:
    """One person's connection: `sql(text)` for the last result, `run(text)` for all of them, one by one.

    `notice(text)` receives every choice made for the user and every warning, `show(event)` the events of a job that is
    waited for. Both default to one line on standard error. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        notice: Callable[[str], None] | None = None,
        show: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        from byzer_ft.sql import SetupState

        self.settings = settings or load_settings()
        self._rooms = Rooms(self.settings, notice or _to_stderr)
        self._trainer = Trainer(self._rooms, show or _show_to_stderr(self._rooms))
        self._models = ModelTables(self._rooms, self._trainer.wait)
        self._functions = Functions(self._rooms, self._models)
        self._variables: dict[str, str] = {}
        self._setup = SetupState()

    def sql(self, text: str, name: str = "<sql>") -> Result:
        """Runs a script; the last statement's result. Raises a ByzerError that points at the text."""
        results = list(self.run(text, name))
        if not results:
            raise SqlError("the script has no statement", hint="for example: select 1 as one as t;")
        return results[-1]

    def run(self, text: str, name: str = "<sql>") -> Iterator[Result]:
        """Results one by one, each after its statement was carried out. Nothing starts when anything is wrong."""
        from byzer_ft.sql import check, notices, parse, plan

        statements = parse(Source(text, name))
        errors = check(statements, self._scope())
        if errors:
            raise errors[0] if len(errors) == 1 else ScriptErrors(errors)
        for statement in statements:
            for text in notices(statement):
                self._rooms.notice(text)
            try:
                yield self._carry_out(plan(statement, self._scope()), statement)
            except ByzerError as error:
                raise error.at(statement.span) from error.__cause__

    def close(self) -> None:
        """Waits for the jobs that would die with a private cluster, then closes every room."""
        try:
            self._trainer.finish()
        finally:
            self._rooms.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------- statements

    def _carry_out(self, intent: AnyIntent, statement: Statement) -> Result:
        return _CARRY_OUT[type(intent)](self, intent, statement)

    def _load(self, intent: LoadTable, _: Statement) -> Result:
        from byzer_ft.lake import delta_path, is_model_table

        if intent.format == "model":
            self._models.load_directory(intent)
            return self._table("load", intent.table)
        if intent.format == "delta":
            by_path = intent.options.mode == "path"
            guard = self._rooms.guard
            # A name means a table of the owner's lake, wherever that is; only a path is the user's to choose.
            named = intent.path if by_path else delta_path(self.settings, intent.path)
            uri = guard.resolve(named, what="delta table") if by_path else named
            if is_model_table(uri):
                self._models.load_lake(intent, uri)
                return self._table("load", intent.table)
        self._rooms.engine.load(intent)
        self._models.forget(intent.table)
        return self._table("load", intent.table)

    def _query(self, intent: Query, _: Statement) -> Result:
        self._show_models_as_tables(intent)
        self._rooms.engine.query(intent, self._functions)
        self._models.forget(intent.table)
        return self._table("select", intent.table)

    def _save(self, intent: SaveTable, _: Statement) -> Result:
        if self._models.knows(intent.table) and intent.table not in self._rooms.engine.tables():
            return Result("save", message=self._models.save(intent))
        return Result("save", message=self._rooms.engine.save(intent))

    def _set(self, intent: SetVariable, statement: Statement) -> Result:
        value = intent.value
        if intent.options.type == "shell":
            raise NotSupportedError(
                "set type=shell runs commands on the server and is refused", hint="use a notebook cell"
            )
        if intent.options.type == "conf":
            self._rooms.notice(f"set {intent.name}: engine configuration is accepted and has no effect here")
            return Result("set", message=f"{intent.name} is ignored")
        if intent.options.type == "sql":
            value = self._first_value(intent)
        if intent.options.type != "defaultParam" or intent.name not in self._variables:
            self._variables[intent.name] = value
        return Result("set", message=f"{intent.name} is set")

    def _setup_key(self, intent: Setup, _: Statement) -> Result:
        self._setup = self._setup.apply(intent)
        return Result("setup", message="setup", read=self._setup_table)

    def _finetune(self, intent: Finetune, statement: Statement) -> Result:
        return self._trainer.run(intent, self._models, statement.span.text)

    def _deploy(self, intent: Deploy, _: Statement) -> Result:
        return self._functions.deploy(intent)

    def _model_admin(self, intent: ModelAdmin, _: Statement) -> Result:
        if intent.action == "exists":
            found = self._functions.exists(intent.name) or self._models.knows(intent.name)
            return Result("model", message=str(found).lower(), read=lambda: _bool_table(found))
        if self._functions.remove(intent.name):
            return Result("model", message=f"function {intent.name} is removed")
        return self._stop(intent.name, also=[row.name for row in self._functions.rows()])

    def _kill(self, intent: Kill, _: Statement) -> Result:
        return self._stop(intent.name)

    def _show(self, intent: Show, _: Statement) -> Result:
        if intent.what not in _SHOW:
            raise NotFoundError(f"!show {intent.what}: there is nothing of that name", hint=f"!show {listing(_SHOW)}")
        return Result("show", message=intent.what, read=lambda: _SHOW[intent.what](self, intent))

    def _describe(self, intent: Describe, _: Statement) -> Result:
        from byzer_ft.session.show import columns_table

        if self._is_model(intent.table):
            described = self._models.describe(intent.table)
            return Result("desc", table=intent.table, read=lambda: described)
        columns = self._rooms.engine.columns(intent.table)
        return Result("desc", table=intent.table, read=lambda: columns_table(columns))

    def _unsupported(self, intent: Unsupported, _: Statement) -> Result:
        from byzer_ft.sql import not_supported

        raise not_supported(intent)

    # -------------------------------------------------------------------------------------------------------- plumbing

    def _scope(self) -> Any:
        from byzer_ft.sql import Scope

        return Scope(variables=dict(self._variables), setup=self._setup, owner=self.settings.owner)

    def _table(self, kind: str, name: str) -> Result:
        def read() -> pa.Table:
            return self._models.describe(name) if self._is_model(name) else self._rooms.engine.arrow(name)

        return Result(kind, message=name, table=name, read=read)

    def _is_model(self, name: str) -> bool:
        if self._rooms.opened("engine") and name in self._rooms.engine.tables():
            return False
        return self._models.knows(name)

    def _show_models_as_tables(self, intent: Query) -> None:
        """A query that reads a model table sees its manifest, computed now: `select * from helper`."""
        from byzer_ft.engine import references

        for name in references(intent.body):
            if self._is_model(name):
                self._rooms.engine.register_for(intent, name, self._models.describe(name))

    def _first_value(self, intent: SetVariable) -> str:
        name = f"__set_{intent.name}"
        self._rooms.engine.query(Query(body=intent.value, table=name, span=intent.span), self._functions)
        try:
            found = self._rooms.engine.arrow(name, limit=1)
        finally:
            self._rooms.engine.drop(name)
        value = found.column(0)[0].as_py() if found.num_rows and found.num_columns else None
        return "" if value is None else str(value)

    def _stop(self, name: str, also: list[str] | None = None) -> Result:
        from byzer_ft.jobs import job_handle

        try:
            job = self._rooms.catalog.job(self.settings.owner, name)
        except NotFoundError as error:
            if also is None:
                raise
            raise NotFoundError(
                f"there is no function or job {name!r}", hint=f"functions: {listing(also)}; {error.hint}"
            ) from None
        if not job.active:
            return Result("kill", message=f"job {job.name} has already ended ({job.state})")
        job_handle(self._rooms.cluster, self._rooms.catalog, job.uid).stop()
        return Result("kill", message=f"job {job.name} is stopped")

    def _setup_table(self) -> pa.Table:
        from byzer_ft.session.show import table_of

        return table_of([{"k": k, "v": v} for k, v in self._setup.rows()], [("k", "text"), ("v", "text")])


def _show_tables(session: Session, _: Show) -> pa.Table:
    from byzer_ft.session.show import tables_table

    return tables_table(session._rooms.engine.tables(), session._models.names())


def _show_jobs(session: Session, _: Show) -> pa.Table:
    from byzer_ft.session.show import jobs_table

    owner = session.settings.owner
    if any(job.active for job in session._rooms.catalog.jobs(owner)):
        session._rooms.reconcile()
    return jobs_table(session._rooms.catalog.jobs(owner))


def _show_models(session: Session, _: Show) -> pa.Table:
    from byzer_ft.session.show import models_table

    return models_table(session._rooms.catalog.models(session.settings.owner))


def _show_functions(session: Session, _: Show) -> pa.Table:
    return session._functions.table()


_SHOW: dict[str, Callable[[Session, Show], pa.Table]] = {
    "tables": _show_tables,
    "jobs": _show_jobs,
    "models": _show_models,
    "functions": _show_functions,
}

_CARRY_OUT: dict[type, Callable[[Session, Any, Statement], Result]] = {
    LoadTable: Session._load,
    Query: Session._query,
    SaveTable: Session._save,
    SetVariable: Session._set,
    Setup: Session._setup_key,
    Finetune: Session._finetune,
    Deploy: Session._deploy,
    ModelAdmin: Session._model_admin,
    Kill: Session._kill,
    Show: Session._show,
    Describe: Session._describe,
    Unsupported: Session._unsupported,
}


def _bool_table(value: bool) -> pa.Table:
    import pyarrow as pa

    return pa.table({"value": pa.array([value])})


def _to_stderr(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)


def _show_to_stderr(rooms: Rooms) -> Callable[[Mapping[str, Any]], None]:
    from byzer_ft.render import event_text

    def show(event: Mapping[str, Any]) -> None:
        text = event_text(event)
        if text:
            rooms.notice(text)

    return show
