"""A deployment -> a Ray Serve application: replicas that hold an engine each and answer chunks of requests.

One remote call carries many requests, since the call costs more than a short answer; the engine batches across
calls. Weights never travel through Ray: each replica reads them from a directory of its node, or restores them from
the lake into the node's cache. Knows nothing of SQL, the catalog or who calls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray import serve

from byzer_ft import errors
from byzer_ft.errors import ByzerError, EngineError, ModelError
from byzer_ft.modeldir import BUILTIN, ModelDir, open_model_dir
from byzer_ft.paths import PathGuard
from byzer_ft.serving.protocol import Reply, Request
from byzer_ft.serving.spec import REPLICA_VERSION, AdapterRef, DeploymentSpec
from byzer_ft.settings import Settings

log = logging.getLogger(__name__)

MAX_ONGOING = 256  # calls a replica holds; Serve's default of 5 would leave the engine waiting
DEPLOYMENT = "model"
_MARK = "BYZER_FT_FAILURE "


def application(spec: DeploymentSpec, settings: Settings) -> serve.Application:
    """What `serve.run` takes. Nothing in it changes with the number of replicas but that number."""
    asked = spec.resources()
    deployment = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=spec.replicas,
        max_ongoing_requests=MAX_ONGOING,
        max_constructor_retry_count=1,  # what fails to load once fails again: its reason shall be known at once
        health_check_period_s=10,
        health_check_timeout_s=60,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=60,
        logging_config={"enable_access_log": False, "log_level": "INFO"},
        ray_actor_options={
            "num_cpus": asked.pop("CPU"),
            "num_gpus": asked.pop("GPU", 0),
            "resources": asked,
        },
    )
    # With a version of its own, changing the number of replicas restarts none of them; without, Serve draws one.
    versioned = deployment.options(version=f"{version('byzer-ft')}.{REPLICA_VERSION}", _internal=True)
    bound = spec.model_copy(update={"replicas": 1})
    return versioned.bind(bound.model_dump(mode="json"), _for_replicas(settings))


def _for_replicas(settings: Settings) -> dict[str, Any]:
    """The settings a replica needs: no catalog address, no tokens."""
    return settings.model_dump(
        mode="json", include={"home", "owner", "allowed_roots", "allow_pickle", "trust_remote_code"}
    )


class Replica:
    """One engine in a Serve replica. A failure to load carries its reason as JSON, which `failure_in` finds again."""

    def __init__(self, spec: dict[str, Any], settings: dict[str, Any]) -> None:
        self.spec = DeploymentSpec.model_validate(spec)
        self.settings = Settings.model_validate(settings)
        self._prepare = ThreadPoolExecutor(4, thread_name_prefix="prepare")
        self._places = Places(self.settings.cache_root)
        _quiet()
        try:
            self.engine = self._engine()
        except BaseException as error:
            log.exception("the model cannot be loaded")
            raise RuntimeError(_MARK + json.dumps(_described(error))) from None

    # -- what is called

    async def ask(self, adapter: dict[str, Any] | None, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers in the order of the requests: `{"text", "metadata"}` or `{"error"}`."""
        ref = None if adapter is None else AdapterRef.model_validate(adapter)
        loop = asyncio.get_running_loop()
        futures = await loop.run_in_executor(self._prepare, self._submit, requests, ref)
        done = await asyncio.gather(*(asyncio.wrap_future(f) for f in futures), return_exceptions=True)
        if self.engine.broken:
            log.error("leaving: %s", self.engine.broken)
            os._exit(70)  # a process whose GPU context is lost cannot be mended; Serve starts another
        return [_answer(outcome, ref) for outcome in done]

    async def load(self, adapter: dict[str, Any] | None) -> dict[str, Any]:
        """Loads an adapter and answers a token with it: `{"loaded": …}` or `{"failure": …}`."""
        ref = None if adapter is None else AdapterRef.model_validate(adapter)
        try:
            return {"loaded": await asyncio.to_thread(self.engine.load, ref)}
        except Exception as error:
            return {"failure": _described(error)}

    async def status(self) -> dict[str, Any]:
        return self.engine.info() | {"pid": os.getpid(), "base": str(self.spec.base.directory)}

    def check_health(self) -> None:
        if self.engine.broken:
            raise RuntimeError(self.engine.broken)

    # -- below

    def _engine(self) -> Any:
        from byzer_ft.serving.engine import EngineOptions, TransformersEngine

        base = self.spec.base
        directory = self._places.find(AdapterRef(**base.model_dump()))
        return TransformersEngine(
            self._open(directory),
            locate=self._places.find,
            open_adapter=lambda place: self._open(place, base=directory),
            options=EngineOptions(
                device="cuda" if self.spec.num_gpus else "cpu",
                quantization=self.spec.quantization,
                threads=max(1, int(self.spec.cpus)),
            ),
        )

    def _submit(self, requests: list[dict[str, Any]], adapter: AdapterRef | None) -> list[Future[Any]]:
        return [self.engine.submit(Request.from_json(request), adapter) for request in requests]

    def _open(self, directory: Path, base: Path | None = None) -> ModelDir:
        roots = self.settings.allowed_roots
        guard = PathGuard(None if roots is None else (*roots, self.settings.cache_root))
        return open_model_dir(
            str(directory),
            guard=guard,
            settings=self.settings,
            family=self.spec.family,
            allow_pickle=self.spec.allow_pickle,
            trust_remote_code=self.spec.trust_remote_code,
            base=None if base is None else str(base),
        )


class Places:
    """Where the files of a model or adapter lie on this node: what was named, else a copy from the lake."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._known: dict[AdapterRef, Path] = {}
        self._lock = threading.Lock()

    def find(self, ref: AdapterRef) -> Path:
        known = self._known.get(ref)
        if known is not None and known.is_dir():
            return known
        with self._lock:  # two calls for a version that is not here yet copy it once
            place = self._find(ref)
            if ref.root_hash:
                self._known[ref] = place
            return place

    def _find(self, ref: AdapterRef) -> Path:
        from byzer_ft import lake

        here = Path(ref.directory) if ref.directory else None
        if here and ref.directory and (ref.directory.startswith(BUILTIN) or (here.is_dir() and not ref.root_hash)):
            return here
        if here and here.is_dir():
            if lake.root_hash(here, self.cache) == ref.root_hash:
                return here
            if not ref.uri:
                raise ModelError(f"{here} has changed since it was deployed", hint="deploy the function again")
        if ref.uri:
            return self._from_lake(ref.uri, ref)
        if here is None:
            raise ModelError("neither a directory nor a lake address was given for a model")
        return here  # whoever opens it says what is wrong with it

    def _from_lake(self, uri: str, ref: AdapterRef) -> Path:
        from byzer_ft import lake

        number = ref.version
        if number is None and ref.root_hash:
            found = lake.find_version(uri, ref.root_hash)
            if found is None:
                raise ModelError(
                    f"no version of {uri} has the content {ref.root_hash} that was deployed",
                    hint="deploy the function again, from what is there now",
                )
            number = found.version
        return lake.materialize(uri, number, self.cache)


def _quiet() -> None:
    """Libraries that draw progress bars into a log, or say one sentence for each layer and step."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _answer(outcome: Any, adapter: AdapterRef | None) -> dict[str, Any]:
    if isinstance(outcome, BaseException):
        return {"error": Reply.failed(outcome).error}
    metadata = {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "finish_reason": outcome.finish,
        "adapter": adapter.root_hash or adapter.directory if adapter else None,
    }
    return {"text": outcome.text, "metadata": metadata}


# --------------------------------------------------------------------------------- errors that cross process borders


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ByzerError):
        return {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return {"type": "ModelError", "message": f"{type(error).__name__}: {str(error)[:2000]}", "hint": None}


def failure_of(described: Mapping[str, Any]) -> ByzerError:
    """The error that a replica described, as the type it had there."""
    kind = getattr(errors, str(described.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, ByzerError)):
        kind = EngineError
    return kind(str(described.get("message")), hint=described.get("hint"))


def failure_in(text: str) -> ByzerError | None:
    """The failure that a replica wrote into an exception, found in Serve's message about it."""
    found = re.search(re.escape(_MARK) + r"(\{.*\})", text)
    if found is None:
        return None
    try:
        return failure_of(json.loads(found.group(1)))
    except ValueError:
        return ModelError(found.group(1)[:2000])
