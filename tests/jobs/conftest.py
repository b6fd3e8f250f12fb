"""Jobs on the shared cluster: a home, a catalog, and a way to start small jobs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from byzer_ft.catalog import Catalog
from byzer_ft.intents import BaseModelRef, TrainingOptions, TrainingRequest
from byzer_ft.jobs import Cluster, JobHandle, JobSpec, start_job
from byzer_ft.settings import Settings

if TYPE_CHECKING:
    Start = Callable[..., JobHandle]

# Before any Ray is started: its workers find `tests.jobs.entries`, whatever directory a test works in.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def rooms(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Catalog, Path]]:
    """A cluster joined by its address, a catalog and a place for job directories."""
    home = tmp_path_factory.mktemp("jobs")
    settings = Settings(home=home, owner="william", ray_address=ray_cluster)
    notices: list[str] = []
    with Cluster(settings, notices.append) as cluster:
        catalog = Catalog(settings.catalog_url)
        yield cluster, catalog, home
        catalog.close()


@pytest.fixture(scope="module")
def start(rooms: tuple[Cluster, Catalog, Path]) -> Start:
    """start(entry, workers=1, steps=3, …): a job of an entry of `tests.jobs.entries` on three staged rows."""
    cluster, catalog, home = rooms

    def start(entry: str, *, workers: int = 1, steps: int = 3, name: str | None = None, **options: Any) -> JobHandle:
        uid = uuid.uuid4().hex
        name = name or entry
        directory = home / f"{name}-{uid}"
        (directory / "finetune_data").mkdir(parents=True)
        for row in range(3):
            (directory / "finetune_data" / str(row)).write_text("row")
        catalog.add_job(
            uid=uid, owner="william", name=name, directory=str(directory), output_table=name, workers=workers
        )
        catalog.put_model("william", name, state="pending", job_uid=uid)
        request = TrainingRequest(
            name=name,
            family="llama",
            base=BaseModelRef(directory="unused"),
            training=TrainingOptions(max_steps=steps),
        )
        spec = JobSpec(
            uid=uid,
            owner="william",
            name=name,
            directory=str(directory),
            request=request,
            workers=workers,
            resources_per_worker={"CPU": 1, **options},
            output_table=name,
            entry=f"tests.jobs.entries:{entry}",
        )
        return start_job(cluster, catalog, spec)

    return start
