"""Small training programs that real workers of a real job call by name, with the signature of `training.finetune`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from byzer_ft.errors import DataError
from byzer_ft.intents import TrainingRequest

Report = Callable[[Mapping[str, Any]], None]


def rank() -> int:
    return int(os.environ["RANK"])


def _steps(out_dir: Path, report: Report, first: int, last: int, stop: Callable[[], bool], seconds: float) -> int:
    """Steps with a checkpoint after each; the step it ended at."""
    for step in range(first, last + 1):
        if stop():
            return step - 1
        time.sleep(seconds)
        report({"event": "progress", "step": step, "total_steps": last, "loss": 1.0 / step})
        if rank() == 0:
            checkpoint = out_dir / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "step").write_text(str(step))
            report({"event": "checkpoint", "step": step, "path": str(checkpoint)})
    return last


def _write_final(out_dir: Path, report: Report, text: str = "adapter") -> None:
    if rank() == 0:
        (out_dir / "final").mkdir(parents=True, exist_ok=True)
        (out_dir / "final" / "adapter").write_text(text)
        report({"event": "metrics", "train_loss": 0.5})
        report({"event": "done", "final": str(out_dir / "final")})


def train(
    request: TrainingRequest,
    data: Path,
    out_dir: Path,
    report: Report,
    *,
    should_stop: Callable[[], bool],
    resume_from: Path | None,
) -> None:
    """`max_steps` steps of 50 ms from where the checkpoint left off."""
    report({"event": "line", "text": f"there are {len(list(data.iterdir()))} data in dataset"})
    first = int((resume_from / "step").read_text()) + 1 if resume_from else 1
    last = request.training.max_steps
    if _steps(out_dir, report, first, last, should_stop, 0.05) == last:
        _write_final(out_dir, report, f"from {first}")


def slow(
    request: TrainingRequest,
    data: Path,
    out_dir: Path,
    report: Report,
    *,
    should_stop: Callable[[], bool],
    resume_from: Path | None,
) -> None:
    """The same in steps of half a second: time enough to be killed or stopped."""
    first = int((resume_from / "step").read_text()) + 1 if resume_from else 1
    last = request.training.max_steps
    if _steps(out_dir, report, first, last, should_stop, 0.5) == last:
        _write_final(out_dir, report, f"from {first}")


def deaf(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """Never asks whether to stop."""
    report({"event": "progress", "step": 1, "total_steps": 2, "loss": 1.0})
    time.sleep(600)


def all_reduce(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """Proves that the workers are one process group, and shows the environment they run in."""
    import torch

    value = torch.tensor([float(rank() + 1)])
    torch.distributed.all_reduce(value)
    names = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE", "LOCAL_RANK")
    report({"event": "sum", "value": value.item(), **{name: os.environ.get(name) for name in names}})
    _write_final(out_dir, report)


def bad_rows(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    raise DataError("none of the 3 rows can be used", hint="look at the shape of the rows")


def crash_of_rank_1(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """Rank 1 fails while rank 0 waits for it in a collective."""
    import torch

    if rank() == 1:
        raise ZeroDivisionError("the seventh layer is missing")
    torch.distributed.all_reduce(torch.ones(1))


def suicide(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """Dies of SIGKILL each time, as under the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """A checkpoint on a device that is always full: the real error of the real kernel."""
    with open("/dev/full", "wb") as file:  # noqa: PTH123
        file.write(b"x" * 1_000_000)


def no_model(request: TrainingRequest, data: Path, out_dir: Path, report: Report, **_: Any) -> None:
    """Returns as if all were well, without a model."""
