"""What was asked and what the nodes have -> workers, or a refusal that says what there is."""

from __future__ import annotations

import pytest

from byzer_ft.errors import OptionError, ResourceError
from byzer_ft.intents import Resources
from byzer_ft.jobs import NodeResources, plan_workers


def node(
    name: str = "master",
    *,
    cpu: float = 2,
    gpu: float = 0,
    free: float | None = None,
    sees: bool = True,
    **custom: float,
) -> NodeResources:
    total = {"CPU": cpu, **({"GPU": gpu} if gpu else {}), **custom}
    left = {**total, "CPU": cpu if free is None else free}
    return NodeResources(name, total, left, sees_data=sees, pin=f"node:{name}")


def test_four_gpus_where_there_is_none_are_cpu_workers_with_the_reason() -> None:
    plan = plan_workers([node(cpu=2)], Resources(num_gpus=4))
    assert (plan.workers, plan.use_gpu, plan.resources_per_worker) == (2, False, {"CPU": 1})
    assert "no node has a GPU: num_gpus=4 runs as 2 CPU worker(s)" in plan.notes[0]


@pytest.mark.parametrize(
    ("cpu", "free", "gpus", "workers", "each"),
    [
        (8, 8, 4, 4, 2),  # what is free, divided
        (8, 8, 1, 1, 8),
        (8, 3, 4, 3, 1),  # min(asked, free)
        (2, 1.5, 4, 1, 1.5),  # beside a deployment, which takes a half
        (2, 0, 4, 2, 1),  # all busy: planned on the total, and queued
        (2, 0, 1, 1, 2),
    ],
)
def test_cpu_workers(cpu: float, free: float, gpus: int, workers: int, each: float) -> None:
    plan = plan_workers([node(cpu=cpu, free=free)], Resources(num_gpus=gpus))
    assert (plan.workers, plan.resources_per_worker) == (workers, {"CPU": each})


def test_a_worker_never_spans_nodes() -> None:
    plan = plan_workers([node("a", cpu=2), node("b", cpu=1)], Resources(num_gpus=2))
    assert (plan.workers, plan.resources_per_worker) == (2, {"CPU": 1})


def test_cpus_for_each_worker_limit_their_number() -> None:
    plan = plan_workers([node(cpu=8)], Resources(num_gpus=4, num_cpus=3))
    assert (plan.workers, plan.resources_per_worker) == (2, {"CPU": 3})


def test_nothing_said_is_one_worker_without_a_notice() -> None:
    plan = plan_workers([node(cpu=2)], Resources())
    assert (plan.workers, plan.use_gpu, plan.notes) == (1, False, ())


def test_one_process_for_each_gpu() -> None:
    plan = plan_workers([node(cpu=16, gpu=4)], Resources(num_gpus=4))
    assert (plan.workers, plan.use_gpu, plan.resources_per_worker) == (4, True, {"CPU": 1, "GPU": 1})


def test_busy_gpus_are_waited_for() -> None:
    busy = NodeResources("master", {"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 0})
    assert plan_workers([busy], Resources(num_gpus=2)).workers == 2


def test_fewer_gpus_than_asked_are_refused_with_what_there_is() -> None:
    nodes = [node(cpu=8, gpu=1), node("worker_1", cpu=8, gpu=1)]
    with pytest.raises(ResourceError, match=r"num_gpus=4: the nodes that can be used have 2 GPU\(s\)") as error:
        plan_workers(nodes, Resources(num_gpus=4))
    assert "master: 8 CPU, 1 GPU; worker_1: 8 CPU, 1 GPU" in str(error.value.hint)
    assert 'allowFewer="true"' in str(error.value.hint)


def test_allow_fewer_runs_on_what_there_is_and_says_so() -> None:
    plan = plan_workers([node(cpu=8, gpu=2)], Resources(num_gpus=4, allow_fewer=True))
    assert (plan.workers, plan.use_gpu) == (2, True)
    assert "num_gpus=4 runs on 2 GPU(s)" in plan.notes[0]


def test_no_gpu_wanted_on_a_cluster_with_gpus() -> None:
    plan = plan_workers([node(cpu=8, gpu=2)], Resources(num_gpus=0))
    assert (plan.workers, plan.use_gpu, plan.resources_per_worker) == (1, False, {"CPU": 8})


def test_half_a_gpu_is_for_deployments() -> None:
    with pytest.raises(OptionError, match="num_gpus=0.5: training takes whole GPUs"):
        plan_workers([node(gpu=1)], Resources(num_gpus=0.5))


def test_a_custom_resource_names_a_node() -> None:
    nodes = [node(cpu=2, master=1), node("worker_1", cpu=8, worker_1=1)]
    plan = plan_workers(nodes, Resources(custom={"master": 0.01}))
    assert plan.resources_per_worker == {"CPU": 2, "master": 0.01}


def test_a_custom_resource_that_no_node_has_is_refused_at_once() -> None:
    nodes = [node(master=1), node("worker_1", worker_1=1)]
    with pytest.raises(ResourceError, match="no node that can be used has 0.01 of resource 'worker_3'") as error:
        plan_workers(nodes, Resources(custom={"worker_3": 0.01}))
    assert "did you mean `worker_1`?\nthe nodes have master: 2 CPU, 0 GPU, master 1; worker_1:" in str(error.value.hint)
    with pytest.raises(ResourceError) as error:
        plan_workers(nodes, Resources(custom={"master": 7}))
    assert "master 1" in str(error.value.hint)


def test_a_custom_resource_counts_for_each_worker() -> None:
    with pytest.raises(ResourceError, match="do not fit: the nodes have room for 1"):
        plan_workers([node(cpu=4, master=1)], Resources(num_gpus=2, custom={"master": 0.6}))


def test_more_cpus_than_any_node_has_are_refused() -> None:
    with pytest.raises(ResourceError, match="1 worker.s. with CPU 64 each do not fit") as error:
        plan_workers([node(cpu=2)], Resources(num_cpus=64))
    assert "master: 2 CPU, 0 GPU" in str(error.value.hint)


def test_training_stays_where_the_rows_are() -> None:
    nodes = [node(cpu=4), node("worker_1", cpu=64, gpu=8, sees=False)]
    plan = plan_workers(nodes, Resources(num_gpus=0))
    assert plan.resources_per_worker == {"CPU": 4, "node:master": 0.001}
    assert "BYZER_FT_SHARED" in plan.notes[0]
    with pytest.raises(ResourceError, match=r"have 0 GPU\(s\)"):
        plan_workers(nodes, Resources(num_gpus=8))


def test_a_shared_mount_uses_every_node() -> None:
    plan = plan_workers([node(cpu=4, gpu=1), node("worker_1", cpu=4, gpu=1)], Resources(num_gpus=2))
    assert plan.resources_per_worker == {"CPU": 1, "GPU": 1}
