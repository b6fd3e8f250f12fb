"""The files of a job directory: whole or absent, readable while they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byzer_ft.errors import EngineError
from byzer_ft.intents import BaseModelRef, TrainingOptions, TrainingRequest
from byzer_ft.jobs import JobSpec, default_name
from byzer_ft.jobs.directory import JobDirectory


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    request = TrainingRequest(
        name="sft", family="llama2", base=BaseModelRef(directory="model"), training=TrainingOptions(lora_rank=8)
    )
    return JobSpec(
        uid="1",
        owner="william",
        name="sft",
        directory=str(tmp_path),
        request=request,
        workers=2,
        sql="run …",
        custom={"m": 1},
    )


def test_what_was_asked_comes_back_with_defaults_still_defaults(spec: JobSpec) -> None:
    directory = JobDirectory(spec.directory)
    directory.write_request(spec, "cluster-7")
    assert json.loads((directory.path / "request.json").read_text())["training"] == {"lora_rank": 8}
    assert directory.read_spec() == spec
    assert directory.read_spec().request.training.model_fields_set == {"lora_rank"}
    assert directory.cluster_id() == "cluster-7"


def test_a_directory_of_a_newer_version_is_refused(spec: JobSpec) -> None:
    directory = JobDirectory(spec.directory)
    directory.write_request(spec, "c")
    document = json.loads((directory.path / "job.json").read_text())
    (directory.path / "job.json").write_text(json.dumps({**document, "format_version": 99}))
    with pytest.raises(EngineError, match="newer byzer_ft"):
        directory.read_spec()


def test_a_directory_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="job.json is missing or damaged"):
        JobDirectory(tmp_path).read_spec()
    assert JobDirectory(tmp_path).cluster_id() is None


def test_events_are_followed_line_by_line(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path)
    assert directory.read_events() == ([], 0)
    directory.append_events([{"event": "line", "text": "写"}])
    with directory.events.open("a", encoding="utf-8") as file:
        file.write('{"event": "li')  # being written just now
    events, offset = directory.read_events()
    assert events == [{"event": "line", "text": "写"}]
    with directory.events.open("a", encoding="utf-8") as file:
        file.write('ne"}\n')
    assert directory.read_events(offset)[0] == [{"event": "line"}]


def test_a_line_left_in_pieces_by_a_full_disk_is_skipped(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path)
    directory.events.write_bytes(b'{"event": "a"}\n{"event": "b", "te\n{"event": "c"}\n')
    assert [event["event"] for event in directory.read_events()[0]] == ["a", "c"]


def test_the_last_checkpoint_is_the_newest_reported_one_that_exists(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path)
    for step in (1, 2, 3):
        (directory.model / f"checkpoint-{step}").mkdir(parents=True)
    directory.append_events(
        [{"event": "checkpoint", "step": s, "path": str(directory.model / f"checkpoint-{s}")} for s in (1, 2, 9)]
    )
    assert directory.last_checkpoint() == directory.model / "checkpoint-2"  # 3 was not finished, 9 is gone


def test_a_result_is_whole_or_absent(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path)
    assert directory.read_result() is None
    directory.write_result({"state": "failed", "reason": "磁盘"})
    assert directory.read_result() == {"format_version": 1, "state": "failed", "reason": "磁盘"}
    with pytest.raises(TypeError):
        directory.write_result({("no", "key"): 1})  # type: ignore[dict-item]
    assert directory.read_result() == {"format_version": 1, "state": "failed", "reason": "磁盘"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_original_names_of_jobs() -> None:
    import re

    assert re.fullmatch(r"sft-william-\d{8}-\d\d-\d\d-\d\d", default_name("william"))
