"""One home, one cluster: started, joined, killed, and never a process left behind. Each cluster here is a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import ConflictError, NotFoundError, ResourceError
from byzer_ft.jobs import Cluster
from byzer_ft.jobs.cluster import running
from byzer_ft.jobs.head import start, stop
from byzer_ft.settings import Settings

_SESSION = """
import json, sys, threading
from byzer_ft.errors import ByzerError
from byzer_ft.jobs import Cluster
from byzer_ft.settings import load_settings

notices = []
cluster = Cluster(load_settings(), notices.append)
thread = threading.Thread(target=cluster.connect)  # Ray must outlive the thread that started it
thread.start()
thread.join()
print(json.dumps({"private": cluster.private, "dashboard": cluster.dashboard, "notices": notices,
                  "identity": cluster.identity, "nodes": [n.describe() for n in cluster.resources()]}), flush=True)
if sys.stdin.readline() == "wait until it is gone\\n":
    while cluster.alive:
        pass
    try:
        cluster.identity
    except ByzerError as error:
        print(json.dumps(error.as_dict()), flush=True)
cluster.close()
"""


class _Session:
    """Another process with a home, as a second terminal would be."""

    def __init__(self, home: Path) -> None:
        env = os.environ | {"BYZER_FT_HOME": str(home)}
        env.pop("RAY_AUTH_MODE", None)  # this process may have set it by starting a Ray of its own
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SESSION], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, seconds: float = 60) -> int:
        code = self.process.wait(seconds)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()


def _descendants(pid: int) -> list[Any]:
    import psutil

    return list(psutil.Process(pid).children(recursive=True))


def _wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _gone(processes: list[Any]) -> bool:
    import psutil

    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.ray
@pytest.mark.slow
def test_a_home_has_one_cluster_which_ends_with_the_process_that_started_it(home: Path) -> None:
    assert running(home) is None
    first = _Session(home)
    started = first.answer()
    assert started["private"]
    assert "starting a private Ray" in started["notices"][0]
    assert "byzer-ft start" in started["notices"][0]
    assert started["dashboard"] in started["notices"][1]
    assert "get-auth-token" in started["notices"][1]
    assert len(started["nodes"]) == 1
    assert "master 1" in started["nodes"][0]
    record = running(home)
    assert record is not None
    assert (record["pid"], record["background"]) == (first.process.pid, False)

    second = _Session(home)
    joined = second.answer()
    assert (joined["private"], joined["identity"]) == (False, started["identity"])
    assert f"process {first.process.pid}" in joined["notices"][0]

    family = _descendants(first.process.pid)
    assert any("raylet" in process.name() for process in family)
    second.say("wait until it is gone")
    first.say("end")
    error = second.answer()  # it is told so, instead of hanging
    assert error["type"] == "ResourceError"
    assert f"process {first.process.pid} had started has ended" in error["message"]
    assert (first.end(), second.end()) == (0, 0)
    assert _wait_for(lambda: _gone(family))
    assert not (home / "ray.json").exists()
    assert running(home) is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_session_leaves_nothing_in_the_way_of_a_background_cluster(home: Path) -> None:
    killed = _Session(home)
    killed.answer()
    family = _descendants(killed.process.pid)
    agents = [process for process in family if process.name().endswith("Agent")]
    held = [process for process in family if process not in agents]
    killed.kill()
    # Ray's two agents of a node notice only a minute later; everything that holds memory or CPUs is gone at once.
    assert len(agents) <= 2
    assert _wait_for(lambda: _gone(held))
    assert (home / "ray.json").exists()
    assert running(home) is None
    _a_background_cluster_serves_sessions(home)


def _a_background_cluster_serves_sessions(home: Path) -> None:
    """`byzer-ft start`, a session, `byzer-ft stop`."""
    settings = Settings(home=home)
    record = start(settings)
    assert record["background"]
    assert running(home) == record
    with pytest.raises(ConflictError, match=f"kept by process {record['pid']}"):
        start(settings)
    session = _Session(home)
    answer = session.answer()
    assert not answer["private"]
    assert "`byzer-ft start`" in answer["notices"][0]
    session.say("end")
    assert session.end() == 0
    assert running(home) == record  # a session that leaves takes nothing along
    assert stop(settings) == record["pid"]
    assert running(home) is None
    with pytest.raises(NotFoundError, match="no Ray runs"):
        stop(settings)


@pytest.mark.ray
def test_a_cluster_that_is_not_ours_is_joined_by_its_address_only(ray_cluster: str, home: Path) -> None:
    notices: list[str] = []
    with pytest.raises(ResourceError, match="did not start") as error:
        Cluster(Settings(home=home), notices.append).connect()
    assert f"BYZER_FT_RAY_ADDRESS={ray_cluster}" in str(error.value.hint)
    with pytest.raises(ResourceError, match="already connected to the Ray at"):
        Cluster(Settings(home=home, ray_address="10.0.0.1:6379"), notices.append).connect()
    cluster = Cluster(Settings(home=home, ray_address=ray_cluster), notices.append).connect()
    assert (cluster.private, cluster.address, cluster.alive) == (False, ray_cluster, True)
    (node,) = cluster.resources()
    assert (node.name, node.total["CPU"], node.total["master"]) == ("master", 4, 1)
    cluster.close()
    import ray

    assert ray.is_initialized()  # we did not start it, so it stands


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "no Ray answers"), ("ray://127.0.0.1:10001", "only host:port"), ("nonsense", "no Ray answers")],
)
def test_a_wrong_address_is_refused_at_once(address: str, message: str, home: Path) -> None:
    program = (
        "from byzer_ft.errors import ResourceError\nfrom byzer_ft.jobs import Cluster\n"
        "from byzer_ft.settings import load_settings\n"
        "try:\n    Cluster(load_settings(), print).connect()\n"
        "except ResourceError as error:\n    print(error.message)\n"
    )
    env = os.environ | {"BYZER_FT_HOME": str(home), "BYZER_FT_RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert message in done.stdout


def test_a_home_without_a_cluster(home: Path) -> None:
    assert running(home) is None
    (home / "ray.json").write_text(json.dumps({"address": "127.0.0.1:1", "pid": os.getpid()}))
    (home / "ray.lock").write_text(str(os.getpid()))
    assert running(home) is None  # nobody holds the lock, whatever the record says
