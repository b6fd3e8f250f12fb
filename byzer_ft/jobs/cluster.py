"""Settings -> a connection to Ray: the cluster of BYZER_FT_RAY_ADDRESS, the home's running one, or a private one.

A home has at most one cluster. Who started it holds an exclusive lock on `{home}/ray.lock` for as long as it lives (the
kernel lets go of it however that process ends) and describes it in `{home}/ray.json`; others with that home join it.
A Ray that merely runs on this machine is never joined. Knows nothing of jobs or models.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from byzer_ft.errors import ResourceError
from byzer_ft.jobs.sizing import NodeResources

if TYPE_CHECKING:
    from byzer_ft.settings import Settings

Notice = Callable[[str], None]

_START_SECONDS = 90.0
_OBJECT_STORE_BYTES = (
    256 * 1024 * 1024
)  # rows and models travel as files, so little is needed, and /dev/shm may be small
_NOT_CUSTOM = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass
class _Connection:
    """This process's one connection to Ray, shared by every Cluster that asked for it."""

    key: str  # what was asked for: `address …` or `home …`
    kind: str  # private: started here; joined: another process's; borrowed: the program had connected before us
    address: str
    dashboard: str | None
    users: int = 0
    lock: IO[str] | None = None  # private: held while it lives
    home: Path | None = None
    owner_pid: int | None = None  # joined: whose private cluster it is
    stop: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)


_guard = threading.RLock()
_current: _Connection | None = None


class Cluster:
    """`connect()` once, then ask. `notice` gets the choice that was made and how to open the dashboard."""

    def __init__(self, settings: Settings, notice: Notice, *, background: bool = False) -> None:
        """`background`: this process exists to keep the cluster (`byzer-ft start`), others come and go."""
        self.settings = settings
        self._notice = notice
        self._background = background
        self._connection: _Connection | None = None

    def connect(self) -> Cluster:
        """Joins or starts Ray. ResourceError says why that cannot be."""
        global _current
        if self._connection is not None:
            return self
        _prepare_environment()
        with _guard:
            wanted = self._wanted()
            if _current is not None and _current.lost.is_set():
                _disconnect()
            if _current is None:
                atexit.register(_disconnect)
                _current = self._join_address() if self.settings.ray_address else self._home_cluster()
            elif _current.key != wanted:
                raise ResourceError(
                    f"this process is connected to Ray for {_current.key}, so it cannot connect for {wanted}",
                    hint="a process has one Ray: close the other session first, or use another process",
                )
            _current.users += 1
            self._connection = _current
        return self

    def close(self) -> None:
        """Lets go. What this process started is stopped when its last Cluster is closed; nothing else ever is."""
        with _guard:
            if self._connection is None:
                return
            self._connection.users -= 1
            if self._connection.users <= 0 and self._connection is _current:
                _disconnect()
            self._connection = None

    def __enter__(self) -> Cluster:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- asking

    @property
    def private(self) -> bool:
        """Whether it ends with this process."""
        return self._live.kind == "private"

    @property
    def dashboard(self) -> str | None:
        """Its address as a URL, None where Ray was installed without a dashboard."""
        return self._live.dashboard

    @property
    def address(self) -> str:
        return self._live.address

    @property
    def identity(self) -> str:
        """Differs for every cluster that ever was, also for one that was started again at the same address."""
        self.check()
        return str(_ray()._private.worker.global_worker.gcs_client.cluster_id.hex())

    def resources(self) -> list[NodeResources]:
        """The living nodes with their CPUs, GPUs and custom resources, in total and free now."""
        self.check()
        ray = _ray()
        here = ray.get_runtime_context().get_node_id()
        free = ray._private.state.available_resources_per_node()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [
            NodeResources(
                name=_node_name(node),
                total=_shown(node["Resources"]),
                free=_shown(free.get(node["NodeID"], {})),
                sees_data=node["NodeID"] == here or self.settings.shared is not None,
                pin=f"node:{node['NodeManagerAddress']}",
            )
            for node in nodes
        ]

    @property
    def alive(self) -> bool:
        """False once the cluster is known to be gone; asking Ray itself would hang, then end this process."""
        connection = self._connection
        return connection is not None and not connection.lost.is_set() and not _a_process_died(connection)

    def check(self) -> None:
        """ResourceError when the cluster is gone."""
        if self.alive:
            return
        pid = self._connection.owner_pid if self._connection else None
        whose = f" that process {pid} had started" if pid else ""
        raise ResourceError(
            f"the Ray cluster{whose} has ended",
            hint="run the statement again: a new cluster is started; `!show jobs;` shows what became of its jobs",
        )

    @property
    def _live(self) -> _Connection:
        if self._connection is None:
            raise ResourceError("not connected to Ray", hint="Cluster.connect() comes first")
        return self._connection

    # ------------------------------------------------------------------------------------------------- finding one

    def _wanted(self) -> str:
        address = self.settings.ray_address
        return f"address {address}" if address else f"home {self.settings.home}"

    def _join_address(self) -> _Connection:
        ray = _ray()
        address = str(self.settings.ray_address)
        if ray.is_initialized():
            connected = ray.get_runtime_context().gcs_address
            if address not in ("auto", connected):
                raise ResourceError(
                    f"this process is already connected to the Ray at {connected}, not to {address}",
                    hint=f"set BYZER_FT_RAY_ADDRESS={connected}, or call ray.shutdown() first",
                )
            return _Connection(self._wanted(), "borrowed", connected, None)
        _must_answer(address)
        context = _init(address)
        self._notice(f"using the Ray cluster at {address} (BYZER_FT_RAY_ADDRESS)")
        return _Connection(self._wanted(), "joined", context.address_info["gcs_address"], _url(context))

    def _home_cluster(self) -> _Connection:
        ray = _ray()
        if ray.is_initialized():
            raise ResourceError(
                "this process is already connected to a Ray that byzer_ft did not start",
                hint=f"to use it, set BYZER_FT_RAY_ADDRESS={ray.get_runtime_context().gcs_address}; "
                "else call ray.shutdown() first",
            )
        home = self.settings.home
        home.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            lock = _try_lock(home)
            if lock is not None:
                return self._start_private(home, lock)
            record = _read_record(home)
            if record is not None:
                return self._join_home(home, record)
            time.sleep(0.2)  # its owner is just starting it, or just ending
        raise ResourceError(
            f"another process holds {home / 'ray.lock'} but no Ray came up in {_START_SECONDS:.0f} seconds",
            hint=f"process {_lock_owner(home)} holds it: end it, or use another BYZER_FT_HOME",
        )

    def _join_home(self, home: Path, record: dict[str, Any]) -> _Connection:
        context = _init(record["address"])
        pid = int(record["pid"])
        whose = "of `byzer-ft start`" if record.get("background") else "that another session started for this home"
        self._notice(f"using the Ray {whose} (process {pid}); it ends with that process")
        connection = _Connection(
            self._wanted(),
            "joined",
            record["address"],
            _url(context) or record.get("dashboard"),
            home=home,
            owner_pid=pid,
        )
        threading.Thread(target=_watch_owner, args=(home, connection), daemon=True, name="byzer-ft-ray-watch").start()
        return connection

    def _start_private(self, home: Path, lock: IO[str]) -> _Connection:
        cpus = max(2, _cpu_count())
        self._notice(
            f"starting Ray ({cpus} CPUs)"
            if self._background
            else f"starting a private Ray ({cpus} CPUs): jobs and deployments on it end with this process "
            "(`byzer-ft start` runs one that stays)"
        )
        connection = _Connection(self._wanted(), "private", "", None, lock=lock, home=home)
        try:
            context = _in_a_thread_that_stays(lambda: _init("local", cpus), connection.stop)
        except BaseException:
            connection.stop.set()
            _shutdown_ray()
            lock.close()
            raise
        connection.address, connection.dashboard = context.address_info["gcs_address"], _url(context)
        _write_record(home, connection, background=self._background)
        self._announce_dashboard(connection.dashboard)
        return connection

    def _announce_dashboard(self, url: str | None) -> None:
        if url is None:
            installed = importlib.util.find_spec("aiohttp_cors") is not None
            self._notice(
                "Ray's dashboard did not start; jobs run without it, and `!show jobs;` shows them"
                if installed
                else "Ray's dashboard is not installed: pip install 'byzer-ft[ray]' brings it"
            )
            return
        token = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
        asks = "; it asks for the token that `ray get-auth-token` prints" if token else ""
        self._notice(f"Ray's dashboard, with jobs on its Actors page: {url}{asks}")


# ------------------------------------------------------------------------------------------------------------- Ray


def _prepare_environment() -> None:
    """Ray reads these when it is imported: no usage reports, no warnings about its future."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # see engine/spark.py: its fork handlers abort one child in seven
    }.items():
        os.environ.setdefault(name, value)


def _ray() -> Any:
    """Ray, imported now; its own types are too patchy to check against."""
    import ray

    return ray


def _init(address: str, cpus: int | None = None) -> Any:
    """ray.init without its chatter. Arguments of a new cluster are refused by Ray when it joins one."""
    if not cpus:
        _use_token()
    started = {"num_cpus": cpus, "resources": {"master": 1}, "object_store_memory": _OBJECT_STORE_BYTES} if cpus else {}
    _keep_messages_off_the_terminal()
    try:
        return _ray().init(address=address, namespace="byzer_ft", log_to_driver=False, logging_level="ERROR", **started)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        doing = "started" if cpus else f"joined at {address}"
        raise ResourceError(
            f"Ray could not be {doing}: {_first_line(error)}",
            hint="is there memory and disk left under the temporary directory?" if cpus else "is it still running?",
        ) from error


def _keep_messages_off_the_terminal() -> None:
    """Ray prints "(raylet) a worker died …" on stdout even with log_to_driver=False; a JSON result goes there.

    A job's reason says the same in fewer words, so the messages go to Python's logging.
    """
    import logging

    def log(data: dict[str, Any], **_: Any) -> None:
        logging.getLogger("byzer_ft.ray").info("%s", "\n".join(map(str, data.get("lines", ()))))

    _ray()._private.worker.print_to_stdstream = log


def _use_token() -> None:
    """Ray sends its token to a cluster that it starts, but to one that it joins only when told to."""
    import logging

    from ray._private.authentication import authentication_token_setup as setup

    level = setup.logger.level
    setup.logger.setLevel(logging.ERROR)
    try:
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    finally:
        setup.logger.setLevel(level)


def _in_a_thread_that_stays(start: Callable[[], Any], stop: threading.Event) -> Any:
    """Runs `start` in a thread that lives until `stop` is set.

    Ray asks Linux to kill its processes when their parent dies, and to Linux the parent is the *thread* that
    started them: begun in a short-lived thread of some server, the cluster would vanish with it.
    """
    answer: dict[str, Any] = {}
    ready = threading.Event()

    def run() -> None:
        try:
            answer["value"] = start()
        except BaseException as error:
            answer["error"] = error
        finally:
            ready.set()
        stop.wait()

    threading.Thread(target=run, daemon=True, name="byzer-ft-ray").start()
    try:
        ready.wait()
    except BaseException:  # Ctrl-C: what is half started must be whole before it can be stopped
        ready.wait(_START_SECONDS)
        raise
    if "error" in answer:
        raise answer["error"]
    return answer["value"]


def _disconnect() -> None:
    global _current
    with _guard:
        connection, _current = _current, None
        if connection is None:
            return
        try:
            if connection.kind != "borrowed":
                _shutdown_ray()
        finally:
            connection.stop.set()
            if connection.lock is not None and connection.home is not None:
                (connection.home / "ray.json").unlink(missing_ok=True)
                connection.lock.close()


def _shutdown_ray() -> None:
    ray = _ray()
    if ray.is_initialized():
        ray.shutdown()


def _a_process_died(connection: _Connection) -> bool:
    """Whether Ray's own processes, where this process started them, are no longer all there."""
    if connection.kind != "private":
        return False
    from ray._private.worker import _global_node

    if _global_node is None:
        return True
    return any(kind in ("raylet", "gcs_server") for kind, _ in _global_node.dead_processes())


def _must_answer(address: str) -> None:
    """A wrong address is told at once; Ray itself would try for a minute."""
    if address == "auto":
        return
    if "://" in address:
        raise ResourceError(
            f"BYZER_FT_RAY_ADDRESS={address!r}: only host:port is supported, from a machine of that cluster",
            hint="`ray start` prints host:port; a Ray Client address (ray://) cannot run jobs",
        )
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray answers at BYZER_FT_RAY_ADDRESS={address!r}: {error}",
            hint="it is host:port as `ray start --head` prints it; unset it to use a private Ray",
        ) from None


def _cpu_count() -> int:
    """CPUs that this process may use, which a container limits below what the machine has."""
    from ray._private.utils import get_num_cpus

    return min(int(get_num_cpus()), len(os.sched_getaffinity(0)))


def _url(context: Any) -> str | None:
    url = context.dashboard_url
    return f"http://{url}" if url else None


def _node_name(node: dict[str, Any]) -> str:
    """The name that pins jobs to the node (master, worker_1, …) where it has one, else its host name."""
    named = [name for name in _shown(node["Resources"]) if name not in ("CPU", "GPU")]
    return named[0] if len(named) == 1 else str(node["NodeManagerHostname"])


def _shown(resources: dict[str, float]) -> dict[str, float]:
    return {
        name: amount
        for name, amount in resources.items()
        if name in ("CPU", "GPU") or not (name in _NOT_CUSTOM or ":" in name or "_group_" in name)
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ------------------------------------------------------------------------------------------------- lock and record


def _try_lock(home: Path) -> IO[str] | None:
    """The home's lock, with our process id in it, or None while another process holds it."""
    file = (home / "ray.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    (home / "ray.json").unlink(missing_ok=True)  # of a process that was killed
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _lock_owner(home: Path) -> int | None:
    try:
        return int((home / "ray.lock").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def running(home: Path) -> dict[str, Any] | None:
    """The record of the home's cluster (address, dashboard, pid, background) while its process lives, else None."""
    if not (home / "ray.lock").exists():
        return None
    with _momentary_lock(home) as free:
        return None if free else _read_record(home)


def _write_record(home: Path, connection: _Connection, *, background: bool) -> None:
    record = {
        "format_version": 1,
        "background": background,
        "address": connection.address,
        "dashboard": connection.dashboard,
        "pid": os.getpid(),
    }
    temporary = home / f".ray.json-{os.getpid()}"
    temporary.write_text(json.dumps(record), "utf-8")
    temporary.replace(home / "ray.json")


def _read_record(home: Path) -> dict[str, Any] | None:
    """The record, if the process that holds the lock wrote it."""
    try:
        record = json.loads((home / "ray.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("pid") != _lock_owner(home):
        return None
    return record if _runs(int(record["pid"])) else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _watch_owner(home: Path, connection: _Connection) -> None:
    """Notices that the process whose cluster we joined has ended, and lets go before Ray ends us for it."""
    while not connection.stop.wait(0.5):
        with _momentary_lock(home) as free:
            if free:
                connection.lost.set()
                _shutdown_ray()
                return


@contextmanager
def _momentary_lock(home: Path) -> Iterator[bool]:
    with (home / "ray.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
