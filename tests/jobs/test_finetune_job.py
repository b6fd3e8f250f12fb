"""The real training program in a real job of two workers: from staged rows to an adapter that can be loaded."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.catalog import Catalog
from byzer_ft.intents import BaseModelRef, TrainingOptions, TrainingRequest
from byzer_ft.jobs import Cluster, JobSpec, start_job


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.slow
def test_two_workers_train_an_adapter(
    rooms: tuple[Cluster, Catalog, Path], tiny_llama: Path, moss_rows: list[dict[str, Any]]
) -> None:
    cluster, catalog, home = rooms
    uid = uuid.uuid4().hex
    directory = home / f"sft-william-{uid}"
    _stage(moss_rows, directory / "finetune_data")
    catalog.add_job(uid=uid, owner="william", name="sft-william", directory=str(directory), workers=2)
    training = TrainingOptions(
        max_seq_length=128, max_steps=3, gradient_accumulation_steps=1, lora_rank=4, save_steps=2
    )
    request = TrainingRequest(
        name="sft-william", family="llama2", base=BaseModelRef(directory=str(tiny_llama)), training=training
    )
    spec = JobSpec(
        uid=uid,
        owner="william",
        name="sft-william",
        directory=str(directory),
        request=request,
        workers=2,
        resources_per_worker={"CPU": 1},
    )
    events: list[Any] = []
    handle = start_job(cluster, catalog, spec)
    row = handle.wait(events.append)
    assert row.state == "succeeded", f"{row.reason}\n{row.tail}"

    config = next(event for event in events if event["event"] == "config")
    assert config["world_size"] == 2
    assert config["values"]["lora_rank"]["source"] == "given"
    assert config["values"]["learning_rate"]["source"] != "given"
    assert row.progress is not None and row.progress["step"] == 3
    assert row.summary is not None and row.summary["data"]["rows_in"] == 33

    lines = "\n".join(event["text"] for event in events if event["event"] == "line")
    for line in ("there are 33 data in dataset", "*** starting training ***", "Train Actor is already finished"):
        assert line in lines
    final = handle.directory.final
    assert {"adapter_config.json", "adapter_model.safetensors", "byzer_ft.json"} <= {p.name for p in final.iterdir()}
    assert handle.directory.last_checkpoint() is not None


def _stage(rows: list[dict[str, Any]], directory: Path) -> None:
    """As `engine.stage` does: Parquet, then the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, directory / "part-00000.parquet")
    columns = [{"name": field.name, "type": str(field.type)} for field in table.schema]
    manifest = {
        "format_version": 1,
        "rows": len(rows),
        "columns": columns,
        "shards": [{"file": "part-00000.parquet", "rows": len(rows)}],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), "utf-8")
