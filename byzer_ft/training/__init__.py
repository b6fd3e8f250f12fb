"""Staged rows and a base model -> an adapter directory, on whatever device is here.

`finetune` is a plain function: a Ray worker, `torchrun` and `python -m byzer_ft.training request.json` call the same
one. Knows nothing of SQL, Ray or Delta. Importing this package loads no torch; calling `finetune` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byzer_ft.intents import TrainingRequest

Report = Callable[[dict[str, Any]], None]


def finetune(
    request: TrainingRequest,
    data: Path,
    out_dir: Path,
    report: Report,
    *,
    should_stop: Callable[[], bool] | None = None,
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """QLoRA on the rows in `data`; the adapter lies in `out_dir/final` afterwards. See `training/qlora.py`.

    Returns `{"state": "succeeded", "final", "metrics", "data", "steps"}`, or `{"state": "stopped", "checkpoint",
    "steps", …}` when `should_stop` said so. Raises DataError, ModelError or JobError.
    """
    from byzer_ft.training.qlora import finetune as run

    return run(request, Path(data), Path(out_dir), report, should_stop=should_stop, resume_from=resume_from)
