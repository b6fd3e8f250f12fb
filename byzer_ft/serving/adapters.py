"""Adapter directories -> LoRA adapters on one base, unmerged, each with its own tokenizer and chat template.

Knows nothing of batches, queues, Ray or where directories come from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from byzer_ft import chat
from byzer_ft.errors import DataError, ModelError
from byzer_ft.modeldir import ModelDir
from byzer_ft.serving.loading import reason_of
from byzer_ft.serving.protocol import Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voice:
    """How one adapter (or the bare base) is spoken to: its tokenizer, its template and what ends its answers."""

    tokenizer: Any
    template: chat.ChatTemplate
    specials: chat.Specials
    stops: frozenset[int]
    pad: int
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def encode(self, request: Request) -> list[int]:
        if request.generation.input_pattern == "prompt":
            text, special = request.raw_prompt(), True
        else:
            text, special = chat.prompt(request.messages, self.template, self.specials), False
        with self.lock:  # a tokenizer may be used by one thread at a time
            ids = self.tokenizer.encode(text, add_special_tokens=special)
        if not ids:
            raise DataError("the prompt is empty", hint="a raw prompt needs at least one token to go on from")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def voice_of(found: ModelDir, tokenizer_directory: Path, model: Any) -> Voice:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_directory, local_files_only=True, trust_remote_code=found.remote_code, padding_side="left"
        )
    except Exception as error:
        raise ModelError(f"the tokenizer in {tokenizer_directory} cannot be loaded: {reason_of(error)}") from error
    template = chat.template_for(found.template, found.family)
    specials = chat.Specials.of(tokenizer)
    stops = _stop_ids(tokenizer, template, specials, model)
    # A model without a pad token is padded with eos: the attention mask hides it either way.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    return Voice(tokenizer, template, specials, stops, pad)


def _stop_ids(tokenizer: Any, template: chat.ChatTemplate, specials: chat.Specials, model: Any) -> frozenset[int]:
    """The end-of-sequence tokens of tokenizer and model, and the token with which the template ends a turn."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, (list, tuple)) else [configured])
    ids.add(tokenizer.eos_token_id)
    try:
        ids.add(tokenizer.convert_tokens_to_ids(chat.manner_of(template, specials).end_of_turn))
    except ModelError as error:  # cannot be trained with; whether it can be asked shows when it is
        log.warning("no end-of-turn token from the chat template: %s", error.message)
    return frozenset(i for i in ids if isinstance(i, int) and i >= 0 and i != tokenizer.unk_token_id)


# ------------------------------------------------------------------------------------------------------- adapters


@dataclass(frozen=True)
class Loadable:
    """An adapter on this node: the key it is known by, and where it lies."""

    key: str
    directory: Path


class Adapters:
    """LoRA adapters on one base, unmerged, each with its voice. The longest unused one makes room for a new one.

    All changes happen in the engine's thread; other threads only `look`.
    """

    def __init__(self, model: Any, opener: Callable[[Path], ModelDir], limit: int) -> None:
        self.model, self.open, self.limit = model, opener, limit
        self._peft: Any = None
        self._voices: OrderedDict[str, Voice | None] = OrderedDict()  # the one used last is last
        self._names: dict[str, str] = {}  # as PEFT knows them: a name may not contain dots
        self._made = 0
        self._active: str | None = None

    def keys(self) -> list[str]:
        return list(self._voices)

    def look(self, key: str) -> tuple[bool, Voice | None]:
        """Whether it is loaded, and its own voice (None: the base's)."""
        try:
            return True, self._voices[key]
        except KeyError:
            return False, None

    def ensure(self, wanted: Sequence[Loadable]) -> Voice | None:
        """Loads what is not loaded, dropping what is not wanted; gives the voice of the last one."""
        needed = {adapter.key for adapter in wanted}
        for adapter in wanted:
            if adapter.key in self._voices:
                self._voices.move_to_end(adapter.key)
                continue
            spare = [key for key in self._voices if key not in needed]
            for key in spare[: max(0, len(self._voices) + 1 - self.limit)]:
                self._drop(key)
            self._voices[adapter.key] = self._add(adapter.key, adapter.directory)
        return self._voices[wanted[-1].key] if wanted else None

    def _add(self, key: str, directory: Path) -> Voice | None:
        """Loads an adapter. Nothing of it stays behind when it does not fit."""
        started = time.monotonic()
        found = self.open(directory)
        weights, config = _read_adapter(directory)
        voice = voice_of(found, directory, self.model) if _has_own_tokenizer(directory) else None
        if voice is not None:
            _check_vocabulary(voice, self.model, directory)
        self._made += 1
        name = f"adapter{self._made}"
        self._active = None
        try:
            self._inject(name, config)
            self._fill(name, weights, directory)
        except Exception as error:
            if self._peft is not None and name in self._peft.peft_config:
                self._peft.base_model.set_adapter([], inference_mode=True)
                self._peft.delete_adapter(name)
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the adapter {directory} does not fit the base model: {reason_of(error)}") from error
        self._names[key] = name
        log.info("adapter %s loaded in %.1f s", key[:16], time.monotonic() - started)
        return voice

    def _inject(self, name: str, config: Any) -> None:
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel(self.model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            self._peft.add_adapter(name, config)
        self._peft.eval()
        self._peft.requires_grad_(False)

    def _fill(self, name: str, weights: dict[str, torch.Tensor], directory: Path) -> None:
        from peft import set_peft_model_state_dict

        result = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
        strange = list(result.unexpected_keys)
        if missing or strange:
            shown = (missing or strange)[0]
            raise ModelError(
                f"the adapter {directory} does not fit the base model: {len(missing)} tensors are missing and "
                f"{len(strange)} are not known, the first is {shown}",
                hint="it was trained on another base model, or its file is damaged",
            )

    def _drop(self, key: str) -> None:
        self._voices.pop(key)
        self._active = None
        self._peft.base_model.set_adapter([], inference_mode=True)  # PEFT warns when an active one is deleted
        self._peft.delete_adapter(self._names.pop(key))
        log.info("adapter %s dropped", key[:16])

    @contextmanager
    def chosen(self, keys: list[str | None]) -> Iterator[Callable[[list[str | None]], None]]:
        """Makes the model answer row i with adapter keys[i]. Call what is yielded when the rows change."""
        mixed: list[Any] = []

        def choose(now: list[str | None]) -> None:
            while mixed:
                mixed.pop().__exit__(None, None, None)
            if self._peft is None:
                return
            names = ["__base__" if key is None else self._names[key] for key in now]
            tuner, first = self._peft.base_model, names[0]
            if len(set(names)) > 1:
                tuner.enable_adapter_layers()
                self._active = None
                hooks = tuner._enable_peft_forward_hooks(adapter_names=names)
                hooks.__enter__()
                mixed.append(hooks)
            elif first != self._active:  # one adapter for all rows: no gathering of rows, and no walk when it stands
                if first == "__base__":
                    tuner.disable_adapter_layers()
                else:
                    tuner.enable_adapter_layers()
                    tuner.set_adapter(first, inference_mode=True)
                self._active = first

        try:
            choose(keys)
            yield choose
        finally:
            while mixed:
                mixed.pop().__exit__(None, None, None)


def _read_adapter(directory: Path) -> tuple[dict[str, torch.Tensor], Any]:
    from peft import PeftConfig
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(directory))
    except Exception as error:
        raise ModelError(f"{directory}/adapter_config.json cannot be read: {reason_of(error)}") from error
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        raise ModelError(
            f"{directory} is an adapter of type {config.peft_type}, and only LoRA adapters can share a base",
            hint="merge it into its base and deploy the merged model",
        )
    if config.bias != "none":
        raise ModelError(
            f"{directory} also trained biases (bias={config.bias!r}), which cannot be kept apart on a shared base",
            hint="merge it into its base and deploy the merged model",
        )
    config.inference_mode = True
    try:
        weights = load_file(str(directory / "adapter_model.safetensors"))
    except Exception as error:
        raise ModelError(f"{directory}/adapter_model.safetensors cannot be read: {reason_of(error)}") from error
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken or not weights:
        raise ModelError(
            f"the adapter {directory} " + (f"has NaN or infinity in {broken[0]}" if broken else "is empty"),
            hint="its training failed: train again, with a lower learning rate",
        )
    return weights, config


def _has_own_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _check_vocabulary(voice: Voice, model: Any, directory: Path) -> None:
    size, known = len(voice.tokenizer), model.get_input_embeddings().weight.shape[0]
    if size > known:
        raise ModelError(
            f"the adapter {directory} has a tokenizer of {size} tokens, and its base model knows {known}",
            hint="it was trained on another base model",
        )
