"""Shared by all tests: a home of its own for each, one Ray cluster for the whole run, tiny models made on the spot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports numpy, torch or ray: two cores, no downloads, no telemetry.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)
for name in [n for n in os.environ if n.startswith("BYZER_FT_")]:
    del os.environ[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for this test alone; the working directory is beside it."""
    path = tmp_path / "home"
    path.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("BYZER_FT_HOME", str(path))
    monkeypatch.chdir(work)
    return path


@pytest.fixture(scope="session")
def moss_rows() -> list[dict[str, object]]:
    """Multi-turn rows in the guide's MOSS shape, long ones among them, made here."""
    from tests.tiny import moss_rows

    return moss_rows()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random Llama with a byte-level BPE tokenizer that has no chat template."""
    from tests.tiny import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "Llama-2-tiny", template=None)


@pytest.fixture(scope="session")
def tiny_llama_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a ChatML template in its tokenizer."""
    from tests.tiny import CHATML, make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "Llama-chat-tiny", template=CHATML)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One private Ray for the whole run (2 CPUs and the custom resource `master`); its address."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=4,  # of 2 real cores: a deployment and a two-worker job must fit beside each other
        resources={"master": 1},
        include_dashboard=False,
        log_to_driver=False,
        namespace="byzer_ft.tests",
    )
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()
