"""The job itself: a detached Ray actor that trains by Ray Train and writes down everything that happens.

Ray restarts a killed actor with an empty memory and calls nothing, so the constructor reads the job directory and
carries on from the last checkpoint, in a thread. This actor is the only writer of events.jsonl, of result.json and
of the job's catalog row. When all of that is written it ends itself, and every process of the job with it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ray

from byzer_ft.catalog import Catalog
from byzer_ft.errors import ByzerError
from byzer_ft.jobs.directory import JobDirectory
from byzer_ft.jobs.leftovers import release

MAX_LOST_WORKERS = 2  # a third time it is not chance
MAX_ATTEMPTS = 6  # of all kinds, restarts of this actor included
_PROGRESS_SECONDS = 0.5  # between two writes of the catalog row
_QUEUE_SECONDS = 2.0
# Ray Train's own bookkeeping that we do without, and a shorter look at the workers (its default is 2 s).
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

EndState = Literal["succeeded", "failed", "stopped"]


class JobActor:
    """Methods of group `reports` run one after the other, in the order in which rank 0 sent them."""

    def __init__(self, directory: str, catalog_url: str) -> None:
        os.environ.update(_RAY_TRAIN)
        self._directory = JobDirectory(directory)
        self._spec = self._directory.read_spec()
        self._catalog = Catalog(catalog_url)
        self._lock = threading.RLock()
        self._ended = False
        self._stop_reason: str | None = None
        self._running = False
        self._failure: dict[str, Any] | None = None
        self._finished_ranks: set[int] = set()
        self._controllers: list[Any] = []
        self._last: dict[str, dict[str, Any]] = {}  # the last event of each kind
        self._row_written = 0.0
        self._attempt = self._recall()
        threading.Thread(target=self._live, daemon=True, name="job").start()

    # ------------------------------------------------------------------------------------------------ asked by clients

    def ping(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "attempt": self._attempt, "running": self._running, "ended": self._ended}

    def stop(self, reason: str, grace_seconds: float) -> None:
        """Asks the workers to stop at the next step; after the grace period, or when none runs yet, ends the job."""
        with self._lock:
            if self._ended or self._stop_reason is not None:
                return
            self._stop_reason = reason
            wait = grace_seconds if self._running else 0.0
        timer = threading.Timer(wait, self._end, args=("stopped", reason), kwargs={"kill": True})
        timer.daemon = True
        timer.start()

    # ------------------------------------------------------------------------------------------------ asked by workers

    @ray.method(concurrency_group="reports")
    def controlled(self, attempt: int, controller: Any) -> None:
        """Ray Train's controller introduces itself before it reserves anything."""
        with self._lock:
            self._controllers.append(controller)
            self._record({"event": "controller", "attempt": attempt, "actor": controller._actor_id.hex()})

    @ray.method(concurrency_group="reports")
    def started(self, attempt: int, worker: Mapping[str, Any]) -> None:
        with self._lock:
            if attempt != self._attempt:
                return
            self._record({"event": "worker", **worker})
            if not self._running:
                self._running = True
                self._update(state="running", reason=None)

    def should_stop(self, attempt: int) -> bool:
        """Also True for workers of an earlier attempt, which must not write beside the present ones."""
        return self._stop_reason is not None or attempt != self._attempt or self._ended

    @ray.method(concurrency_group="reports")
    def report(self, attempt: int, event: dict[str, Any]) -> bool:
        """Writes down one event of rank 0. The answer is whether to stop."""
        with self._lock:
            if attempt == self._attempt and not self._ended:
                self._record(event)
                self._show(event)
        return self.should_stop(attempt)

    @ray.method(concurrency_group="reports")
    def failed(self, attempt: int, error: dict[str, Any]) -> None:
        with self._lock:
            if attempt != self._attempt:
                return
            self._record({"event": "worker_failed", **error})
            # The first failure is the cause; a lost connection is only the consequence of another one.
            if self._failure is None or (self._failure["peer_lost"] and not error["peer_lost"]):
                self._failure = error

    @ray.method(concurrency_group="reports")
    def finished(self, attempt: int, rank: int) -> None:
        with self._lock:
            if attempt == self._attempt:
                self._finished_ranks.add(rank)

    # -------------------------------------------------------------------------------------------------- the job's life

    def _live(self) -> None:
        """Train, write the end, end the process. Whatever goes wrong here is the job's reason, never silence."""
        try:
            if self._directory.read_result() is None:
                self._end(*self._train())
        except ByzerError as error:
            self._end("failed", error.message, hint=error.hint)
        except BaseException as error:
            tail = traceback.format_exc().rstrip().splitlines()[-30:]
            self._end("failed", f"{type(error).__name__}: {error}", tail="\n".join(tail), hint=_disk_hint(error))
        finally:
            self._leave()

    def _recall(self) -> int:
        """What an earlier life of this actor wrote down; the number of the attempt that begins now."""
        events, _ = self._directory.read_events()
        for event in events:
            self._last[str(event["event"])] = event
        return 1 + sum(1 for event in events if event["event"] == "attempt")

    def _train(self) -> tuple[Any, ...]:
        """Attempts until the workers finish, fail by their own fault, or were lost too often: (state, reason, …)."""
        lost = 0
        if self._attempt > 1:
            self._say(f"the job's actor was restarted (attempt {self._attempt})")
        while True:
            if self._attempt > MAX_ATTEMPTS:
                return "failed", f"gave up after {MAX_ATTEMPTS} attempts, each of which lost its processes"
            if self._attempt > 1:
                self._clean_up()
            problem = self._try_once()
            if self._stop_reason is not None and "done" not in self._last:
                return "stopped", self._stop_reason
            if problem is None:
                return self._succeeded()
            if self._failure is not None and not self._failure["peer_lost"]:
                return "failed", self._failure["message"], self._failure["hint"], self._failure["tail"]
            lost += 1
            if lost > MAX_LOST_WORKERS:
                return "failed", f"lost its workers {lost} times; the last time: {problem}", _LOST_HINT
            self._say(f"{problem}; starting again")
            self._next_attempt()

    def _next_attempt(self) -> None:
        with self._lock:
            self._attempt += 1
            self._running, self._failure, self._finished_ranks = False, None, set()

    def _clean_up(self) -> None:
        """Before another attempt: nobody of the last one writes any more, and what it had not finished is gone."""
        events, _ = self._directory.read_events()
        release(events)
        reported = {Path(str(event["path"])).name for event in events if event["event"] == "checkpoint"}
        for path in self._directory.model.glob("checkpoint-*"):
            if path.name not in reported:
                shutil.rmtree(path, ignore_errors=True)

    def _try_once(self) -> str | None:
        """One run of Ray Train from the last checkpoint on. None, or what went wrong in one line."""
        from ray.train.v2.api.exceptions import TrainingFailedError

        checkpoint = self._directory.last_checkpoint()
        resumed = str(checkpoint) if checkpoint else None
        self._record({"event": "attempt", "attempt": self._attempt, "resume_from": resumed, "actor_pid": os.getpid()})
        if checkpoint:
            self._say(f"going on from checkpoint {checkpoint.name}")
        queue = threading.Thread(target=self._wait_in_queue, args=(self._attempt,), daemon=True, name="queue")
        queue.start()
        try:
            self._trainer(resumed).fit()
        except TrainingFailedError as error:
            return _cause(error)
        if len(self._finished_ranks) < self._spec.workers:
            return "a worker ended without a word"
        return None

    def _trainer(self, resume_from: str | None) -> Any:
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

        from byzer_ft.jobs.worker import Introduction, Torchrun, Trainer, threads_for, train_loop

        bundle = self._spec.bundle
        me = ray.get_runtime_context().current_actor
        callbacks: list[Any] = [Introduction(me, self._attempt)]
        trainer: Any = Trainer  # its annotations are of Ray Train's older configuration classes
        return trainer(
            train_loop,
            train_loop_config={
                "spec": self._spec.model_dump(mode="json", exclude_unset=True),
                "job": me,
                "attempt": self._attempt,
                "resume_from": resume_from,
            },
            backend_config=Torchrun(threads=threads_for(bundle.get("CPU", 1)), gpu=self._spec.use_gpu),
            scaling_config=ScalingConfig(
                num_workers=self._spec.workers, use_gpu=self._spec.use_gpu, resources_per_worker=bundle
            ),
            # A failed worker is tried again by _train, which can tell a lost process from a wrong option.
            run_config=RunConfig(
                name=f"attempt-{self._attempt}",
                storage_path=str(self._directory.logging / "ray_train"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                callbacks=callbacks,
            ),
        )

    def _succeeded(self) -> tuple[Any, ...]:
        if not self._directory.final.is_dir():
            return "failed", f"the training program returned without writing {self._directory.final}"
        self._say(
            f"[{self._spec.name}] Train Actor is already finished. You can check the model in: {self._directory.final}"
        )
        return "succeeded", None

    def _wait_in_queue(self, attempt: int) -> None:
        """While no worker has started: says for what the job waits, and behind whom."""
        said = None
        while not (self._running or self._ended or attempt != self._attempt):
            ahead = [
                row
                for row in self._catalog.jobs()
                if row.active and row.uid != self._spec.uid and row.created_at <= self._created_at()
            ]
            running = [row.name for row in ahead if row.state == "running"]
            position = 1 + sum(row.state == "queued" for row in ahead)
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in self._spec.bundle.items() if ":" not in name)
            said_now = f"position {position}: waiting for {self._spec.workers} x ({wanted})"
            said_now += f" behind {', '.join(sorted(running))}" if running else ""
            with self._lock:
                if said_now != said and not (self._running or self._ended or attempt != self._attempt):
                    self._update(state="queued", reason=said_now)
                    said = said_now
            time.sleep(_QUEUE_SECONDS)

    def _created_at(self) -> float:
        return self._catalog.job_by_uid(self._spec.uid).created_at

    # ------------------------------------------------------------------------------------------------ writing it down

    def _record(self, event: Mapping[str, Any]) -> None:
        event = {**event, "time": round(time.time(), 3)}
        self._last[str(event.get("event"))] = event
        self._directory.append_events([event])

    def _show(self, event: Mapping[str, Any]) -> None:
        """Lines go to the actor's log, as the guide has them; progress goes to the catalog, not too often."""
        if event.get("event") == "line":
            print(event.get("text", ""), flush=True)
        if event.get("event") == "progress" and time.monotonic() - self._row_written > _PROGRESS_SECONDS:
            self._row_written = time.monotonic()
            self._update(progress=dict(event))

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self._record({"event": "line", "text": text})

    def _update(self, **values: Any) -> None:
        if not self._ended:
            self._catalog.update_job(self._spec.uid, **values)

    def _end(
        self,
        state: EndState,
        reason: str | None = None,
        hint: str | None = None,
        tail: str | None = None,
        *,
        kill: bool = False,
    ) -> None:
        """The first end that is written is the end: result.json, the catalog's row, the model's row."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        shutil.rmtree(self._directory.logging / "ray_train", ignore_errors=True)
        result = self._result(state, reason, hint, tail)
        written = _try(lambda: self._directory.append_events([{"event": "end", "state": state, "reason": reason}]))
        written = _try(lambda: self._directory.write_result(result)) or written
        if written is not None and state == "succeeded":
            state, reason, hint = "failed", f"the result could not be written: {written}", _disk_hint(written)
        _try(lambda: self._write_rows(state, reason, hint, tail))
        if reason:
            print(f"[{self._spec.name}] {state}: {reason}" + (f"\n{tail}" if tail else ""), flush=True)
        if kill:
            self._leave()

    def _result(self, state: EndState, reason: str | None, hint: str | None, tail: str | None) -> dict[str, Any]:
        checkpoint = self._directory.last_checkpoint()
        return {
            "name": self._spec.name,
            "owner": self._spec.owner,
            "uid": self._spec.uid,
            "state": state,
            "reason": reason,
            "hint": hint,
            "tail": tail,
            "final": str(self._directory.final) if state == "succeeded" else None,
            "last_checkpoint": str(checkpoint) if checkpoint else None,
            "attempts": self._attempt,
            "ended_at": time.time(),
            "summary": self._summary(),
        }

    def _summary(self) -> dict[str, Any]:
        kinds = ("data", "metrics")
        return {k: {n: v for n, v in self._last[k].items() if n != "event"} for k in kinds if k in self._last}

    def _write_rows(self, state: EndState, reason: str | None, hint: str | None, tail: str | None) -> None:
        """The model's row first: whoever waits looks at the job's row, and then expects to find the model."""
        if state == "succeeded":
            self._catalog.finish_model(self._spec.uid, state="ready", directory=str(self._directory.final))
        else:
            self._catalog.finish_model(self._spec.uid, state="failed", reason=reason or f"the job was {state}")
        values = {"state": state, "reason": reason, "hint": hint, "tail": tail, "summary": self._summary()}
        progress = self._last.get("progress")
        self._catalog.update_job(self._spec.uid, **values, **({"progress": dict(progress)} if progress else {}))

    def _leave(self) -> None:
        """Ends the controller and its workers, gives back what they reserved, and ends this process for good."""
        for controller in self._controllers:
            ray.kill(controller)
        _try(lambda: release(self._directory.read_events()[0]))
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


_LOST_HINT = "look for an out-of-memory kill; fewer workers, a smaller batch or shorter sequences need less memory"


def _cause(error: BaseException) -> str:
    """One line from Ray Train's report of lost workers."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        text = str(failure).strip().splitlines()
        detail = next((line.strip() for line in text if "died" in line or "killed" in line or "memory" in line), "")
        return f"worker {rank} was lost ({type(failure).__name__}{': ' + detail if detail else ''})"
    inner = getattr(error, "controller_failure", None) or error
    return f"the workers could not be kept running ({(str(inner).strip() or type(inner).__name__).splitlines()[0]})"


def _disk_hint(error: BaseException) -> str | None:
    full = isinstance(error, OSError) and error.errno in (28, 122)
    return "the disk is full: free some space, then run the statement again" if full else None


def _try(step: Callable[[], None]) -> BaseException | None:
    """At the end each thing is written that can be: a full disk must not keep the reason out of the catalog."""
    try:
        step()
    except Exception as error:
        traceback.print_exc()
        return error
    return None
