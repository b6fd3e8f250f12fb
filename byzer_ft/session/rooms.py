"""The rooms that a session works with, each opened when it is first needed and closed in the right order.

A script of nothing but `set` opens none; one that only selects never starts Ray. Knows nothing of statements.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from byzer_ft.errors import AccessError, ResourceError
from byzer_ft.paths import PathGuard
from byzer_ft.settings import Settings

if TYPE_CHECKING:
    from byzer_ft.catalog import Catalog
    from byzer_ft.engine import SparkEngine
    from byzer_ft.jobs import Cluster
    from byzer_ft.serving.client import ServingClient

Notice = Callable[[str], None]


class Rooms:
    def __init__(self, settings: Settings, notice: Notice) -> None:
        self.settings = settings
        self.notice = notice
        self.guard = PathGuard(settings.allowed_roots)

    def guard_of(self, directory: str | Path) -> PathGuard:
        """The guard for a directory that a handle names, not a statement: the house's own lie outside the roots."""
        if self.guard.roots is None:
            return self.guard
        try:
            self.guard.resolve(str(directory))
            return self.guard
        except AccessError:
            own = (
                Path(self.settings.lake_root) / self.settings.owner,
                self.settings.cache_root,
                self.settings.jobs_root,
            )
            return PathGuard((*self.guard.roots, *own))

    @cached_property
    def scratch(self) -> Path:
        """A directory for what this session computes; gone with it."""
        parent = self.settings.cache_root / "sessions"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(parent)
            return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        except OSError as error:
            raise ResourceError(
                f"the home {self.settings.home} cannot be written: {error.strerror or error}",
                hint="set BYZER_FT_HOME to a directory of yours",
            ) from None

    @cached_property
    def engine(self) -> SparkEngine:
        from byzer_ft.engine import SparkEngine

        return SparkEngine(self.settings, self.guard, self.scratch / "engine", self.notice)

    @cached_property
    def catalog(self) -> Catalog:
        from byzer_ft.catalog import Catalog

        return Catalog(self.settings.catalog_url)

    @cached_property
    def cluster(self) -> Cluster:
        """Ray, connected, with the catalog brought up to what is really running."""
        from byzer_ft.jobs import Cluster, reconcile

        cluster = Cluster(self.settings, self.notice)
        cluster.connect()
        reconcile(cluster, self.catalog, self.settings.owner)
        return cluster

    def reconcile(self) -> None:
        """Brings the catalog's jobs up to what is really running, without starting a Ray to ask for it."""
        from byzer_ft.jobs import Cluster, reconcile
        from byzer_ft.jobs.cluster import running

        if self.opened("cluster") or self.settings.ray_address or running(self.settings.home):
            reconcile(self.cluster, self.catalog, self.settings.owner)
        else:
            reconcile(Cluster(self.settings, self.notice), self.catalog, self.settings.owner)

    @cached_property
    def serving(self) -> ServingClient:
        from byzer_ft.serving.client import ServingClient

        return ServingClient(self.cluster, self.settings, self.notice)

    def opened(self, room: str) -> bool:
        """Whether `engine`, `catalog`, `cluster` or `serving` has been needed yet."""
        return room in self.__dict__

    def close(self) -> None:
        for name in ("engine", "cluster", "catalog"):
            if self.opened(name):
                getattr(self, name).close()
        if self.opened("scratch"):
            shutil.rmtree(self.scratch, ignore_errors=True)


def _remove_left_behind(parent: Path) -> None:
    """Removes the directories of sessions whose process was killed: their names begin with its id."""
    for path in parent.iterdir():
        pid = path.name.partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc").exists():
            shutil.rmtree(path, ignore_errors=True)
