"""Deployments and questions of a session -> calls to Ray Serve, and replies or errors back.

`deploy` finds or starts the application of a base and its engine settings and makes sure that the adapter works in
it; when it raises, nothing that it started is left. `ask` answers every element: with a text, or with the reason why
there is none. Replacing a function without downtime is the session's order of calls:

1. `deploy(new)`: a new adapter version is loaded beside the old one; another base is another application;
2. write the function's catalog row; from here on it is the new one that is asked;
3. `remove(old application)` when no function uses it any more. Calls under way there are answered first.

Knows nothing of SQL, the catalog, torch or where weights lie. Imports ray inside its methods only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ByzerError, EngineError, ModelError, NotFoundError, ResourceError, did_you_mean, listing
from byzer_ft.serving.protocol import Reply, Request, parse_elements
from byzer_ft.serving.spec import AdapterRef, DeploymentSpec, FunctionSpec

if TYPE_CHECKING:
    from byzer_ft.jobs import Cluster
    from byzer_ft.settings import Settings

__all__ = ["AdapterRef", "ApplicationStatus", "DeploymentSpec", "FunctionSpec", "Reply", "ServingClient"]

log = logging.getLogger(__name__)

CHUNK = 64  # requests of one call
CHUNK_CHARACTERS = 2_000_000  # of one call, unless a single request is longer
IN_FLIGHT = 16  # calls of one `ask`
DEATHS = 4  # of replicas, until a request that was with all of them is given up
BUSY_SECONDS = 120  # a replica may wait this long for resources that others hold
ABSENT_SECONDS = 120  # questions may wait this long for an application that has no running replica


@dataclass(frozen=True)
class ApplicationStatus:
    """One application: `state` is Serve's (RUNNING, DEPLOYING, …); `engine` is what one of its replicas says."""

    application: str
    owner: str
    state: str
    message: str
    replicas: dict[str, int] = field(default_factory=dict)
    engine: dict[str, Any] | None = None


class ServingClient:
    """Serve applications of one session's owner. Safe to use from several threads."""

    def __init__(self, cluster: Cluster, settings: Settings, notice: Callable[[str], None] | None = None) -> None:
        self.cluster, self.settings = cluster, settings
        self.notice = notice or log.warning
        self._deploying = threading.Lock()
        self._told: set[str] = set()

    # -- deploying

    def deploy(self, spec: DeploymentSpec, function: FunctionSpec | None = None) -> str:
        """The application's name, running and able to answer as `function`. Asking twice changes nothing."""
        self._connect()
        spec = self._on_this_cluster(spec)
        with self._deploying:
            state = self._state(spec.application)
            started = state is None or not _usable(state)
            try:
                if started:
                    self._start(spec)
                elif state and sum(state.replicas.values()) < spec.replicas:
                    self._run(spec)
                self._until_running(spec)
                self._load(spec.application, function.adapter if function else None)
            except BaseException:
                if started:
                    self._delete(spec.application)
                raise
        return spec.application

    def _on_this_cluster(self, spec: DeploymentSpec) -> DeploymentSpec:
        """The spec with GPUs only where there are any; ResourceError for what no node can ever give."""
        nodes = self.cluster.resources()
        gpus = any(node.total.get("GPU") for node in nodes)
        if spec.num_gpus is None and gpus:
            spec = spec.model_copy(update={"num_gpus": 1.0})
            self._once("each replica takes 1 GPU; num_gpus says otherwise")
        elif not gpus and spec.num_gpus != 0:
            spec = spec.model_copy(update={"num_gpus": 0.0})
            more = "" if spec.num_cpus else "; num_cpus gives it more"
            self._once(f"there is no GPU in this cluster: each replica runs on {spec.cpus:g} CPU{more}")
        asked = spec.resources()
        if not any(all(node.total.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            known = {name for node in nodes for name in node.custom}
            typo = next((did_you_mean(name, known) for name in spec.custom if name not in known), None)
            have = "the nodes have: " + ("; ".join(node.describe() for node in nodes) or "nothing")
            raise ResourceError(
                f"no node can hold a replica: it takes {_amounts(asked)}", hint=f"{typo}\n{have}" if typo else have
            )
        return spec

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.notice(text)

    def _start(self, spec: DeploymentSpec) -> None:
        from ray import serve

        # Serve may be running already, for others; then its proxies stay as they are.
        _quiet_serve()
        serve.start(proxy_location="Disabled")
        self._delete(spec.application)
        self._run(spec)

    def _run(self, spec: DeploymentSpec) -> None:
        from ray import serve

        from byzer_ft.serving.app import application

        _quiet_serve()
        target = serve.RunTarget(application(spec, self.settings), name=spec.application, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    def _until_running(self, spec: DeploymentSpec) -> None:
        """Waits while the model loads, however long that takes, but not for resources that others keep."""
        began, told, busy_since = time.monotonic(), 15.0, None
        while True:
            state = self._state(spec.application)
            if state is None:
                raise EngineError(f"{spec.application} was removed while it was deployed")
            now, running = time.monotonic(), state.replicas.get("RUNNING", 0)
            if running:
                if running < spec.replicas:
                    self.notice(f"{running} of {spec.replicas} replicas run; the others follow when they are loaded")
                return
            if not _usable(state):
                raise _load_failure(spec, state.message)
            if "to be scheduled" in state.message:
                busy_since = busy_since or now
                if now - busy_since > BUSY_SECONDS:
                    raise self._busy(spec)
            if now - began > told:
                waits = "waits for resources that others hold" if busy_since else "is loading"
                self.notice(f"{spec.base.directory or spec.base.uri} {waits} ({now - began:.0f} s)")
                told *= 2
            time.sleep(0.2)

    def _busy(self, spec: DeploymentSpec) -> ResourceError:
        free = "; ".join(f"{node.name}: {_amounts(node.free)}" for node in self.cluster.resources())
        return ResourceError(
            f"no node had {_amounts(spec.resources())} free for {BUSY_SECONDS} s",
            hint=f"free now: {free}\nend a job or remove a model, then deploy again",
        )

    def _load(self, application: str, adapter: AdapterRef | None) -> None:
        from byzer_ft.serving.app import failure_of

        answer = self._call(application, "load", None if adapter is None else adapter.model_dump(mode="json"))
        if "failure" in answer:
            raise failure_of(answer["failure"])

    # -- asking

    def ask(
        self, application: str, function: FunctionSpec, elements: Sequence[str | None], *, plain: bool = False
    ) -> list[Reply]:
        """One reply for each element, in their order. `plain`: every element is a prompt, even if it looks like JSON.

        Raises only when nothing can be asked at all: NotFoundError for an application that does not exist.
        """
        replies: list[Reply | Request] = list(parse_elements(elements, function.defaults, plain=plain))
        places = [i for i, item in enumerate(replies) if isinstance(item, Request)]
        if places:
            self._connect()
            asking = _Asking(self, application, function)
            requests = [item for item in replies if isinstance(item, Request)]
            for place, reply in zip(places, asking.all(requests), strict=True):
                replies[place] = reply
        return [reply for reply in replies if isinstance(reply, Reply)]

    # -- looking and removing

    def remove(self, application: str) -> bool:
        """Removes an application once its calls are answered; false when there is none of that name."""
        self._connect()
        if self._state(application) is None:
            return False
        self._delete(application)
        return True

    def status(self, *, engines: bool = False) -> dict[str, ApplicationStatus]:
        """This owner's applications by name. With `engines`, a replica of each is asked for its state."""
        self._connect()
        found = [state for state in self._states() if state.owner == self.settings.owner]
        if engines:
            found = [self._with_engine(state) if state.replicas.get("RUNNING") else state for state in found]
        return {state.application: state for state in found}

    def _with_engine(self, state: ApplicationStatus) -> ApplicationStatus:
        return replace(state, engine=self._call(state.application, "status"))

    # -- below

    def _connect(self) -> None:
        self.cluster.connect()
        self.cluster.check()

    def _call(self, application: str, method: str, *args: Any) -> Any:
        """One call that is tried again while replicas come and go; not for requests."""
        for attempt in range(DEATHS):
            try:
                with _explained(application):
                    return getattr(_handle(application), method).remote(*args).result()
            except _Died as error:
                if attempt == DEATHS - 1:
                    raise EngineError(f"the replica of {application} died {DEATHS} times: {error}") from None
                time.sleep(0.5 * 2**attempt)
        raise AssertionError

    def _state(self, application: str) -> ApplicationStatus | None:
        return next((state for state in self._states() if state.application == application), None)

    def _states(self) -> Iterator[ApplicationStatus]:
        from ray import serve

        for name, app in serve.status().applications.items():
            if not name.startswith("byzer_ft."):
                continue
            replicas: dict[str, int] = {}
            messages = [app.message]
            for deployment in app.deployments.values():
                replicas |= {str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items()}
                messages.append(deployment.message)
            owner = name.removeprefix("byzer_ft.").rpartition(".")[0]
            message = "\n".join(m for m in messages if m)
            yield ApplicationStatus(name, owner, str(getattr(app.status, "value", app.status)), message, replicas)

    def _delete(self, application: str) -> None:
        from ray import serve

        if self._state(application) is not None:
            serve.delete(application)


class _Asking:
    """One `ask`: chunks on their way in a bounded number of threads, each tried again when its replica dies."""

    def __init__(self, client: ServingClient, application: str, function: FunctionSpec) -> None:
        self.client, self.application, self.function = client, application, function
        self.adapter = function.adapter.model_dump(mode="json") if function.adapter else None
        self.handle = _handle(application)
        self.stop = threading.Event()
        self.told = False

    def all(self, requests: Sequence[Request]) -> list[Reply]:
        chunks = list(_chunks(requests))
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="ask") as pool:
            futures = [pool.submit(self._chunk, chunk) for chunk in chunks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                return [reply for future in futures for reply in future.result()]
            except BaseException:  # Ctrl-C among them: what is under way is cancelled in the replicas
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _chunk(self, chunk: Sequence[Request]) -> list[Reply]:
        """A chunk's replies. One that was with two dying replicas is halved: one of its requests may kill them."""
        payload = [request.as_json() for request in chunk]
        for deaths in range(1, DEATHS + 1):
            try:
                return [self._reply(r, a) for r, a in zip(chunk, self._answers(payload), strict=True)]
            except _Died as error:
                self._tell(str(error))
                if deaths >= 2 and len(chunk) > 1:
                    half = len(chunk) // 2
                    return self._chunk(chunk[:half]) + self._chunk(chunk[half:])
                if deaths < DEATHS:
                    self.stop.wait(0.25 * 2**deaths)
            except _Refused as error:
                return [Reply.failed(error, request) for request in chunk]
        return [Reply.failed(f"{DEATHS} replicas died while they answered this", request) for request in chunk]

    def _tell(self, reason: str) -> None:
        if not self.told:
            self.told = True
            self.client.notice(f"a replica of {self.function.name} died; what it had is asked again ({reason})")

    def _answers(self, payload: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
        """The answers of a replica, whichever it is. While it takes its time, the application is looked at."""
        absent_since: float | None = None
        with _explained(self.application):
            response = self.handle.ask.remote(self.adapter, payload)
            asked = time.monotonic()
            while True:
                try:
                    answers: list[Mapping[str, Any]] = response.result(timeout_s=0.5)
                    return answers
                except TimeoutError:
                    if self.stop.is_set():
                        response.cancel()
                        raise EngineError("cancelled") from None
                if time.monotonic() - asked > 10:
                    asked = time.monotonic()
                    absent_since = self._absent(absent_since)

    def _absent(self, since: float | None) -> float | None:
        """Since when no replica runs, or None; raises when nobody will answer any more."""
        state = self.client._state(self.application)
        if state is None:
            raise NotFoundError(f"{self.application} was removed while it was asked")
        if state.replicas.get("RUNNING", 0):
            return None
        since = since or time.monotonic()
        if time.monotonic() - since > ABSENT_SECONDS:
            raise EngineError(f"{self.application} has had no running replica for {ABSENT_SECONDS} s: {state.message}")
        return since

    def _reply(self, request: Request, answer: Mapping[str, Any]) -> Reply:
        if "error" in answer:
            return Reply.failed(str(answer["error"]), request)
        metadata = {"model": self.function.name, **answer["metadata"]}
        return Reply(str(answer["text"]), None, request, metadata)


def _chunks(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Enough chunks to keep all calls busy, none of them large: neither in requests nor in text."""
    most = max(1, min(CHUNK, -(-len(requests) // IN_FLIGHT)))
    chunk: list[Request] = []
    size = 0
    for request in requests:
        length = sum(len(message["content"]) for message in request.messages)
        if chunk and (len(chunk) == most or size + length > CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += length
    if chunk:
        yield chunk


# ------------------------------------------------------------------------------------------------- Serve's exceptions


class _Died(Exception):
    """The replica that had the call is gone. Another one may answer it."""


class _Refused(Exception):
    """The call itself failed in a living replica; it would fail again."""


def _handle(application: str) -> Any:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    _quiet_serve()
    try:
        return serve.get_app_handle(application)
    except RayServeException:
        known = [n for n in serve.status().applications if n.startswith("byzer_ft.")]
        raise NotFoundError(
            f"the application {application} does not run", hint=f"running: {listing(known)}; deploy the function again"
        ) from None


def _quiet_serve() -> None:
    """Serve's router writes a line for each call that a dead replica had; `ask` says it once."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


@contextmanager
def _explained(application: str) -> Iterator[None]:
    """Turns what Ray raises into `_Died`, `_Refused` or an error for a person."""
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
    from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

    try:
        yield
    except (RayActorError, WorkerCrashedError, RequestCancelledError) as error:
        raise _Died(_first_line(error)) from None
    except DeploymentUnavailableError as error:
        raise EngineError(f"{application} cannot answer: {_first_line(error)}", hint="deploy it again") from None
    except RayTaskError as error:
        raise _Refused(_first_line(error.cause if error.cause is not None else error)) from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _usable(state: ApplicationStatus) -> bool:
    """Whether an application answers, or will when it has loaded."""
    return state.replicas.get("RUNNING", 0) > 0 or state.state in ("RUNNING", "DEPLOYING")


def _load_failure(spec: DeploymentSpec, message: str) -> ByzerError:
    from byzer_ft.serving.app import failure_in

    known = failure_in(message)
    if known is not None:
        return known
    what = spec.base.directory or spec.base.uri
    tail = "\n".join(message.strip().splitlines()[-12:])
    if "died" in message.lower():
        return ResourceError(
            f"the process that loaded {what} died, most likely for lack of memory",
            hint=f'a smaller model, or quantization="4bit"; Serve says:\n{tail}',
        )
    return ModelError(f"{what} cannot be served", hint=f"Serve says:\n{tail}")


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(resources.items())) or "nothing"
