"""`byzer-ft start`: a background process that keeps the home's Ray until it is told to stop.

It holds the home's lock as any session with a private Ray does, so that sessions find and join it; jobs and deployments
live as long as it does. Its log is `{home}/ray_head.log`. Knows nothing of sessions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ConflictError, NotFoundError, ResourceError

if TYPE_CHECKING:
    from byzer_ft.settings import Settings

_START_SECONDS = 90.0
_STOP_SECONDS = 60.0


def start(settings: Settings) -> dict[str, Any]:
    """Starts the process and returns the record of its Ray: address, dashboard, pid. ConflictError: one stands."""
    from byzer_ft.jobs.cluster import running

    found = running(settings.home)
    if found is not None:
        raise ConflictError(
            f"a Ray already runs for {settings.home}, kept by process {found['pid']}",
            hint="use it, or stop it first: byzer-ft stop",
        )
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / "ray_head.log"
    env = os.environ | {"BYZER_FT_HOME": str(settings.home), "BYZER_FT_OWNER": settings.owner}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "byzer_ft.jobs.head"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,  # a Ctrl-C at this terminal is not meant for it
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        found = running(settings.home)
        if found is not None and found["pid"] == process.pid:
            process.returncode = 0  # left running on purpose: subprocess is not to warn that nobody waits for it
            return found
        if process.poll() is not None:
            raise ResourceError(f"Ray did not start: {_last_line(log)}", hint=f"its log is {log}")
        time.sleep(0.2)
    process.terminate()
    raise ResourceError(f"Ray did not start in {_START_SECONDS:.0f} seconds", hint=f"its log is {log}")


def stop(settings: Settings) -> int:
    """Ends the home's background Ray and everything on it; the process id it had."""
    from byzer_ft.jobs.cluster import running

    found = running(settings.home)
    if found is None:
        raise NotFoundError(f"no Ray runs for {settings.home}", hint="byzer-ft start runs one")
    if not found.get("background"):
        raise ConflictError(
            f"the Ray of {settings.home} belongs to a session, process {found['pid']}", hint="it ends with that session"
        )
    pid = int(found["pid"])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while running(settings.home) is not None:
        if time.monotonic() > deadline:
            raise ResourceError(f"process {pid} has not ended in {_STOP_SECONDS:.0f} seconds", hint=f"kill {pid}")
        time.sleep(0.2)
    return pid


def main() -> None:
    """The background process: connects, waits for SIGTERM or SIGINT, lets go of everything."""
    from byzer_ft.jobs.cluster import Cluster
    from byzer_ft.settings import load_settings

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    settings = load_settings().model_copy(update={"ray_address": None})
    cluster = Cluster(settings, lambda text: print(text, flush=True), background=True).connect()
    try:
        while not ended.wait(1.0) and cluster.alive:
            pass
    finally:
        cluster.close()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    main()
