"""What one Ray Train worker does: join the others, call the entry point by its name, pass on what it reports.

torch is imported here and nowhere else in this room: the actor and Ray Train's controller start without it, which
saves two of the four imports that `TorchTrainer` pays on a small machine. Knows nothing of what is trained.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from byzer_ft.errors import ByzerError, JobError
from byzer_ft.intents import TrainingRequest
from byzer_ft.jobs.directory import JobDirectory, JobSpec

_TAIL_LINES = 30
_POLL_SECONDS = 1.0
_REPORT_SECONDS = 120.0
_PROCESS_GROUP_SECONDS = 1800
# What a rank sees when another one is killed: not its own failure, so not the job's reason.
_PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|process ?group|socket timeout", re.I)


class WorkerFailed(Exception):
    """Ends a worker after its failure was reported. Plain text, since any exception must survive pickling."""


@dataclass
class Torchrun(BackendConfig):
    """The environment of `torchrun` and a process group, without which a plain function cannot train in parallel."""

    threads: int = 1
    gpu: bool = False

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchrunBackend


class Trainer(DataParallelTrainer):
    """Ray Train without its cleaner of reservations, a process that works only with a dashboard: see leftovers.py."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, PlacementGroupCleanerCallback)]


class Introduction(ControllerCallback):
    """Makes the controller tell the job's actor who it is, before it reserves anything."""

    def __init__(self, job: Any, attempt: int) -> None:
        self._job = job
        self._attempt = attempt

    def after_controller_start(self, train_run_context: Any) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        ray.get(self._job.controlled.remote(self._attempt, me), timeout=_REPORT_SECONDS)


class _TorchrunBackend(Backend):
    # Every worker of a node sees all of the job's GPUs there and picks by LOCAL_RANK, as under torchrun.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        import ray
        from ray.train._internal.utils import get_address_and_port

        assert isinstance(backend_config, Torchrun)
        address, port = worker_group.execute_single(0, get_address_and_port)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, address, port, backend_config.threads, "nccl" if backend_config.gpu else "gloo"
                )
                for rank in range(len(worker_group))
            ]
        )


def _join(address: str, port: int, threads: int, backend: str) -> None:
    """Runs in each worker, before anything imports torch or transformers, which read these variables once."""
    import ray.train

    context = ray.train.get_context()
    world = context.get_world_size()
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(context.get_world_rank()),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        DO_NOT_TRACK="1",
    )
    if world > 1:
        from ray.train.torch.config import _setup_torch_process_group

        _setup_torch_process_group(backend, context.get_world_rank(), world, "env://", _PROCESS_GROUP_SECONDS)


def threads_for(cpus: float) -> int:
    return max(1, math.ceil(cpus))


# ------------------------------------------------------------------------------------------------------ the work


def train_loop(config: dict[str, Any]) -> None:
    """The function that Ray Train calls on every worker."""
    spec = JobSpec.model_validate(config["spec"])
    line = _Line(config["job"], config["attempt"], int(os.environ["RANK"]))
    try:
        line.hello()
        entry = _resolve(spec.entry)
        _run(entry, spec, line, config["resume_from"])
    except BaseException as error:
        line.failed(_described(error))
        raise WorkerFailed(f"{type(error).__name__}: {error}") from None
    line.finished()


def _run(entry: Callable[..., Any], spec: JobSpec, line: _Line, resume_from: str | None) -> None:
    os.environ.update(spec.environment)
    directory = JobDirectory(spec.directory)
    request = TrainingRequest.model_validate(spec.request.model_dump(exclude_unset=True))
    entry(
        request,
        directory.data,
        directory.model,
        line.report if line.rank == 0 else _ignore,
        should_stop=line.should_stop,
        resume_from=Path(resume_from) if resume_from else None,
    )


def _ignore(event: Mapping[str, Any]) -> None:
    """Only rank 0 reports."""


def _resolve(entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise JobError(
            f"the training program {entry} cannot be loaded on {os.uname().nodename}: {error}",
            hint="every node needs: pip install 'byzer-ft[train]'",
        ) from error
    return found  # type: ignore[no-any-return]  # named by a string, resolved here


class _Line:
    """The worker's line to the job's actor. Nothing here waits for the actor, except at the end."""

    def __init__(self, job: Any, attempt: int, rank: int) -> None:
        self.rank = rank
        self._job = job
        self._attempt = attempt
        self._stop = False
        self._pending: Any = None
        self._polled = 0.0

    def hello(self) -> None:
        import ray

        me = ray.get_runtime_context()
        worker = {"rank": self.rank, "pid": os.getpid(), "node": me.get_node_id(), "actor": me.get_actor_id()}
        self._ask("started", worker)

    def report(self, event: Mapping[str, Any]) -> None:
        self._take_answer()
        self._pending = self._job.report.remote(self._attempt, dict(event))

    def should_stop(self) -> bool:
        """True from the moment this worker has heard that the job is to stop. Asks at most once a second."""
        self._take_answer()
        if self._pending is None and time.monotonic() - self._polled > _POLL_SECONDS:
            self._pending = self._job.should_stop.remote(self._attempt)
        return self._stop

    def failed(self, error: dict[str, Any]) -> None:
        self._ask("failed", {"rank": self.rank, **error})

    def finished(self) -> None:
        self._ask("finished", self.rank)

    def _ask(self, method: str, argument: Any) -> None:
        import ray

        ray.get(getattr(self._job, method).remote(self._attempt, argument), timeout=_REPORT_SECONDS)

    def _take_answer(self) -> None:
        import ray

        if self._pending is None:
            return
        ready, _ = ray.wait([self._pending], timeout=0)
        if ready:
            self._pending, self._polled = None, time.monotonic()
            try:
                self._stop = bool(ray.get(ready[0]))
            except ray.exceptions.RayError:
                self._stop = self._stop  # the actor is being restarted, and ends this worker when it is back


def _described(error: BaseException) -> dict[str, Any]:
    """An exception as plain fields: type, message, hint, tail. Ours are meant for people and carry no traceback."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    ours = isinstance(error, ByzerError)
    return {
        "type": type(error).__name__,
        "message": error.message if isinstance(error, ByzerError) else _first_words(error),
        "hint": error.hint if isinstance(error, ByzerError) else _hint(error),
        "tail": getattr(error, "tail", None) if ours else "\n".join(lines[-_TAIL_LINES:]),
        "peer_lost": not ours and bool(_PEER_LOST.search(str(error))),
    }


def _first_words(error: BaseException) -> str:
    text = str(error).strip()
    name = type(error).__name__
    return f"{name}: {text.splitlines()[0][:500]}" if text else name


def _hint(error: BaseException) -> str | None:
    text = str(error).lower()
    if isinstance(error, OSError) and error.errno in (28, 122) or "no space left on device" in text:
        return "the disk is full: free some space, then run the statement again"
    if isinstance(error, MemoryError) or "out of memory" in text:
        return "lower sft.int.per_device_train_batch_size or sft.int.max_seq_length"
    return None
