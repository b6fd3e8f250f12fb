"""The files of one job directory: what was asked, what was reported, how it ended.

    request.json          the training request; enough to run it again by hand
    job.json              the rest of what was asked: owner, workers, resources, the SQL text, the cluster
    finetune_data/        the rows, staged before the job starts
    finetune_model/       checkpoints, and `final/` at the end
    logging/              TensorBoard, where it writes
    events.jsonl          everything that was reported, one JSON object a line
    result.json           written last, by renaming: nothing that was killed looks finished

Only the job's actor writes events.jsonl and result.json. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from byzer_ft.errors import EngineError
from byzer_ft.intents import FORMAT_VERSION, Frozen, TrainingRequest

DEFAULT_ENTRY = "byzer_ft.training:finetune"


class JobSpec(Frozen):
    """All that a job's actor is told. `entry` names the function that every worker calls, as `module:function`."""

    uid: str
    owner: str
    name: str
    directory: str
    request: TrainingRequest
    workers: int = Field(1, ge=1)
    use_gpu: bool = False
    resources_per_worker: dict[str, float] = {}
    custom: dict[str, float] = {}
    output_table: str | None = None
    sql: str = ""
    environment: dict[str, str] = {}  # BYZER_FT_* of the session: workers allow and refuse what it does
    entry: str = Field(DEFAULT_ENTRY, pattern=r"^[\w.]+:\w+$")

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker reserves."""
        return {**self.resources_per_worker, **self.custom}


class JobDirectory:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.data = self.path / "finetune_data"
        self.model = self.path / "finetune_model"
        self.final = self.model / "final"
        self.logging = self.path / "logging"
        self.events = self.path / "events.jsonl"

    # ------------------------------------------------------------------------------------------------- what was asked

    def write_request(self, spec: JobSpec, cluster_id: str) -> None:
        """request.json holds of the options only what was given, so that defaults stay defaults; job.json the rest."""
        self.model.mkdir(parents=True, exist_ok=True)
        self.logging.mkdir(exist_ok=True)
        request = spec.request.model_dump(mode="json")
        request["training"] = spec.request.training.model_dump(mode="json", exclude_unset=True)
        _write_json(self.path / "request.json", request)
        envelope = spec.model_dump(mode="json", exclude={"request"})
        _write_json(self.path / "job.json", {"format_version": FORMAT_VERSION, "cluster": cluster_id, **envelope})

    def read_spec(self) -> JobSpec:
        """The job as it was asked. EngineError when the directory was written by a newer version or is damaged."""
        envelope = _read_json(self.path / "job.json")
        if envelope is None:
            raise EngineError(f"{self.path / 'job.json'} is missing or damaged", hint="this is not a job directory")
        if envelope.pop("format_version", 0) > FORMAT_VERSION:
            raise EngineError(f"{self.path} was written by a newer byzer_ft", hint="upgrade byzer_ft")
        envelope.pop("cluster", None)
        return JobSpec(**envelope, request=_read_json(self.path / "request.json"))

    def cluster_id(self) -> str | None:
        """The cluster that the job was started on; None before it was started at all."""
        envelope = _read_json(self.path / "job.json")
        return None if envelope is None else str(envelope.get("cluster"))

    # --------------------------------------------------------------------------------------------- what was reported

    def append_events(self, events: list[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(event, ensure_ascii=False, default=str) + "\n" for event in events)
        with self.events.open("a", encoding="utf-8") as file:
            file.write(lines)

    def read_events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events from a byte offset on, and the offset to go on from. A line being written is left for then."""
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                text = file.read()
        except FileNotFoundError:
            return [], offset
        complete = text[: text.rfind(b"\n") + 1]
        parsed = (_parse(line) for line in complete.splitlines())
        return [event for event in parsed if event is not None], offset + len(complete)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was reported, which means complete, and still exists."""
        events, _ = self.read_events()
        for event in reversed(events):
            if event.get("event") == "checkpoint" and Path(str(event["path"])).is_dir():
                return Path(str(event["path"]))
        return None

    # ------------------------------------------------------------------------------------------------ how it ended

    def write_result(self, result: Mapping[str, Any]) -> None:
        _write_json(self.path / "result.json", {"format_version": FORMAT_VERSION, **result})

    def read_result(self) -> dict[str, Any] | None:
        return _read_json(self.path / "result.json")


def _parse(line: bytes) -> dict[str, Any] | None:
    """One event; None for a line that a full disk or a power cut left in pieces."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all: written beside its place, flushed to disk, renamed."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2, default=str)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
