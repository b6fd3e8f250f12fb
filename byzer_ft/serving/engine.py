"""A base model with its adapters, and requests -> completions. Runs beside a GPU, or on the CPUs it is given.

`Engine` is the interface of all engines; `TransformersEngine` is the one for transformers and PEFT. It keeps one
base and any number of unmerged LoRA adapters on it, takes whatever is queued, sorts it by length, and answers it in
batches whose rows may use different adapters and different parameters. A row that is done leaves its batch; a batch
that fails is split until the row that cannot be answered is alone.
Knows nothing of Ray, SQL, the lake or where files come from: directories are found by a function it is given.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from byzer_ft.errors import ByzerError, DataError, EngineError, ModelError
from byzer_ft.modeldir import ModelDir
from byzer_ft.serving.adapters import Adapters, Loadable, Voice, voice_of
from byzer_ft.serving.loading import context_length, default_batch_tokens, forward_arguments, load_model, reason_of
from byzer_ft.serving.protocol import Generation, Request
from byzer_ft.serving.sampling import pick
from byzer_ft.serving.spec import AdapterRef, files_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """An answer. `finish`: `stop` (the model or a stop text ended it) or `length` (it was cut)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: str


class Engine(Protocol):
    """What a replica needs of an engine. Call it from any thread but an event loop's: an adapter may be loading.

    What is wrong with a request alone is in its future. Cancelling a future frees its slot.
    """

    broken: str | None  # why the device cannot be used any more: the replica must go

    def submit(self, request: Request, adapter: AdapterRef | None) -> Future[Completion]: ...
    def load(self, adapter: AdapterRef | None) -> dict[str, Any]: ...
    def info(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class EngineOptions:
    """How a `TransformersEngine` runs. Nothing here changes what is answered, except the quantization."""

    device: str = "cpu"  # or `cuda`
    quantization: str = "none"  # or `4bit`, `8bit`
    threads: int = 1
    max_rows: int = 64  # of a batch
    batch_tokens: int | None = None  # prompt and answer tokens of a batch, padding included; None: from the memory
    max_adapters: int = 32  # kept loaded; the longest unused one makes room


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(eq=False)
class _Row:
    """One request on its way: its tokens, what was generated, and the future that waits for it."""

    request: Request
    adapter: Loadable | None
    voice: Voice
    ids: list[int]
    room: int
    future: Future[Completion]
    made: list[int] = field(default_factory=list)
    finish: str | None = None
    generator: torch.Generator | None = None

    @property
    def settings(self) -> Generation:
        return self.request.generation

    @property
    def cost(self) -> int:
        return len(self.ids) + self.room

    @property
    def key(self) -> str | None:
        return self.adapter.key if self.adapter else None

    def restart(self, device: str) -> None:
        self.made, self.finish = [], None
        seed = self.settings.seed
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def take(self, token: int) -> None:
        """One more token: ends the row at an end token, a stop text or its limit."""
        if token in self.voice.stops:
            self.finish = "stop"
            return
        self.made.append(token)
        if self.settings.stop and self._stopped():
            self.finish = "stop"
        elif len(self.made) >= self.room:
            self.finish = "length"

    def _stopped(self) -> bool:
        # A token is at least one byte, so a stop text of n bytes cannot begin before the last n tokens.
        longest = max(len(s.encode()) for s in self.settings.stop)
        tail = self.voice.decode(self.made[-(longest + 8) :])
        return any(stop in tail for stop in self.settings.stop)

    def completion(self) -> Completion:
        text = self.voice.decode(self.made)
        cuts = [at for at in (text.find(stop) for stop in self.settings.stop) if at >= 0]
        if cuts:
            text = text[: min(cuts)]
        if self.finish == "length":
            text = text.rstrip("\ufffd")  # half of a character, cut by the limit
        text = text.rstrip() if self.settings.input_pattern == "prompt" else text.strip()
        return Completion(text, len(self.ids), len(self.made), self.finish or "length")

    def resolve(self) -> None:
        _settle(self.future, self.completion())

    def fail(self, error: BaseException) -> None:
        _settle(self.future, error)


def _settle(future: Future[Any], value: Any) -> None:
    """Sets a result or an exception, unless somebody cancelled the future meanwhile."""
    try:
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)
    except InvalidStateError:
        pass


# --------------------------------------------------------------------------------------------------------------- engine


class TransformersEngine:
    """One base model, many adapters, one thread that computes. Safe to call from any thread."""

    def __init__(
        self,
        base: ModelDir,
        *,
        locate: Callable[[AdapterRef], Path],
        open_adapter: Callable[[Path], ModelDir],
        options: EngineOptions | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.device = self.options.device
        self._base_dir = base
        self._locate = locate
        torch.set_num_threads(self.options.threads)
        self.model = load_model(base, self.options)
        self.context = context_length(self.model.config)
        self.vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self._accepted = forward_arguments(self.model)
        self.batch_tokens = self.options.batch_tokens or default_batch_tokens(self.model, self.device)
        self.adapters = Adapters(self.model, open_adapter, self.options.max_adapters)
        self.base_voice = voice_of(base, base.directory, self.model) if base.has_tokenizer else None
        self.broken: str | None = None  # set when the device cannot be used any more; the replica must go
        self.answered = 0
        self._waiting: list[_Row] = []
        self._tasks: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    # -- the interface

    def submit(self, request: Request, adapter: AdapterRef | None) -> Future[Completion]:
        future: Future[Completion] = Future()
        try:
            row = self._row(request, adapter, future)
        except Exception as error:
            _settle(future, error)
            return future
        with self._wake:
            if self._closed:
                _settle(future, EngineError("the engine is closed"))
            else:
                self._waiting.append(row)
                self._wake.notify()
        return future

    def load(self, adapter: AdapterRef | None) -> dict[str, Any]:
        """Loads an adapter and answers one token with it; raises why it cannot be used. None probes the base."""
        probe = Request([{"role": "user", "content": "?"}], Generation(max_new_tokens=1))
        row = self._row(probe, adapter, Future())
        self._post(lambda: self._answer([row])).result()
        row.future.result()
        return {"adapter": row.key, "template": row.voice.template.name, "source": row.voice.template.source}

    def info(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "model_type": self._base_dir.model_type,
            "device": self.device,
            "quantization": self.options.quantization,
            "context": self.context,
            "batch_tokens": self.batch_tokens,
            "adapters": self.adapters.keys(),
            "waiting": len(self._waiting),
            "answered": self.answered,
        }

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)

    # -- preparing (in the caller's thread)

    def _row(self, request: Request, adapter: AdapterRef | None, future: Future[Completion]) -> _Row:
        loadable, voice = None, self.base_voice
        if adapter is not None:
            directory = self._locate(adapter)
            loadable = Loadable(adapter.root_hash or files_key(directory), directory)
            voice = self._loaded(loadable) or voice
        if voice is None:
            raise ModelError(
                f"{self._base_dir.directory} has no tokenizer",
                hint="copy the tokenizer's files into it, or deploy an adapter that was trained with one",
            )
        ids = voice.encode(request)
        room = request.generation.room(len(ids), self.context)
        if room < 1:
            raise _too_long(len(ids), self.context, request.generation)
        return _Row(request, loadable, voice, ids, room, future)

    def _loaded(self, adapter: Loadable) -> Voice | None:
        """The adapter's own voice, if it has one; the adapter is loaded in the engine's thread where it is not yet."""
        known, voice = self.adapters.look(adapter.key)
        return voice if known else self._post(lambda: self.adapters.ensure([adapter])).result()

    def _post(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if threading.current_thread() is self._thread:
            _settle(future, work())
            return future
        with self._wake:
            if self._closed:
                _settle(future, EngineError("the engine is closed"))
            self._tasks.append((work, future))
            self._wake.notify()
        return future

    # -- the engine's thread

    def _serve(self) -> None:
        torch.set_num_threads(self.options.threads)  # holds for the thread that calls it
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._tasks or self._closed)
                rows, self._waiting = self._waiting, []
                tasks, self._tasks = self._tasks, []
                if self._closed:
                    break
            self._do(tasks)
            # What arrives while these are answered forms the next batches: nobody waits for ever behind shorter ones.
            for batch in form_batches(rows, self.options.max_rows, self.batch_tokens, self.options.max_adapters):
                self._do(self._take_tasks())
                self._answer(batch)
        for _, future in tasks:
            _settle(future, EngineError("the engine is closed"))
        for row in rows:
            row.fail(EngineError("the engine is closed"))

    def _take_tasks(self) -> list[tuple[Callable[[], Any], Future[Any]]]:
        with self._wake:
            tasks, self._tasks = self._tasks, []
        return tasks

    def _do(self, tasks: list[tuple[Callable[[], Any], Future[Any]]]) -> None:
        for work, future in tasks:
            try:
                _settle(future, work())
            except BaseException as error:
                _settle(future, error)

    def _answer(self, rows: list[_Row]) -> None:
        """Answers a batch. When it fails, its halves are tried; a row that fails alone keeps its reason."""
        rows = [row for row in rows if not row.future.done()]
        if not rows:
            return
        failure: BaseException
        try:
            for row in rows:
                row.restart(self.device)
            self.adapters.ensure([row.adapter for row in rows if row.adapter])
            with torch.inference_mode(), self.adapters.chosen([row.key for row in rows]) as choose:
                self._generate(rows, choose)
            return
        except Exception as error:
            failure = error
        self._after(failure)
        pending = [row for row in rows if not row.future.done()]
        if self.broken or len(pending) == 1:
            for row in pending:
                row.fail(_failure(failure, self.broken))
            return
        half = (len(pending) + 1) // 2
        log.warning("a batch of %d failed (%s); trying its halves", len(pending), reason_of(failure))
        self._answer(pending[:half])
        self._answer(pending[half:])

    def _after(self, failure: BaseException) -> None:
        failure.__traceback__ = None  # it holds the batch's tensors
        gc.collect()
        if self.device == "cuda":
            if "device-side assert" in str(failure) or "illegal memory access" in str(failure):
                self.broken = reason_of(failure)
            else:
                torch.cuda.empty_cache()

    def _generate(self, rows: list[_Row], choose: Callable[[list[str | None]], None]) -> None:
        """Prefill with left padding, then token by token; rows that are done are answered and leave the batch."""
        from transformers import DynamicCache

        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[row.voice.pad] * (width - len(row.ids)) + row.ids for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        while True:
            given = {"position_ids": positions, "logits_to_keep": 1}
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **{k: v for k, v in given.items() if k in self._accepted},
            ).logits[:, -1]
            tokens = pick(logits.float(), rows)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                self._advance(row, token)
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            live = [i for i, row in enumerate(rows) if row.finish is None]
            if not live:
                return
            # Taking rows out copies the cache: worth it when a quarter of them is done.
            if len(rows) - len(live) >= max(1, len(rows) // 4):
                keep = torch.tensor(live, device=self.device)
                cache.reorder_cache(keep)
                ids, mask, positions = ids[keep], mask[keep], positions[keep]
                rows = [rows[i] for i in live]
                choose([row.key for row in rows])
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)

    def _advance(self, row: _Row, token: int) -> None:
        if row.finish is not None:
            return
        if row.future.cancelled():
            row.finish = "cancelled"
        elif token < 0:
            row.finish = "failed"
            row.fail(
                EngineError(
                    "the model computed no probabilities (NaN)",
                    hint="its weights or its adapter are damaged, or its numbers overflow in this precision",
                )
            )
        else:
            row.take(token)
            if row.finish is not None:
                self.answered += 1
                row.resolve()


def form_batches(rows: Sequence[_Row], max_rows: int, max_tokens: int, max_adapters: int) -> Iterator[list[_Row]]:
    """Rows of similar length together, shortest first; padded prompts and answers stay within `max_tokens`.

    A row that is larger than that alone is a batch of its own.
    """
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda r: (len(r.ids), r.room)):
        grown = [*batch, row]
        size = len(grown) * (len(row.ids) + max(r.room for r in grown))
        full = len(grown) > max_rows or size > max_tokens or len({r.key for r in grown} - {None}) > max_adapters
        if batch and full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# --------------------------------------------------------------------------------------------------------------- errors


def _too_long(tokens: int, context: int, settings: Generation) -> DataError:
    if tokens >= context:
        return DataError(
            f"the prompt has {tokens} tokens, and the model reads {context} with its answer",
            hint="shorten the text or the history",
        )
    return DataError(
        f"the prompt has {tokens} tokens, and max_length={settings.max_length} leaves no room for an answer",
        hint="max_length counts prompt and answer together; max_new_tokens counts the answer alone",
    )


def _failure(error: BaseException, broken: str | None) -> BaseException:
    if isinstance(error, ByzerError):
        return error
    if broken:
        return EngineError(f"the GPU failed: {broken}")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return EngineError(
            f"out of memory for this request alone: {reason_of(error)}", hint="a shorter prompt or fewer max_new_tokens"
        )
    return EngineError(f"the model failed on this request: {reason_of(error)}")
