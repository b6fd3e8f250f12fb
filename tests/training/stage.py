"""Rows -> a staging directory as `engine.stage` writes it, and one call that trains on it and keeps the events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzer_ft.intents import BaseModelRef, TrainingOptions, TrainingRequest


def stage(rows: list[dict[str, Any]], directory: Path, *, shards: int = 1) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    size = -(-max(1, len(rows)) // shards)
    listed = []
    for i in range(shards if rows else 0):
        part = table.slice(i * size, size)
        pq.write_table(part, directory / f"part-{i:05d}.parquet")
        listed.append({"file": f"part-{i:05d}.parquet", "rows": part.num_rows})
    columns = [{"name": f.name, "type": str(f.type)} for f in table.schema]
    manifest = {"format_version": 1, "rows": len(rows), "columns": columns, "shards": listed}
    (directory / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return directory


@dataclass
class Run:
    result: dict[str, Any]
    events: list[dict[str, Any]]
    out: Path

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]

    @property
    def lines(self) -> list[str]:
        return [e["text"] for e in self.of("line")]

    @property
    def losses(self) -> list[float]:
        return [e["loss"] for e in self.of("progress")]

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        return self.of("config")[0]["values"]


def request(model: Path | str, *, family: str = "auto", **options: Any) -> TrainingRequest:
    return TrainingRequest(
        name="t", family=family, base=BaseModelRef(directory=str(model)), training=TrainingOptions(**options)
    )


def train(
    asked: TrainingRequest,
    rows: list[dict[str, Any]],
    work: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    resume_from: Path | None = None,
    events: list[dict[str, Any]] | None = None,
) -> Run:
    """`events` is filled while the run goes on, for callers that expect it to fail."""
    from byzer_ft.training import finetune

    seen = [] if events is None else events
    data = stage(rows, work / "finetune_data")
    out = work / "finetune_model"
    result = finetune(asked, data, out, seen.append, should_stop=should_stop, resume_from=resume_from)
    return Run(result, seen, out)
