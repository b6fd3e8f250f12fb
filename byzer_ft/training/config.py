"""What was asked + what is here (device, rows, model) -> the configuration that runs, each value with its source.

A value that the user gave is obeyed, with a warning where it cannot do what they want. A default that makes no sense
for this run is adapted, and says why. Knows nothing of torch objects: the device is described to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from byzer_ft.errors import OptionError
from byzer_ft.intents import TrainingOptions

Source = Literal["given", "inherited", "default", "adapted"]
FEW_STEPS = 20


@dataclass(frozen=True)
class Device:
    """Where this process computes, and the precision that suits it."""

    kind: Literal["cpu", "cuda"]
    name: str
    bf16: bool = False

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        return "fp32" if self.kind == "cpu" else "bf16" if self.bf16 else "fp16"


@dataclass
class Resolved:
    """The values that run. `values` is what the first event shows; `options` the same as types."""

    options: TrainingOptions
    total_steps: int
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]["value"]

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        return "bf16" if self["bf16"] else "fp16" if self["fp16"] else "fp32"


def sequence_limit(options: TrainingOptions, model_config: Mapping[str, Any]) -> tuple[int, Source, str | None]:
    """Tokens a sequence may have: the option, unless it is a default that the model cannot hold."""
    positions = model_config.get("max_position_embeddings") or model_config.get("n_positions")
    given = "max_seq_length" in options.model_fields_set
    if not isinstance(positions, int) or options.max_seq_length <= positions:
        return options.max_seq_length, "given" if given else "default", None
    if given:
        return options.max_seq_length, "given", f"the model was made for {positions} positions"
    return positions, "inherited", f"the model has {positions} positions"


def steps_of(options: TrainingOptions, sequences: int, world_size: int) -> int:
    """Optimizer steps, counted as transformers counts them."""
    if options.max_steps > 0:
        return options.max_steps
    batches = math.ceil(math.ceil(sequences / options.per_device_train_batch_size) / world_size)
    return math.ceil(options.num_train_epochs * max(1, math.ceil(batches / options.gradient_accumulation_steps)))


def resolve(
    options: TrainingOptions,
    *,
    sequences: int,
    world_size: int,
    device: Device,
    limit: tuple[int, Source, str | None],
    tensorboard: bool,
    terminal: bool,
) -> Resolved:
    """All values of a run, in the order of the options."""
    given = options.model_fields_set
    total = steps_of(options, sequences, world_size)
    adapted = _adapted(options, total, device, tensorboard, terminal)
    resolved = Resolved(options, total)
    for name in TrainingOptions.model_fields:
        value, source, reason = getattr(options, name), "given" if name in given else "default", None
        if name not in given and name in adapted and adapted[name][0] != value:
            value, reason = adapted[name]
            source = "adapted"
        resolved.values[name] = {"value": value, "source": source, "reason": reason}
    if device.kind == "cpu" and resolved["optim"].startswith("paged"):
        resolved.values["optim"]["reason"] = "paging needs a GPU: on a CPU the same optimizer runs unpaged"
    resolved.values["max_seq_length"] = dict(zip(("value", "source", "reason"), limit, strict=True))
    if resolved["report_to"] == "tensorboard" and not tensorboard:
        resolved.values["report_to"] |= {"value": "none", "source": "adapted", "reason": "tensorboard is not installed"}
    if resolved["fp16"] and resolved["bf16"]:
        raise OptionError("fp16 and bf16 are both true", hint="give one of them")
    resolved.options = TrainingOptions(**{name: entry["value"] for name, entry in resolved.values.items()})
    resolved.warnings = _warnings(resolved, given, device, sequences)
    return resolved


def _adapted(
    options: TrainingOptions, total: int, device: Device, tensorboard: bool, terminal: bool
) -> dict[str, tuple[Any, str]]:
    """What each default becomes in this run, and why; the same value means it stays."""
    run = f"the run has {total} optimizer step{'s' if total != 1 else ''}"
    here = f"{device.name}: {device.precision}"
    asked_bf16, asked_fp16 = (n in options.model_fields_set and getattr(options, n) for n in ("bf16", "fp16"))
    return {
        "warmup_steps": (min(options.warmup_steps, total // 10), f"at most 10 % of the steps; {run}"),
        "logging_steps": (min(options.logging_steps, max(1, total // 10)), f"a tenth of the steps; {run}"),
        "save_steps": (
            min(options.save_steps, max(50, total // 10)),
            f"a run that breaks off loses a tenth or 50 steps; {run}",
        ),
        "bf16": (device.precision == "bf16" and not asked_fp16, here),
        "fp16": (
            device.precision == "fp16" and not asked_bf16,
            "bf16 was given" if asked_bf16 else here,
        ),
        "report_to": ("tensorboard" if tensorboard else "none", "tensorboard is not installed"),
        "disable_tqdm": (not terminal, "no terminal: progress is reported as events"),
    }


def _warnings(resolved: Resolved, given: set[str], device: Device, sequences: int) -> list[str]:
    total, out = resolved.total_steps, []
    if total < FEW_STEPS:
        out.append(
            f"only {total} optimizer steps: {sequences} sequences in batches of "
            f"{resolved['per_device_train_batch_size']} x {resolved['gradient_accumulation_steps']}; little is learned "
            f"in fewer than {FEW_STEPS}. Raise `sft.float.num_train_epochs` or lower "
            "`sft.int.gradient_accumulation_steps`"
        )
    if "warmup_steps" in given and resolved["warmup_steps"] >= total:
        out.append(
            f"warmup_steps={resolved['warmup_steps']} is not below the {total} steps of this run: the learning rate "
            "never reaches its peak. Lower `sft.int.warmup_steps`"
        )
    if "logging_steps" in given and resolved["logging_steps"] > total:
        out.append(f"logging_steps={resolved['logging_steps']} is above the {total} steps: no loss line before the end")
    if resolved.values["max_seq_length"]["source"] == "given" and resolved.values["max_seq_length"]["reason"]:
        out.append(
            f"max_seq_length={resolved['max_seq_length']}, but {resolved.values['max_seq_length']['reason']}: "
            "what lies beyond them is learned badly"
        )
    if resolved["fp16"] and device.kind == "cpu":
        out.append("fp16 on a CPU is slow and overflows easily; leave it out and fp32 is used")
    if resolved["bf16"] and device.kind == "cuda" and not device.bf16:
        out.append(f"{device.name} has no bfloat16 units: bf16 is emulated and slow; fp16 suits it")
    if "report_to" in given and resolved.values["report_to"]["source"] == "adapted":
        out.append("report_to=tensorboard, but tensorboard is not installed: pip install 'byzer-ft[tensorboard]'")
    if resolved["optim"] == "sgd" and "learning_rate" not in given:
        out.append(f"optim=sgd with the learning rate of AdamW ({resolved['learning_rate']}) hardly moves")
    return out
