"""What a person asked of the machines, and what the nodes have -> how many workers with what, or a refusal.

One process a GPU, never a GPU shared or a model split. What no node can ever give is refused here, with what the
nodes have; what is only busy is planned, and waits as `queued`. Pure: knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from byzer_ft.errors import OptionError, ResourceError, did_you_mean
from byzer_ft.intents import Resources


@dataclass(frozen=True)
class NodeResources:
    """One living node. `total` and `free` are CPU, GPU and custom resources by name.

    `sees_data`: whether job directories can be read there (the node of this process, or any with BYZER_FT_SHARED).
    `pin` is a resource that only this node has.
    """

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    sees_data: bool = True
    pin: str | None = None

    def describe(self) -> str:
        shown = [f"{_number(self.total.get('CPU', 0))} CPU", f"{_number(self.total.get('GPU', 0))} GPU"]
        shown += [f"{name} {_number(amount)}" for name, amount in sorted(self.custom.items())]
        return f"{self.name}: {', '.join(shown)}"

    @property
    def custom(self) -> dict[str, float]:
        return {name: amount for name, amount in self.total.items() if name not in ("CPU", "GPU")}


@dataclass(frozen=True)
class WorkerPlan:
    """`workers` processes that reserve `resources_per_worker` each; `notes` are the choices made, for the user."""

    workers: int
    use_gpu: bool
    resources_per_worker: dict[str, float]
    notes: tuple[str, ...] = ()


def plan_workers(nodes: Sequence[NodeResources], asked: Resources) -> WorkerPlan:
    """The workers of a training job. ResourceError when the nodes can never give what was asked."""
    usable, notes = _nodes_that_see_the_data(nodes)
    usable = _nodes_with(usable, asked.custom, nodes)
    wanted = _whole_number(asked.num_gpus)
    gpus = sum(math.floor(node.total.get("GPU", 0)) for node in usable)
    cluster_gpus = sum(math.floor(node.total.get("GPU", 0)) for node in nodes)
    if wanted == 0 or (cluster_gpus == 0):
        plan = _cpu_plan(usable, asked, wanted, notes)
    else:
        plan = _gpu_plan(usable, asked, 1 if wanted is None else wanted, gpus, nodes, notes)
    _must_fit(plan, usable, nodes)
    return _pinned(plan, usable, nodes)


# ------------------------------------------------------------------------------------------------------ which nodes


def _nodes_that_see_the_data(nodes: Sequence[NodeResources]) -> tuple[list[NodeResources], list[str]]:
    usable = [node for node in nodes if node.sees_data]
    if not usable:
        raise ResourceError("no node of the cluster can read job directories", hint=_have(nodes))
    left_out = len(nodes) - len(usable)
    if not left_out:
        return usable, []
    names = ", ".join(node.name for node in usable)
    return usable, [
        f"training stays on {names}: the rows lie there and the other {left_out} node(s) do not see them "
        "(set BYZER_FT_SHARED to a mount that all nodes see)"
    ]


def _nodes_with(
    usable: list[NodeResources], custom: Mapping[str, float], nodes: Sequence[NodeResources]
) -> list[NodeResources]:
    """The nodes that have each custom resource, in total: `resource.master=0.01` names a node this way."""
    for name, amount in custom.items():
        fitting = [node for node in usable if node.total.get(name, 0) >= amount]
        if not fitting:
            known = {n for node in nodes for n in node.custom}
            raise ResourceError(
                f"no node that can be used has {_number(amount)} of resource {name!r}",
                hint="\n".join(filter(None, [None if name in known else did_you_mean(name, known), _have(nodes)])),
            )
        usable = fitting
    return usable


# ------------------------------------------------------------------------------------------------------ how many


def _whole_number(num_gpus: float | None) -> int | None:
    if num_gpus is None:
        return None
    if num_gpus != int(num_gpus):
        raise OptionError(
            f"num_gpus={_number(num_gpus)}: training takes whole GPUs, one for each worker process",
            hint='!byzerllm setup "num_gpus=1"; (a deployment may take a part of a GPU)',
        )
    return int(num_gpus)


def _cpu_plan(usable: list[NodeResources], asked: Resources, wanted: int | None, notes: list[str]) -> WorkerPlan:
    """min(asked, free CPUs) workers that share what is free; nothing free means planned for later, on the total."""
    free = sum(_available(node.free, asked.custom) for node in usable)
    total = sum(node.total.get("CPU", 0) for node in usable)
    cpus = free if free >= (asked.num_cpus or 0.5) else total
    workers = min(max(1, wanted or 1), max(1, math.floor(cpus / (asked.num_cpus or 1))))
    each = asked.num_cpus or _share(usable, workers, busy=cpus != free)
    notes = list(notes)
    if wanted:
        what = "free CPUs" if cpus == free else "CPUs (all busy now)"
        notes.append(
            f"no node has a GPU: num_gpus={wanted} runs as {workers} CPU worker(s) with {_number(each)} CPU each "
            f"({_number(cpus)} {what})"
        )
    return WorkerPlan(workers, False, {"CPU": each, **asked.custom}, tuple(notes))


def _available(free: Mapping[str, float], custom: Mapping[str, float]) -> float:
    """Free CPUs of a node, none where what was asked of its custom resources is taken."""
    if any(free.get(name, 0) < amount for name, amount in custom.items()):
        return 0.0
    return free.get("CPU", 0.0)


def _share(nodes: list[NodeResources], workers: int, *, busy: bool) -> float:
    """CPUs of each worker, so that all of them fit: a worker never spans nodes."""
    cpus = [float((node.total if busy else node.free).get("CPU", 0)) for node in nodes]
    each = sum(cpus) / workers
    while each > 0.5 and sum(math.floor(c / each + 1e-9) for c in cpus) < workers:
        each -= 0.5
    return math.floor(each * 100) / 100 if each < 1 else math.floor(each * 2) / 2


def _gpu_plan(
    usable: list[NodeResources],
    asked: Resources,
    wanted: int,
    gpus: int,
    nodes: Sequence[NodeResources],
    notes: list[str],
) -> WorkerPlan:
    workers, notes = wanted, list(notes)
    if gpus < wanted:
        if not (asked.allow_fewer and gpus):
            raise ResourceError(
                f"num_gpus={wanted}: the nodes that can be used have {gpus} GPU(s)",
                hint=f'{_have(nodes)}\nask for fewer, or set allowFewer="true" to run on what there is',
            )
        workers = gpus
        notes.append(f"num_gpus={wanted} runs on {gpus} GPU(s), all there are, since allowFewer is set")
    if asked.num_gpus is None:
        notes.append("num_gpus was not set: one GPU")
    each = asked.num_cpus or 1.0
    return WorkerPlan(workers, True, {"CPU": each, "GPU": 1.0, **asked.custom}, tuple(notes))


# ------------------------------------------------------------------------------------------------------ will it fit


def _must_fit(plan: WorkerPlan, usable: list[NodeResources], nodes: Sequence[NodeResources]) -> None:
    """Whether the workers could run at once on idle nodes; Ray would wait for ever for what can never be."""
    need = {name: amount for name, amount in plan.resources_per_worker.items() if amount > 0}
    places = sum(
        min(
            (math.floor(node.total.get(name, 0) / amount + 1e-9) for name, amount in need.items()), default=plan.workers
        )
        for node in usable
    )
    if places < plan.workers:
        wanted = ", ".join(f"{name} {_number(amount)}" for name, amount in need.items())
        raise ResourceError(
            f"{plan.workers} worker(s) with {wanted} each do not fit: the nodes have room for {places}",
            hint=_have(nodes),
        )


def _pinned(plan: WorkerPlan, usable: list[NodeResources], nodes: Sequence[NodeResources]) -> WorkerPlan:
    """Keeps the workers off nodes that cannot read the rows."""
    seeing = [node for node in usable if node.pin]
    if all(node.sees_data for node in nodes) or not seeing:
        return plan
    pins = {str(seeing[0].pin): 0.001}
    return WorkerPlan(plan.workers, plan.use_gpu, {**plan.resources_per_worker, **pins}, plan.notes)


def _have(nodes: Sequence[NodeResources]) -> str:
    return "the nodes have " + "; ".join(node.describe() for node in nodes) if nodes else "the cluster has no nodes"


def _number(value: float) -> str:
    return f"{value:g}"
