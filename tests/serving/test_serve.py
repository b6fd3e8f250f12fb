"""Ray Serve applications: deploying, asking, replacing, losing replicas, failing to load, removing."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import ModelError, NotFoundError, ResourceError
from byzer_ft.intents import BaseModelRef
from byzer_ft.jobs import Cluster
from byzer_ft.serving.client import AdapterRef, DeploymentSpec, FunctionSpec, ServingClient
from byzer_ft.settings import Settings
from tests.serving.models import make_adapter, open_engine

pytestmark = [
    pytest.mark.ray,
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),  # ray.serve
]

DEFAULTS = {"max_new_tokens": 8}
TEXTS = [f"please explain {'data ' * (i % 29)}{i}" for i in range(300)]


class Deployed:
    """One application on the shared cluster with two adapters, and what its user was told."""

    def __init__(
        self, client: ServingClient, spec: DeploymentSpec, adapters: list[AdapterRef], told: list[str]
    ) -> None:
        self.client, self.spec, self.adapters, self.told = client, spec, adapters, told
        self.functions = [FunctionSpec(name=f"f{i}", adapter=a, defaults=DEFAULTS) for i, a in enumerate(adapters)]
        self.application = client.deploy(spec, self.functions[0])

    def ask(self, texts: list[str], which: int = 0) -> list[Any]:
        return self.client.ask(self.application, self.functions[which], texts)

    def pids(self) -> set[int]:
        calls = [self.client._call(self.application, "status") for _ in range(12)]
        return {call["pid"] for call in calls}


@pytest.fixture(scope="module")
def deployed(ray_cluster: str, tiny_llama_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    root = tmp_path_factory.mktemp("served")
    settings = Settings(home=root / "home", owner="tester", ray_address=ray_cluster)
    adapters = [AdapterRef(directory=str(make_adapter(tiny_llama_chat, root / f"a{i}", seed=i))) for i in range(2)]
    told: list[str] = []
    client = ServingClient(Cluster(settings, told.append), settings, told.append)
    spec = DeploymentSpec(owner="tester", base=BaseModelRef(directory=str(tiny_llama_chat)), num_gpus=1)
    found = Deployed(client, spec, adapters, told)
    yield found
    for application in client.status():
        client.remove(application)


def test_a_gpu_that_nobody_has_becomes_a_cpu_and_is_said(deployed: Deployed) -> None:
    assert any("no GPU" in text for text in deployed.told)
    state = deployed.client.status(engines=True)[deployed.application]
    assert state.state == "RUNNING" and state.owner == "tester"
    assert state.engine and state.engine["device"] == "cpu"


def test_many_prompts_are_answered_in_order_and_as_the_engine_does(deployed: Deployed, tiny_llama_chat: Path) -> None:
    from byzer_ft.serving.protocol import parse_element

    replies = deployed.ask(TEXTS)
    assert [r.error for r in replies] == [None] * len(TEXTS)
    assert all(r.metadata["model"] == "f0" and r.metadata["completion_tokens"] <= 8 for r in replies)
    engine = open_engine(tiny_llama_chat)
    try:
        futures = [engine.submit(parse_element(t, DEFAULTS), deployed.adapters[0]) for t in TEXTS[::10]]
        assert [f.result(60).text for f in futures] == [r.text for r in replies[::10]]
    finally:
        engine.close()


def test_one_element_fails_and_the_others_answer(deployed: Deployed) -> None:
    elements = ["hi", "x" * 1_000_000, '{"instruction": "a", "top_p": "7"}', "", '{"instruction": "b"}']
    replies = deployed.ask(elements)
    assert [r.error is None for r in replies] == [True, False, False, True, True]
    assert "tokens" in (replies[1].error or "") and "top_p" in (replies[2].error or "")
    assert deployed.ask([]) == []


def test_deploying_again_changes_nothing(deployed: Deployed) -> None:
    before = deployed.pids()
    assert deployed.client.deploy(deployed.spec, deployed.functions[0]) == deployed.application
    assert deployed.pids() == before


def test_another_adapter_is_loaded_in_the_same_application_while_it_answers(deployed: Deployed) -> None:
    """Redeploying a function under load: nothing fails, and the process stays."""
    before = deployed.pids()
    stop, errors, rounds = threading.Event(), [], []

    def keep_asking() -> None:
        while not stop.is_set():
            replies = deployed.ask(TEXTS[:40])
            errors.extend(r.error for r in replies if r.error)
            rounds.append([r.text for r in replies])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        while not rounds:
            time.sleep(0.01)
        assert deployed.client.deploy(deployed.spec, deployed.functions[1]) == deployed.application
        new = [r.text for r in deployed.ask(TEXTS[:40], which=1)]
        done = len(rounds)
        while len(rounds) <= done:
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert all(texts == rounds[0] for texts in rounds) and new != rounds[0]
    assert deployed.pids() == before


def test_an_adapter_that_cannot_be_loaded_does_not_hurt_the_application(deployed: Deployed, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(str(deployed.adapters[0].directory), broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="safetensors"):
        deployed.client.deploy(deployed.spec, FunctionSpec(name="f", adapter=AdapterRef(directory=str(broken))))
    changed = AdapterRef(directory=deployed.adapters[0].directory, root_hash="what it no longer is")
    with pytest.raises(ModelError, match="has changed"):
        deployed.client.deploy(deployed.spec, FunctionSpec(name="f", adapter=changed))
    assert deployed.ask(["hi"])[0].error is None


def test_a_killed_replica_loses_no_request(deployed: Deployed) -> None:
    more = deployed.spec.model_copy(update={"replicas": 2})
    assert deployed.client.deploy(more, deployed.functions[0]) == deployed.application
    first = deployed.pids()
    _until(lambda: len(deployed.pids()) == 2)
    assert first <= deployed.pids(), "growing restarts nobody"
    expected = [r.text for r in deployed.ask(TEXTS[:60])]
    victim = min(deployed.pids())
    result: list[Any] = []
    asking = threading.Thread(target=lambda: result.extend(deployed.ask(TEXTS * 3)))
    asking.start()
    time.sleep(0.4)
    os.kill(victim, signal.SIGKILL)
    asking.join()
    assert [r.error for r in result] == [None] * (3 * len(TEXTS))
    assert [r.text for r in result[:60]] == expected
    _until(lambda: len(deployed.pids() - {victim}) == 2)  # Serve has put another one in its place


def test_what_no_node_has_is_refused_at_once(deployed: Deployed) -> None:
    asked = deployed.spec.model_copy(update={"custom": {"mastr": 0.01}})
    with pytest.raises(ResourceError) as caught:
        deployed.client.deploy(asked, None)
    assert "mastr" in caught.value.message and "`master`" in (caught.value.hint or "")
    with pytest.raises(ResourceError, match="CPU 1000"):
        deployed.client.deploy(deployed.spec.model_copy(update={"num_cpus": 1000.0}), None)
    assert set(deployed.client.status()) == {deployed.application}


def test_a_base_that_cannot_be_loaded_leaves_nothing_behind(
    deployed: Deployed, tiny_llama_chat: Path, tmp_path: Path
) -> None:
    import ray

    directory = tmp_path / "Llama-bad"
    shutil.copytree(tiny_llama_chat, directory)
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 96'))
    running = deployed.client.status()[deployed.application].replicas["RUNNING"]
    _until(lambda: len(deployed.pids()) == running)
    free = ray.available_resources().get("CPU", 0)
    spec = DeploymentSpec(owner="tester", base=BaseModelRef(directory=str(directory)), num_gpus=0)
    with pytest.raises(ModelError, match="Llama-bad.* cannot be loaded"):
        deployed.client.deploy(spec, None)
    assert set(deployed.client.status()) == {deployed.application}
    _until(lambda: ray.available_resources().get("CPU", 0) >= free)


def test_what_does_not_run_cannot_be_asked_or_removed(deployed: Deployed) -> None:
    with pytest.raises(NotFoundError) as caught:
        deployed.client.ask("byzer_ft.tester.nothing", deployed.functions[0], ["hi"])
    assert deployed.application in (caught.value.hint or "")
    assert deployed.client.remove("byzer_ft.tester.nothing") is False


def test_a_removed_application_is_gone(deployed: Deployed) -> None:
    assert deployed.client.remove(deployed.application) is True
    assert deployed.client.status() == {}
    with pytest.raises(NotFoundError):
        deployed.ask(["hi"])


def _until(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
