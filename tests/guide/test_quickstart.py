"""The demo as `make demo` runs it, held to what the README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo_learns_a_skill_that_it_was_not_shown(home: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "byzer_ft.cli",
            "run",
            str(ROOT / "sql_examples" / "quickstart.sql"),
            "--format",
            "json",
        ],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert (before["model"], after["model"]) == ("before", "after")
    assert before["tickets"] == after["tickets"] >= 100
    assert before["exact_match_percent"] <= 5 and after["exact_match_percent"] >= 90, done.stdout
    assert "tokens/s" in done.stderr and "ETA" in done.stderr and "Train Actor is already finished" in done.stderr
    stored = list((home / "lake").glob("*/ai_model/ticket_helper/_delta_log/*.json"))
    assert len(stored) >= 1
