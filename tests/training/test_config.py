"""Which values a run gets, and what is said about them. No torch."""

from __future__ import annotations

from typing import Any

import pytest

from byzer_ft.errors import OptionError
from byzer_ft.intents import TrainingOptions
from byzer_ft.training.config import Device, Resolved, resolve, sequence_limit, steps_of

CPU = Device("cpu", "CPU")
A100 = Device("cuda", "A100", bf16=True)
V100 = Device("cuda", "V100")


def resolved(sequences: int = 1000, device: Device = CPU, world: int = 1, **given: Any) -> Resolved:
    options = TrainingOptions(**given)
    return resolve(
        options,
        sequences=sequences,
        world_size=world,
        device=device,
        limit=sequence_limit(options, {"max_position_embeddings": 4096}),
        tensorboard=True,
        terminal=True,
    )


def test_the_guides_defaults_hold_where_they_make_sense() -> None:
    found = resolved(sequences=16 * 40_000, device=V100)
    assert found.total_steps == 40_000
    assert {e["source"] for e in found.values.values()} == {"default"}
    assert found["warmup_steps"] == 3000
    assert found["logging_steps"] == 300
    assert found["fp16"] is True
    assert not found.warnings


def test_the_guides_33_rows() -> None:
    found = resolved(sequences=33, max_seq_length=512)
    assert found.total_steps == 3
    assert found.values["warmup_steps"] == {
        "value": 0,
        "source": "adapted",
        "reason": "at most 10 % of the steps; the run has 3 optimizer steps",
    }
    assert found["logging_steps"] == 1
    assert found.values["max_seq_length"]["source"] == "given"
    assert len(found.warnings) == 1
    assert "sft.float.num_train_epochs" in found.warnings[0]
    assert "sft.int.gradient_accumulation_steps" in found.warnings[0]


def test_what_was_given_is_obeyed_and_warned_about() -> None:
    found = resolved(sequences=16 * 100, warmup_steps=3000, logging_steps=300, save_steps=7, fp16=True)
    for name, value in (("warmup_steps", 3000), ("logging_steps", 300), ("save_steps", 7), ("fp16", True)):
        assert found.values[name] == {"value": value, "source": "given", "reason": None}
    said = " ".join(found.warnings)
    assert "warmup_steps=3000 is not below the 100 steps" in said
    assert "logging_steps=300" in said
    assert "fp16 on a CPU" in said


@pytest.mark.parametrize(
    ("device", "given", "precision"),
    [
        (CPU, {}, "fp32"),
        (CPU, {"bf16": True}, "bf16"),
        (A100, {}, "bf16"),
        (A100, {"fp16": True}, "fp16"),
        (A100, {"fp16": False}, "bf16"),
        (A100, {"bf16": False, "fp16": False}, "fp32"),
        (V100, {}, "fp16"),
        (V100, {"bf16": True}, "bf16"),
        (V100, {"fp16": False}, "fp32"),
    ],
)
def test_precision_follows_the_device_unless_given(device: Device, given: dict[str, Any], precision: str) -> None:
    assert resolved(device=device, **given).precision == precision


def test_both_precisions_at_once_contradict() -> None:
    with pytest.raises(OptionError, match="fp16 and bf16"):
        resolved(fp16=True, bf16=True)


def test_a_default_sequence_length_yields_to_a_small_model() -> None:
    assert sequence_limit(TrainingOptions(), {"max_position_embeddings": 256}) == (
        256,
        "inherited",
        "the model has 256 positions",
    )
    assert sequence_limit(TrainingOptions(max_seq_length=512), {"max_position_embeddings": 256})[:2] == (512, "given")
    assert sequence_limit(TrainingOptions(), {}) == (1024, "default", None)


def test_a_longer_sequence_than_the_model_was_made_for_is_warned_about() -> None:
    assert "made for 4096 positions" in " ".join(resolved(max_seq_length=8192).warnings)


def test_tensorboard_only_where_installed() -> None:
    options = TrainingOptions(report_to="tensorboard")
    found = resolve(
        options,
        sequences=16_000,
        world_size=1,
        device=CPU,
        limit=(1024, "default", None),
        tensorboard=False,
        terminal=False,
    )
    assert found["report_to"] == "none"
    assert "not installed" in " ".join(found.warnings)
    assert found["disable_tqdm"] is True


@pytest.mark.parametrize(
    ("given", "sequences", "world", "steps"),
    [
        ({}, 33, 1, 3),
        ({}, 33, 4, 1),
        ({"num_train_epochs": 2.5}, 33, 1, 8),
        ({"max_steps": 7, "num_train_epochs": 100}, 33, 1, 7),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, 100, 2, 7),
        ({}, 1, 8, 1),
    ],
)
def test_steps_are_counted(given: dict[str, Any], sequences: int, world: int, steps: int) -> None:
    assert steps_of(TrainingOptions(**given), sequences, world) == steps
