"""Real `byzer-ft run` processes with a Ray of their own: what waits, what stops, what outlives what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from byzer_ft.catalog import Catalog
from tests.tiny import moss_rows, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def script(home: Path, tmp_path: Path, tiny_llama: Path) -> Path:
    """Trains on a few short conversations; `{detached}` and `{steps}` are filled in by each test."""
    rows = write_jsonl(tmp_path / "rows.jsonl", moss_rows(8, turn_words=(5, 10)))
    path = tmp_path / "train.sql"
    path.write_text(
        f"""load json.`{rows}` as t;
run command as LLM.`` where name="life" and pretrainedModelType="sft/llama2" and localModelDir="{tiny_llama}"
and inputTable="t" and outputTable="m" and detached="DETACHED" and `sft.int.max_steps`="STEPS"
and `sft.int.gradient_accumulation_steps`="1" and `sft.int.logging_steps`="1";
""",
        "utf-8",
    )
    return path


def _filled(script: Path, detached: bool, steps: int) -> Path:
    text = script.read_text("utf-8").replace("DETACHED", str(detached).lower()).replace("STEPS", str(steps))
    script.write_text(text, "utf-8")
    return script


def _start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "byzer_ft.cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _ray_processes_below(home: Path) -> list[psutil.Process]:
    """Ray's own processes that belong to this test's home."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] in ("raylet", "gcs_server") and process.environ().get("BYZER_FT_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _gone(home: Path) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not _ray_processes_below(home):
            return True
        time.sleep(0.3)
    return False


def _state(home: Path) -> str:
    catalog = Catalog(f"sqlite:///{home / 'catalog.sqlite'}")
    try:
        rows = catalog.jobs()
        return rows[0].state if rows else "none"
    finally:
        catalog.close()


def _wait_for(home: Path, state: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while _state(home) != state:
        assert time.monotonic() < deadline, f"the job is {_state(home)}, not {state}"
        time.sleep(0.3)


@pytest.fixture(autouse=True)
def _nothing_left(home: Path) -> Iterator[None]:
    yield
    for process in _ray_processes_below(home):
        process.kill()


def test_a_private_ray_waits_for_its_detached_job_and_leaves_nothing_behind(script: Path, home: Path) -> None:
    done = _start("run", str(_filled(script, detached=True, steps=3)))
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert "private Ray" in err and "waiting for detached job life" in err and "job life succeeded" in err
    assert _state(home) == "succeeded" and _gone(home)


def test_two_interrupts_stop_the_job(script: Path, home: Path) -> None:
    running = _start("run", str(_filled(script, detached=False, steps=100_000)))
    _wait_for(home, "running")
    time.sleep(2)
    os.kill(running.pid, signal.SIGINT)
    time.sleep(1.5)
    os.kill(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "stopped waiting" in err and "leaving stops it" in err and "was stopped" in err and "Traceback" not in err
    assert _state(home) == "stopped" and _gone(home)


def test_one_interrupt_stops_waiting_and_a_private_ray_keeps_the_process_until_the_next(
    script: Path, home: Path
) -> None:
    running = _start("run", str(_filled(script, detached=False, steps=100_000)))
    _wait_for(home, "running")
    time.sleep(2)
    os.kill(running.pid, signal.SIGINT)
    time.sleep(9)  # past the five seconds in which a second one would have stopped the job
    assert running.poll() is None and _state(home) == "running"
    os.kill(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and "Traceback" not in err, err
    assert "no longer waiting" in err or "waiting for detached job life" in err
    assert _state(home) == "stopped" and _gone(home)


def test_a_background_ray_outlives_the_script_and_its_jobs_are_found_again(script: Path, home: Path) -> None:
    started = subprocess.run(
        [sys.executable, "-m", "byzer_ft.cli", "start"], capture_output=True, text=True, timeout=120
    )
    assert started.returncode == 0, started.stderr
    try:
        again = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "start"], capture_output=True, text=True)
        assert again.returncode == 1 and "already runs" in again.stderr
        done = _start("run", str(_filled(script, detached=True, steps=3)))
        _, err = done.communicate(timeout=120)
        assert done.returncode == 0 and "waiting for detached job" not in err, err
        _wait_for(home, "succeeded")
        shown = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "jobs"], capture_output=True, text=True)
        assert "life" in shown.stdout and "succeeded" in shown.stdout
        status = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "status"], capture_output=True, text=True)
        assert "in the background" in status.stdout
    finally:
        stopped = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "stop"], capture_output=True, text=True)
    assert stopped.returncode == 0, stopped.stderr
    assert _gone(home)
    status = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "status"], capture_output=True, text=True)
    assert "no Ray runs" in status.stdout


def test_a_killed_session_leaves_its_job_lost_with_a_reason(script: Path, home: Path) -> None:
    running = _start("run", str(_filled(script, detached=False, steps=100_000)))
    _wait_for(home, "running")
    os.kill(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    assert _gone(home)
    shown = subprocess.run([sys.executable, "-m", "byzer_ft.cli", "jobs"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "lost" in shown.stdout, shown.stderr
