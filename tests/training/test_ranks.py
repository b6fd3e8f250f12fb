"""Two processes under torchrun (gloo) train what one process trains, and only one of them writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.stage import request, stage, train
from tests.training.test_finetune import ROWS, SMALL

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_two_ranks_equal_one(tiny_llama: Path, tmp_path: Path) -> None:
    """No dropout: the ranks draw their own. Two ranks of 2 passes see the sequences that one sees in 4 passes."""
    options = SMALL | {"lora_dropout": 0.0, "max_steps": 3, "save_strategy": "no"}
    alone = train(request(tiny_llama, **options | {"gradient_accumulation_steps": 4}), ROWS, tmp_path / "alone")

    stage(ROWS, tmp_path / "two" / "finetune_data")
    asked = {"name": "t", "family": "auto", "base": {"directory": str(tiny_llama)}, "training": options}
    (tmp_path / "two" / "request.json").write_text(json.dumps(asked), "utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "byzer_ft.training"]
    done = subprocess.run(
        [sys.executable, *launcher, "--events", str(tmp_path / "two" / "request.json")],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"BYZER_FT_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [e["world_size"] for e in events if e["event"] == "config"] == [2]
    losses = [e["loss"] for e in events if e["event"] == "progress"]
    assert losses == pytest.approx(alone.losses, abs=1e-4)
    assert sum(e["event"] == "done" for e in events) == 1
    assert sorted(p.name for p in (tmp_path / "two" / "finetune_model").iterdir()) == ["final"]
