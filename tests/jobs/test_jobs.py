"""Real jobs on a real Ray: they end as they should, and what is killed comes back or says why not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from byzer_ft.catalog import Catalog, JobRow
from byzer_ft.errors import ConflictError
from byzer_ft.jobs import Cluster, JobHandle, job_handle, reconcile
from byzer_ft.jobs.directory import JobDirectory

if TYPE_CHECKING:
    from tests.jobs.conftest import Start

pytestmark = pytest.mark.ray
Rooms = tuple[Cluster, Catalog, Path]

_ENDING = {
    "train": {"steps": 4},
    "all_reduce": {"workers": 2},
    "bad_rows": {},
    "crash_of_rank_1": {"workers": 2},
    "disk_full": {},
    "no_model": {},
    "suicide": {},
}


@pytest.fixture(scope="module")
def ended(start: Start) -> dict[str, tuple[JobHandle, JobRow, list[Mapping[str, Any]]]]:
    """One job of each kind, started at once on four CPUs, so that some wait in the queue; each with its events."""
    handles = {entry: start(entry, **options) for entry, options in _ENDING.items()}  # type: ignore[arg-type]
    out = {}
    for entry, handle in handles.items():
        events: list[Mapping[str, Any]] = []
        out[entry] = (handle, handle.wait(events.append), events)
    return out


def _wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def _last(handle: JobHandle, kind: str) -> Mapping[str, Any] | None:
    found = [event for event in handle.directory.read_events()[0] if event["event"] == kind]
    return found[-1] if found else None


def _model_state(rooms: Rooms, name: str) -> tuple[str, str | None]:
    row = rooms[1].model("william", name)
    assert row is not None
    return row.state, row.reason


def test_a_job_succeeds(ended: Any, rooms: Rooms) -> None:
    handle, row, events = ended["train"]
    assert (row.state, row.reason, row.workers) == ("succeeded", None, 1)
    assert row.created_at <= row.started_at <= row.ended_at
    assert row.progress["step"] == 4
    assert row.summary["metrics"]["train_loss"] == 0.5
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["attempt", "controller", "worker"]
    assert kinds.count("progress") == kinds.count("checkpoint") == 4
    assert kinds[-1] == "end"
    final = handle.directory.final
    assert (final / "adapter").read_text() == "from 1"
    assert _model_state(rooms, "train") == ("ready", None)


def test_its_log_has_the_guides_lines(ended: Any) -> None:
    handle, _, events = ended["train"]
    lines = [event["text"] for event in events if event["event"] == "line"]
    assert lines[0] == "there are 3 data in dataset"
    assert lines[-1] == f"[train] Train Actor is already finished. You can check the model in: {handle.directory.final}"


def test_its_directory_is_the_guides(ended: Any) -> None:
    handle, _, _ = ended["train"]
    names = {path.name for path in handle.directory.path.iterdir()}
    assert names == {
        "request.json", "job.json", "finetune_data", "finetune_model", "logging", "events.jsonl", "result.json",
    }  # fmt: skip
    result = handle.directory.read_result()
    assert (result["state"], result["final"]) == ("succeeded", str(handle.directory.final))
    assert list(handle.directory.logging.iterdir()) == []


def test_workers_are_one_process_group_in_a_quiet_offline_environment(ended: Any) -> None:
    _, row, events = ended["all_reduce"]
    assert row.state == "succeeded", row.reason
    found = next(event for event in events if event["event"] == "sum")
    assert found["value"] == 3.0  # 1 + 2
    assert (found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("2", "0")
    assert (found["OMP_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == ("1", "1")


def test_our_own_error_is_the_reason_with_its_hint_and_no_traceback(ended: Any, rooms: Rooms) -> None:
    _, row, _ = ended["bad_rows"]
    assert (row.state, row.reason, row.hint, row.tail) == (
        "failed", "none of the 3 rows can be used", "look at the shape of the rows", None,
    )  # fmt: skip
    assert _model_state(rooms, "bad_rows") == ("failed", "none of the 3 rows can be used")


def test_any_rank_that_fails_fails_the_job_with_the_tail_of_its_traceback(ended: Any) -> None:
    _, row, events = ended["crash_of_rank_1"]
    assert (row.state, row.reason) == ("failed", "ZeroDivisionError: the seventh layer is missing")
    assert "in crash_of_rank_1" in row.tail
    assert sum(event["event"] == "attempt" for event in events) == 1  # its own fault: not tried again


def test_a_full_disk_is_the_reason(ended: Any) -> None:
    handle, row, _ = ended["disk_full"]
    assert row.state == "failed"
    assert "No space left on device" in row.reason
    assert "the disk is full" in row.hint
    assert not handle.directory.final.exists()


def test_a_program_that_leaves_no_model_has_failed(ended: Any) -> None:
    _, row, _ = ended["no_model"]
    assert row.state == "failed"
    assert "without writing" in row.reason


def test_a_worker_that_is_killed_each_time_fails_the_job(ended: Any) -> None:
    _, row, events = ended["suicide"]
    assert row.state == "failed"
    assert "lost its workers 3 times" in row.reason
    assert "out-of-memory" in row.hint
    assert sum(event["event"] == "attempt" for event in events) == 3


def test_ended_jobs_hold_nothing(ended: Any, rooms: Rooms) -> None:
    cluster = rooms[0]

    def idle() -> bool:
        return all(dict(node.free) == dict(node.total) for node in cluster.resources())

    assert _wait_for(idle)
    for handle, _, _ in ended.values():
        assert _wait_for(lambda name=handle.name: not _actor_exists(name))


def test_an_ended_job_is_read_from_what_it_left(ended: Any, rooms: Rooms) -> None:
    handle, row, events = ended["train"]
    again = job_handle(rooms[0], rooms[1], handle.uid)
    assert again.status() == row
    assert list(again.events()) == events
    assert again.stop() == row


def _actor_exists(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace="byzer_ft.william")
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------- killed, stopped, waiting


def test_a_killed_worker_and_a_killed_actor_carry_on_from_the_last_checkpoint(start: Start) -> None:
    jobs = {name: start("slow", steps=8, name=name) for name in ("worker-dies", "actor-dies")}
    for handle in jobs.values():
        _wait_for(lambda handle=handle: (_last(handle, "checkpoint") or {"step": 0})["step"] >= 2)
    worker = _last(jobs["worker-dies"], "worker")
    attempt = _last(jobs["actor-dies"], "attempt")
    assert worker is not None and attempt is not None
    os.kill(worker["pid"], signal.SIGKILL)
    os.kill(attempt["actor_pid"], signal.SIGKILL)
    for name, handle in jobs.items():
        row = handle.wait()
        assert row.state == "succeeded", (name, row.reason, row.tail)
        attempts = [event for event in handle.directory.read_events()[0] if event["event"] == "attempt"]
        assert [event["attempt"] for event in attempts] == [1, 2]
        resumed = int(Path(attempts[1]["resume_from"]).name.partition("-")[2])
        assert resumed >= 2
        assert (handle.directory.final / "adapter").read_text() == f"from {resumed + 1}"
        result = handle.directory.read_result()
        assert result is not None and result["attempts"] == 2


def test_stopping_at_a_step_by_force_and_in_the_queue(start: Start, rooms: Rooms) -> None:
    """Also: a name in use, the queue's position, and a caller that is interrupted while it waits."""
    polite, deaf = start("slow", steps=1000, name="polite", CPU=2), start("deaf", CPU=2)
    _wait_for(lambda: _last(polite, "checkpoint") and _last(deaf, "progress"))

    with pytest.raises(ConflictError, match="'polite' is already queued or running"):
        start("slow", name="polite")

    queued = start("train", name="queued", CPU=3)
    waiting = _wait_for(lambda: "behind" in (queued.status().reason or "") and queued.status())
    assert waiting.state == "queued"
    assert waiting.reason == "position 1: waiting for 1 x (3 CPU) behind deaf, polite"
    assert queued.stop("changed my mind").state == "stopped"

    _interrupted_wait(polite)
    assert polite.status().state == "running"
    stopped = polite.stop()
    assert (stopped.state, stopped.reason) == ("stopped", "stopped by its owner")
    result = polite.directory.read_result()
    assert result is not None and result["last_checkpoint"] == str(polite.directory.last_checkpoint())
    assert not polite.directory.final.exists()
    assert _model_state(rooms, "polite") == ("failed", "stopped by its owner")

    assert deaf.stop(grace_seconds=1).state == "stopped"
    assert _wait_for(lambda: all(dict(node.free) == dict(node.total) for node in rooms[0].resources()))


def _interrupted_wait(handle: JobHandle) -> None:
    """Ctrl-C while following: a real SIGINT to this process."""
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        handle.wait()


def test_a_job_without_an_actor_is_lost_with_its_checkpoint(start: Start, rooms: Rooms) -> None:
    import ray

    cluster, catalog, _ = rooms
    handle = start("slow", steps=1000, name="orphan")
    _wait_for(lambda: _last(handle, "checkpoint"))
    assert reconcile(cluster, catalog, "william") == []
    ray.kill(ray.get_actor("orphan", namespace="byzer_ft.william"), no_restart=True)
    _wait_for(lambda: not _actor_exists("orphan"))
    (row,) = reconcile(cluster, catalog, "william")
    assert (row.name, row.state) == ("orphan", "lost")
    assert row.hint == f"its last checkpoint is {handle.directory.last_checkpoint()}"
    assert _model_state(rooms, "orphan")[0] == "failed"
    assert handle.wait().state == "lost"


def test_reconciling_believes_a_result_and_leaves_jobs_that_are_still_prepared_alone(rooms: Rooms) -> None:
    cluster, catalog, home = rooms
    for name in ("written", "staging"):
        (home / name).mkdir()
        catalog.add_job(uid=name, owner="william", name=name, directory=str(home / name))
    JobDirectory(home / "written").write_result(
        {
            "state": "succeeded",
            "final": "there",
            "reason": None,
            "hint": None,
            "tail": None,
            "summary": {},
            "ended_at": 1.0,
        }
    )
    (row,) = reconcile(cluster, catalog)
    assert (row.name, row.state, row.ended_at) == ("written", "succeeded", 1.0)
    assert catalog.job("william", "staging").state == "queued"
    catalog.update_job("staging", state="failed")
