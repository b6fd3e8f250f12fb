"""The session's `!byzerllm setup` as a value: a mode and the keys that were set. Nothing is changed in place.

Knows the original's defaults, which it shows; what a key does is the planner's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from byzer_ft.intents import Setup

DEFAULTS = {
    "pythonExec": "python",
    "dataMode": "model",
    "runIn": "driver",
    "num_gpus": "1",
    "standalone": "false",
    "maxConcurrency": "1",
    "infer_backend": "transformers",
    "masterMaxConcurrency": "1000",
    "workerMaxConcurrency": "1",
    "schema": "file",
}
MODES: dict[str, dict[str, str]] = {
    "single": {},
    "sft": {"runIn": "executor"},
    "sfft": {"runIn": "executor"},
    "data": {"dataMode": "data", "num_gpus": "0", "runIn": "executor"},
    "retrieval": {"rayAddress": "worker", "num_gpus": "0", "schema": "st(field(value,string))"},
}


@dataclass(frozen=True)
class SetupState(Mapping[str, str]):
    """As a mapping: only what was said, mode or key. `rows` adds the defaults."""

    mode: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> str:
        if key in self.given:
            return self.given[key]
        said = MODES.get(self.mode or "", {})
        return said[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**MODES.get(self.mode or "", {}), **self.given})

    def __len__(self) -> int:
        return len({**MODES.get(self.mode or "", {}), **self.given})

    def apply(self, intent: Setup) -> SetupState:
        """A mode forgets every key that was set; a key is added."""
        if intent.mode is not None:
            return SetupState(mode=intent.mode)
        if intent.key is None or intent.value is None:
            return self
        return replace(self, given={**self.given, intent.key: intent.value})

    def rows(self, owner: str | None = None) -> list[tuple[str, str]]:
        """Everything that holds, as (key, value): what `!byzerllm setup` answers."""
        values = {"mode": self.mode or "single", **DEFAULTS, **self}
        if owner is not None:
            values.setdefault("owner", owner)
        return list(values.items())
