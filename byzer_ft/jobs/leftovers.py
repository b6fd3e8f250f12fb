"""Ends what the processes of a killed job leave behind in Ray: the CPUs and GPUs that Ray Train had reserved.

Ray gives a reservation (placement group) of a dead actor back only when the whole driver has ended, and Ray Train's
own cleaner asks the dashboard, which not every cluster has. Knows nothing of what the job was.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_DEATH_SECONDS = 60.0  # Ray ends the processes of a dead owner within a second or two


def release(events: Iterable[Mapping[str, Any]]) -> None:
    """Waits until every controller and worker that the events name is dead, then gives back what they reserved."""
    controllers = {str(event["actor"]) for event in events if event.get("event") == "controller"}
    workers = {str(event["actor"]) for event in events if event.get("event") == "worker"}
    _wait_until_dead(controllers)
    for group in _groups_of(controllers):
        _remove(group)
    _wait_until_dead(workers)


def _wait_until_dead(actors: Collection[str]) -> None:
    deadline = time.monotonic() + _DEATH_SECONDS
    while any(_is_alive(actor) for actor in actors) and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_alive(actor: str) -> bool:
    from ray._private.state import actors

    table: Any = actors
    return table(actor).get("State") not in (None, "DEAD")


def _groups_of(creators: Collection[str]) -> list[Any]:
    """The placement groups that these actors made; Ray's public table does not say who made one."""
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated import gcs_pb2

    accessor: Any = state._connect_and_get_accessor()
    messages: Any = gcs_pb2
    groups = [messages.PlacementGroupTableData.FromString(found) for found in accessor.get_placement_group_table()]
    return [
        PlacementGroupID(group.placement_group_id)
        for group in groups
        if group.creator_actor_id.hex() in creators and group.state != messages.PlacementGroupTableData.REMOVED
    ]


def _remove(group: Any) -> None:
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove: Any = remove_placement_group
    remove(PlacementGroup(group))
