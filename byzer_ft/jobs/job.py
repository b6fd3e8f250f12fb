"""Starts a job's actor, follows what it writes, stops it, and finds jobs whose actor is gone.

The state of a job is read from its catalog row and its directory, never asked of the actor, so that nothing here can
hang with it. Knows nothing of training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ConflictError
from byzer_ft.jobs.directory import JobDirectory, JobSpec
from byzer_ft.jobs.leftovers import release

if TYPE_CHECKING:
    from byzer_ft.catalog import Catalog, JobRow
    from byzer_ft.jobs.cluster import Cluster

_FOLLOW_SECONDS = 0.2
_CHECK_SECONDS = 2.0
_STAGING_SECONDS = 3600.0  # a job without job.json is still being staged, but not for ever


def default_name(owner: str) -> str:
    """`sft-{owner}-{YYYYmmdd-HH-MM-SS}`, as the original names its jobs."""
    return f"sft-{owner}-{time.strftime('%Y%m%d-%H-%M-%S')}"


def namespace(owner: str) -> str:
    """Where the owner's actors live: names of two owners never meet."""
    return f"byzer_ft.{owner}"


def start_job(cluster: Cluster, catalog: Catalog, spec: JobSpec) -> JobHandle:
    """Starts the detached actor `spec.name`; its rows are staged and its catalog row exists. Returns at once."""
    import ray

    from byzer_ft.jobs.actor import JobActor

    cluster.check()
    JobDirectory(spec.directory).write_request(spec, cluster.identity)
    remote: Any = ray.remote  # its overloads do not know all of its options
    actor = remote(num_cpus=0, max_restarts=-1, max_concurrency=8, concurrency_groups={"reports": 1})(JobActor)
    try:
        actor.options(
            name=spec.name, namespace=namespace(spec.owner), lifetime="detached", scheduling_strategy=_this_node()
        ).remote(spec.directory, catalog.url)
    except ValueError as error:
        if "already" not in str(error):
            raise
        raise ConflictError(
            f"an actor named {spec.name!r} is already running",
            hint=f"choose another name, wait for it, or stop it: !byzerllm model remove {spec.name};",
        ) from None
    return JobHandle(cluster, catalog, spec.uid)


def _this_node() -> Any:
    """The node that holds the job's directory and the catalog's file, which the actor writes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def job_handle(cluster: Cluster, catalog: Catalog, uid: str) -> JobHandle:
    return JobHandle(cluster, catalog, uid)


class JobHandle:
    """A job by its uid, whether it still runs or ended long ago."""

    def __init__(self, cluster: Cluster, catalog: Catalog, uid: str) -> None:
        row = catalog.job_by_uid(uid)
        self.uid, self.owner, self.name = uid, row.owner, row.name
        self.directory = JobDirectory(row.directory)
        self._cluster = cluster
        self._catalog = catalog

    def status(self) -> JobRow:
        """The catalog's row, after it was brought up to what is really running."""
        row = self._catalog.job_by_uid(self.uid)
        if row.active:
            _reconcile_one(self._cluster, self._catalog, row)
            row = self._catalog.job_by_uid(self.uid)
        return row

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event from the beginning on, as they come; ends when the job has ended, however it did."""
        offset, checked = 0, time.monotonic()
        while True:
            row = self._catalog.job_by_uid(self.uid)
            if row.active and time.monotonic() - checked > _CHECK_SECONDS:
                row, checked = self.status(), time.monotonic()
            # Read after the state: what was written before the end was written is not missed.
            events, offset = self.directory.read_events(offset)
            yield from events
            if not row.active:
                return
            if not events:
                time.sleep(_FOLLOW_SECONDS)

    def wait(self, on_event: Callable[[Mapping[str, Any]], None] | None = None) -> JobRow:
        """Follows the job to its end. Ctrl-C raises KeyboardInterrupt here and leaves the job alone."""
        for event in self.events():
            if on_event is not None:
                on_event(event)
        return self.status()

    def stop(self, reason: str = "stopped by its owner", grace_seconds: float = 30.0) -> JobRow:
        """Stops the job at its next step, by force after the grace period. Returns when it has ended."""
        import ray

        row = self.status()
        actor = _actor(row) if row.active else None
        if actor is not None:
            try:
                ray.get(actor.stop.remote(reason, grace_seconds), timeout=grace_seconds + 30)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                ray.kill(actor, no_restart=True)  # it ended just now, or does not answer: reconciled below
        return self.wait()


# ---------------------------------------------------------------------------------------------------- lost jobs


def reconcile(cluster: Cluster, catalog: Catalog, owner: str | None = None) -> list[JobRow]:
    """Brings active rows up to what is really running; the rows that changed.

    A job that wrote its result has ended so; a job without an actor is `lost`. Jobs of another cluster that may
    still stand are left alone.
    """
    active = [row for row in catalog.jobs(owner) if row.active]
    return [catalog.job_by_uid(row.uid) for row in active if _reconcile_one(cluster, catalog, row)]


def _reconcile_one(cluster: Cluster, catalog: Catalog, row: JobRow) -> bool:
    if _has_actor(cluster, row):
        return False
    directory = JobDirectory(row.directory)
    result = directory.read_result()
    if result is not None:
        ready = result["state"] == "succeeded"
        model = {"directory": result["final"]} if ready else {"reason": result.get("reason")}
        catalog.finish_model(row.uid, state="ready" if ready else "failed", **model)
        values = {key: result.get(key) for key in ("state", "reason", "hint", "tail", "summary", "ended_at")}
        catalog.update_job(row.uid, **values)
        return True
    if catalog.job_by_uid(row.uid).active and not _elsewhere(cluster, row, directory):
        if cluster.alive and directory.cluster_id() == cluster.identity:
            release(directory.read_events()[0])
        _lost(catalog, row, directory)
        return True
    return False


def _has_actor(cluster: Cluster, row: JobRow) -> bool:
    return cluster.alive and _actor(row) is not None


def _actor(row: JobRow) -> Any:
    import ray

    try:
        return ray.get_actor(row.name, namespace=namespace(row.owner))
    except ValueError:
        return None


def _elsewhere(cluster: Cluster, row: JobRow, directory: JobDirectory) -> bool:
    """Whether the job may live where we cannot look: still being staged, or on a cluster that is not ours."""
    home = directory.cluster_id()
    if home is None:
        return time.time() - row.created_at < _STAGING_SECONDS
    if not cluster.alive:
        return False
    return home != cluster.identity and not cluster.private


def _lost(catalog: Catalog, row: JobRow, directory: JobDirectory) -> None:
    checkpoint = directory.last_checkpoint()
    reason = "its actor is gone: the cluster it ran on has ended, or its node was lost"
    if directory.cluster_id() is None:
        reason = "the process that was preparing its rows ended before the job started"
    hint = f"its last checkpoint is {checkpoint}" if checkpoint else "it left no checkpoint: run the statement again"
    catalog.finish_model(row.uid, state="failed", reason=f"job {row.name} was lost: {reason}")
    catalog.update_job(row.uid, state="lost", reason=reason, hint=hint)
