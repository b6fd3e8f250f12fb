"""`run command as LLM` -> a job: the model checked, workers planned, rows staged, a named actor started, waited for.

Everything that can be refused is refused before a directory is made or Ray is started. Knows nothing of what
happens inside the actor.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from byzer_ft.errors import ByzerError, Cancelled, DataError, JobError, NotSupportedError
from byzer_ft.intents import Finetune, TrainingRequest
from byzer_ft.session.models import ModelTables
from byzer_ft.session.results import Result
from byzer_ft.session.rooms import Rooms

if TYPE_CHECKING:
    from byzer_ft.catalog import JobRow

Show = Callable[[Mapping[str, Any]], None]
SECOND_INTERRUPT_SECONDS = 5.0


class Trainer:
    """Starts jobs and waits for them; `show(event)` is called with each event of a job that is waited for."""

    def __init__(self, rooms: Rooms, show: Show) -> None:
        self._rooms = rooms
        self._show = show

    def run(self, intent: Finetune, models: ModelTables, text: str) -> Result:
        """The job's result; for `detached="false"` after it has ended, JobError when it failed."""
        prefix = self._prefix(intent)
        self._check_rows(intent)
        request, workers = self._plan(intent, models)
        job = self._start(intent, request, workers, prefix, text)
        if intent.detached:
            made = f"; its model table {intent.output_table} is ready when it ends" if intent.output_table else ""
            message = f"job {job.name} started{made}"
        else:
            self.wait(job.uid)
            message = f"job {job.name} succeeded: {self._final(job)}"
        return Result(
            "finetune",
            message=message,
            job=job.name,
            read=lambda: self._table(job.uid),
            events=lambda: self._events(job),
        )

    # ------------------------------------------------------------------------------------------------------- starting

    def _check_rows(self, intent: Finetune) -> None:
        from byzer_ft.chat import detect

        columns = self._rooms.engine.columns(intent.input_table)
        detect([name for name, _ in columns])
        if self._rooms.engine.arrow(intent.input_table, limit=1).num_rows == 0:
            raise DataError(
                f"table {intent.input_table!r} has no rows to train on", hint="look at the select that shapes it"
            )

    def _plan(self, intent: Finetune, models: ModelTables) -> tuple[TrainingRequest, Any]:
        from byzer_ft.jobs import default_name, plan_workers

        trust = {"trust_remote_code": intent.trust_remote_code, "allow_pickle": intent.allow_pickle}
        handle = models.resolve(intent.model, family=intent.family, need_tokenizer=True, **trust)
        if handle.base is not None:
            raise NotSupportedError(
                f"{handle.name!r} is an adapter; training starts from a full model",
                hint=f"name its base instead: {handle.base.directory}",
            )
        base = models.base_of(handle, **trust)
        models.open(base.directory, family=intent.family, need_tokenizer=True, ours=True, **trust)
        workers = plan_workers(self._rooms.cluster.resources(), intent.resources)
        for note in workers.notes:
            self._rooms.notice(note)
        name = intent.name or default_name(self._rooms.settings.owner)
        request = TrainingRequest(
            name=name,
            family=intent.family,
            base=base,
            training=intent.training,
            **trust,
        )
        return request, workers

    def _start(self, intent: Finetune, request: TrainingRequest, workers: Any, prefix: str, text: str) -> JobRow:
        from byzer_ft.jobs import JobSpec, start_job

        rooms, owner = self._rooms, self._rooms.settings.owner
        uid = uuid.uuid4().hex
        directory = Path(prefix) / f"{request.name}-{uid}"
        job = rooms.catalog.add_job(
            uid=uid,
            owner=owner,
            name=request.name,
            directory=str(directory),
            output_table=intent.output_table,
            sql=text,
            workers=workers.workers,
        )
        before = rooms.catalog.model(owner, intent.output_table) if intent.output_table else None
        if intent.output_table:
            rooms.catalog.put_model(
                owner,
                intent.output_table,
                state="pending",
                job_uid=uid,
                family=intent.family,
                base=request.base.model_dump(),
                directory=str(directory / "finetune_model" / "final"),
            )
        try:
            rows = rooms.engine.stage(intent.input_table, directory / "finetune_data")
            rooms.notice(f"job {request.name}: staged {rows:,} rows of {intent.input_table} in {directory}")
            start_job(
                rooms.cluster,
                rooms.catalog,
                JobSpec(
                    uid=uid,
                    owner=owner,
                    name=request.name,
                    directory=str(directory),
                    request=request,
                    workers=workers.workers,
                    use_gpu=workers.use_gpu,
                    resources_per_worker=workers.resources_per_worker,
                    custom=intent.resources.custom,
                    output_table=intent.output_table,
                    sql=text,
                    environment=rooms.settings.for_workers(),
                ),
            )
        except BaseException as error:
            reason = error.message if isinstance(error, ByzerError) else f"{type(error).__name__}: {error}"
            rooms.catalog.update_job(uid, state="failed", reason=reason, hint=getattr(error, "hint", None))
            rooms.catalog.finish_model(uid, state="failed", reason=reason)
            if before is not None:  # nothing was made that could replace it
                rooms.catalog.put_model(**dataclasses.asdict(before))
            if isinstance(error, Exception):  # on Ctrl-C the actor may have started
                shutil.rmtree(directory, ignore_errors=True)
            raise
        return job

    def _prefix(self, intent: Finetune) -> str:
        """Where the job's directory goes: below the user's own choice, or in the house, whatever the roots are."""
        if intent.local_path_prefix is None:
            return str(self._rooms.settings.jobs_root)
        prefix = self._rooms.guard.resolve(intent.local_path_prefix, what="localPathPrefix", write=True)
        if "://" in prefix:
            raise NotSupportedError(
                f"localPathPrefix {prefix!r} is in an object store, where a job cannot write yet",
                hint="name a local directory, or one that all nodes see",
            )
        return prefix

    # -------------------------------------------------------------------------------------------------------- waiting

    def wait(self, uid: str, *, leaving: bool = False) -> None:
        """Returns when the job succeeded, showing its events. JobError when it did not.

        The first Ctrl-C stops waiting and lets the job go on; a second within five seconds stops the job. When the
        session is `leaving` a private cluster, the job cannot go on: the first stops it.
        """
        from byzer_ft.jobs import job_handle

        row = self._rooms.catalog.job_by_uid(uid)
        if row.active:
            handle = job_handle(self._rooms.cluster, self._rooms.catalog, uid)
            try:
                handle.wait(self._show)
            except KeyboardInterrupt:
                if leaving:
                    self._stop(row, handle)
                self._interrupted(row, handle)
        row = self._rooms.catalog.job_by_uid(uid)
        if row.state != "succeeded":
            raise JobError(
                f"job {row.name} {row.state}: {row.reason or 'no reason was recorded'}", hint=row.hint, tail=row.tail
            )

    def _interrupted(self, row: JobRow, handle: Any) -> None:
        private = self._rooms.cluster.private
        self._rooms.notice(
            f"stopped waiting; job {row.name} goes on"
            + (" while this process lives (its Ray is private: leaving stops it)" if private else "")
            + f". Ctrl-C again within {SECOND_INTERRUPT_SECONDS:.0f} seconds stops the job."
        )
        try:
            time.sleep(SECOND_INTERRUPT_SECONDS)
        except KeyboardInterrupt:
            self._stop(row, handle)
        raise Cancelled(
            f"no longer waiting for job {row.name}",
            hint=f"!show jobs; shows it, !byzerllm model remove {row.name}; stops it",
        )

    def _stop(self, row: JobRow, handle: Any) -> NoReturn:
        self._rooms.notice(f"stopping job {row.name} …")
        handle.stop()
        raise Cancelled(f"job {row.name} was stopped") from None

    def finish(self) -> None:
        """At the end of a session on a private cluster: waits for all jobs that would die with it."""
        if not (self._rooms.opened("cluster") and self._rooms.cluster.private):
            return
        interrupted: Cancelled | None = None
        for row in self._rooms.catalog.jobs():
            if not row.active:
                continue
            self._rooms.notice(
                f"waiting for detached job {row.name}, since this Ray is private and ends with the process; "
                "Ctrl-C stops the job"
            )
            try:
                self.wait(row.uid, leaving=True)
                self._rooms.notice(f"job {row.name} succeeded: {self._final(row)}")
            except JobError as error:
                self._rooms.notice(error.render())
            except Cancelled as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    # -------------------------------------------------------------------------------------------------------- plumbing

    def _final(self, job: JobRow) -> str:
        return str(Path(job.directory) / "finetune_model" / "final")

    def _events(self, job: JobRow) -> Iterator[Mapping[str, Any]]:
        from byzer_ft.jobs import job_handle

        yield from job_handle(self._rooms.cluster, self._rooms.catalog, job.uid).events()

    def _table(self, uid: str) -> Any:
        from byzer_ft.session.show import jobs_table

        return jobs_table([self._rooms.catalog.job_by_uid(uid)])
