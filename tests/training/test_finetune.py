"""The training program on a tiny real model: numbers, files, resuming, stopping, and what breaks a run."""

from __future__ import annotations

import json
import math
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.chat import Specials, prompt, template_for
from byzer_ft.errors import DataError, JobError, ModelError
from byzer_ft.modeldir import open_model_dir
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings
from tests.training.stage import Run, request, train

pytestmark = pytest.mark.torch

# Small and quick: 24 short rows, 6 steps of 4 sequences.
ROWS: list[dict[str, Any]] = [
    {"instruction": f"please explain table {i}", "input": "data" if i % 2 else "", "output": f"model {i} 安全 rules"}
    for i in range(24)
]
SMALL = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-3,
    "lora_rank": 4,
    "logging_steps": 1,
    "max_seq_length": 128,
    "report_to": "none",
}


def tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


# Of these rows, this model and seed 42, in fp32 on a CPU.
GOLDEN = [5.944417, 5.745114, 5.578928, 5.450811, 5.434656, 5.448578]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Run:
    """The one run that several tests look at: checkpoints at steps 2, 4 and 6."""
    before = {p.name: p.read_bytes() for p in tiny_llama.iterdir()}
    asked = request(tiny_llama, family="llama2", save_steps=2, save_total_limit=5, **SMALL)
    run = train(asked, ROWS, tmp_path_factory.mktemp("job"))
    assert {p.name: p.read_bytes() for p in tiny_llama.iterdir()} == before, "training must not touch the base"
    return run


def test_golden_losses(trained: Run) -> None:
    assert trained.result["state"] == "succeeded"
    assert trained.losses == pytest.approx(GOLDEN, abs=1e-4)


def test_every_adapter_matrix_moved_and_only_those(trained: Run) -> None:
    found = tensors(trained.out / "final" / "adapter_model.safetensors")
    assert found
    assert all("lora_A" in name or "lora_B" in name for name in found)
    assert {name.split(".")[-3] for name in found} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert all(t.abs().sum() > 0 for t in found.values())


def test_events_tell_the_whole_story(trained: Run) -> None:
    assert trained.events[0]["event"] == "config"
    assert trained.events[-1] == {"event": "done", "final": str(trained.out / "final")}
    assert trained.values["learning_rate"] == {"value": 5e-3, "source": "given", "reason": None}
    assert trained.values["warmup_steps"]["source"] == "adapted"
    assert trained.values["lora_alpha"]["source"] == "default"
    data = trained.of("data")[0]
    assert (data["rows_in"], data["used"], data["pieces"], data["dropped"]) == (24, 24, 24, 0)
    lines = trained.lines
    assert lines[0].startswith("Loading data: ")
    assert lines[1] == "there are 24 data in dataset"
    assert lines.index("*** starting training ***") < lines.index("***** train metrics *****")
    keys = [line.split("=")[0].strip() for line in lines[lines.index("***** train metrics *****") + 1 :]]
    assert keys == ["epoch", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"]
    assert sum("'loss'" in line for line in lines) == 6
    assert any("'train_runtime'" in line for line in lines)
    last = trained.of("progress")[-1]
    assert last["step"] == last["total_steps"] == 6
    assert last["tokens_per_second"] > 0
    assert last["eta_seconds"] == 0
    metrics = trained.of("metrics")[0]
    assert metrics["tokens"] == data["tokens"]
    assert metrics["train_loss"] == pytest.approx(sum(trained.losses) / 6, abs=1e-4)
    assert [c["step"] for c in trained.of("checkpoint")] == [2, 4, 6]
    assert any("only 6 optimizer steps" in w["text"] for w in trained.of("warning"))


def test_final_serves_what_was_trained(trained: Run, tiny_llama: Path) -> None:
    """The saved tokenizer renders, alone and through transformers, the prompt that training rendered."""
    from transformers import AutoTokenizer

    final = trained.out / "final"
    found = open_model_dir(str(final), guard=PathGuard(None), settings=load_settings({}), need_tokenizer=True)
    assert found.has_adapter
    assert found.base_directory == tiny_llama
    assert found.marker["template"] == {"name": "llama2", "source": "family"}
    assert found.marker["generation"]["end_of_turn"] == "</s>"
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.pad_token == "<unk>"
    assert found.marker["generation"]["stop_token_ids"] == [tokenizer.eos_token_id]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "please"}]
    template = template_for(found.template, found.family)
    ours = prompt(messages, template, Specials.of(tokenizer))
    assert ours == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours == "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nplease [/INST]"


def test_a_resumed_run_equals_an_uninterrupted_one(trained: Run, tiny_llama: Path, tmp_path: Path) -> None:
    asked = request(tiny_llama, family="llama2", save_steps=2, save_total_limit=5, **SMALL)
    shutil.copytree(trained.out / "checkpoint-2", tmp_path / "finetune_model" / "checkpoint-2")
    resumed = train(asked, ROWS, tmp_path, resume_from=tmp_path / "finetune_model" / "checkpoint-2")
    assert [e["step"] for e in resumed.of("progress")] == [3, 4, 5, 6]
    assert resumed.losses == pytest.approx(trained.losses[2:], abs=1e-4)
    assert resumed.result["metrics"]["train_loss"] == pytest.approx(trained.result["metrics"]["train_loss"], abs=1e-4)
    ours, theirs = (tensors(r.out / "final" / "adapter_model.safetensors") for r in (resumed, trained))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in theirs)


def test_stop_at_a_step_boundary(tiny_llama: Path, tmp_path: Path) -> None:
    asked = request(tiny_llama, max_steps=50, save_total_limit=1, **SMALL)
    events: list[dict[str, Any]] = []
    steps = [0]

    def wish() -> bool:
        steps[0] += 1
        return steps[0] >= 2

    run = train(asked, ROWS, tmp_path, should_stop=wish, events=events)
    assert run.result["state"] == "stopped"
    assert run.result["steps"] == 2
    assert run.result["checkpoint"] == str(run.out / "checkpoint-2")
    assert sorted(p.name for p in run.out.iterdir()) == ["checkpoint-2"]
    assert not run.of("done")


def test_accumulation_does_not_change_the_numbers(tiny_llama_chat: Path, tmp_path: Path) -> None:
    """Ragged rows, the last window partial: batches of 4 and 4 x 1 accumulated give the same losses."""
    rows = [{"instruction": "please", "output": "model " * (1 + i % 7)} for i in range(7)]
    losses = []
    for batch, passes in ((4, 1), (1, 4)):
        options = SMALL | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes}
        asked = request(tiny_llama_chat, lora_dropout=0.0, save_strategy="no", max_steps=1, **options)
        # One step sees the first four sequences; their order depends on the batch size, so all rows are alike in kind.
        run = train(asked, rows[:4], tmp_path / f"{batch}x{passes}")
        losses.append(run.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(tiny_llama_chat: Path, tmp_path: Path) -> None:
    def losses(seed: int, name: str) -> list[float]:
        asked = request(tiny_llama_chat, seed=seed, max_steps=2, save_strategy="no", **SMALL)
        return train(asked, ROWS, tmp_path / name).losses

    first = losses(1, "a")
    assert losses(1, "b") == first
    assert losses(2, "c") != first


def test_bf16_gradient_checkpointing_and_other_optimizers_run(tiny_llama: Path, tmp_path: Path) -> None:
    asked = request(
        tiny_llama,
        bf16=True,
        gradient_checkpointing=True,
        optim="adamw_torch",
        max_steps=2,
        save_strategy="no",
        **SMALL,
    )
    run = train(asked, ROWS, tmp_path)
    assert run.of("config")[0]["precision"] == "bf16"
    assert run.values["fp16"]["value"] is False
    assert all(math.isfinite(loss) for loss in run.losses)


# ---------------------------------------------------------------------------------------------------- bad input


def test_mixed_rows_are_all_accounted_for(tiny_llama_chat: Path, tmp_path: Path) -> None:
    def turns(*pairs: tuple[str | None, str | None]) -> dict[str, Any]:
        return {"conversation": [{"human": q, "assistant": a} for q, a in pairs]}

    rows = [
        turns(("please", "model")),
        turns(),
        turns(("please", "")),
        turns(("please", None), ("explain", "data")),
        turns(("", "data")),
        {"conversation": None},
        turns(("please", "data"), ("explain", "model " * 200)),
    ]
    asked = request(tiny_llama_chat, max_steps=1, save_strategy="no", **(SMALL | {"max_seq_length": 64}))
    run = train(asked, rows, tmp_path)
    data = run.of("data")[0]
    assert data["rows_in"] == data["used"] + data["dropped"] == 7
    assert data["used"] == 2
    counts = {reason: entry["count"] for reason, entry in data["reasons"].items()}
    assert counts == {
        "empty": 2, "ends_with_user": 1, "two_user_turns": 1, "starts_with_assistant": 1, "cut": 1, "truncated": 1
    }  # fmt: skip
    assert data["reasons"]["empty"]["examples"][0]["row"] == 2
    assert any("5 of 7 rows are not used" in line for line in run.lines)
    assert any("1 of 7 rows are longer than 64 tokens" in line for line in run.lines)


def test_rows_that_teach_nothing_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 rows") as caught:
        train(request(tiny_llama, **SMALL), [{"instruction": "a", "output": ""}] * 2, tmp_path)
    assert "ends_with_user" in caught.value.message
    assert "row 1" in (caught.value.hint or "")


def test_an_empty_table_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        train(request(tiny_llama, **SMALL), [], tmp_path)


def test_a_table_of_neither_shape_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="instuction string, output string"):
        train(request(tiny_llama, **SMALL), [{"instuction": "a", "output": "b"}], tmp_path)


def test_a_staging_without_manifest_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from byzer_ft.training import finetune

    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="manifest.json is missing"):
        finetune(request(tiny_llama), tmp_path / "data", tmp_path / "out", print)


def test_loss_that_is_no_number_stops_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    """A real broken base: one of its weights is NaN."""
    import torch
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    weights = tensors(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match=r"loss is nan at step 1 of 6") as caught:
        train(request(broken, save_steps=1, **SMALL), ROWS, tmp_path)
    assert "learning_rate" in (caught.value.hint or "")
    assert list((tmp_path / "finetune_model").iterdir()) == []


def test_an_adapter_that_never_moved_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """Warm-up starts at a learning rate of zero: after one step nothing has changed."""
    asked = request(tiny_llama, warmup_steps=100, max_steps=1, save_strategy="no", **SMALL)
    events: list[dict[str, Any]] = []
    with pytest.raises(JobError, match="all zero"):
        train(asked, ROWS, tmp_path, events=events)
    assert any("warmup_steps=100 is not below" in e.get("text", "") for e in events if e["event"] == "warning")
    assert not (tmp_path / "finetune_model" / "final").exists()


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_full_disk(tiny_llama: Path, tmp_path: Path, strategy: str) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same place."""
    asked = request(tiny_llama, max_steps=2, save_steps=1, save_strategy=strategy, **(SMALL | {"lora_rank": 64}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(JobError, match="disk is full") as caught:
            train(asked, ROWS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "MiB left" in (caught.value.hint or "")
    assert list((tmp_path / "finetune_model").iterdir()) == []


def _edited(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}), "utf-8")
    return target


def test_a_tokenizer_without_eos_takes_the_templates_end_of_turn(tiny_llama_chat: Path, tmp_path: Path) -> None:
    model = _edited(tiny_llama_chat, tmp_path / "m", eos_token=None)
    run = train(request(model, max_steps=1, save_strategy="no", **SMALL), ROWS, tmp_path)
    choices = run.of("config")[0]["choices"]
    assert any("no eos token" in c and "<|im_end|>" in c for c in choices)
    assert any("no pad token" in c for c in choices)
    saved = json.loads((run.out / "final" / "tokenizer_config.json").read_text("utf-8"))
    assert (saved["eos_token"], saved["pad_token"]) == ("<|im_end|>", "<unk>")


def test_a_tokenizer_without_any_end_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = _edited(tiny_llama, tmp_path / "m", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-sequence token") as caught:
        train(request(model, **SMALL), ROWS, tmp_path)
    assert "eos_token" in (caught.value.hint or "")


def test_a_tokenizer_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 100}), "utf-8")
    with pytest.raises(ModelError, match="of different models|knows 100 tokens"):
        train(request(model, **SMALL), ROWS, tmp_path)


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"model_type": "no_such_architecture"}), "utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        train(request(model, **SMALL), ROWS, tmp_path)


def test_an_adapter_is_no_base(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is an adapter") as caught:
        train(request(trained.out / "final", **SMALL), ROWS, tmp_path)
    assert "name its base" in (caught.value.hint or "")


def test_resuming_from_nothing_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not a checkpoint"):
        train(request(tiny_llama, **SMALL), ROWS, tmp_path, resume_from=tmp_path)


def test_resuming_with_other_rows_is_refused(trained: Run, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="trained on 24 sequences, and there are 20 now"):
        train(request(tiny_llama, **SMALL), ROWS[:20], tmp_path, resume_from=trained.out / "checkpoint-2")


def test_what_a_killed_run_left_is_removed(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("final.tmp", ".writing"):
        (tmp_path / "finetune_model" / name / "checkpoint-9").mkdir(parents=True)
    run = train(request(tiny_llama, max_steps=1, save_strategy="no", **SMALL), ROWS, tmp_path)
    assert sorted(p.name for p in run.out.iterdir()) == ["final"]


# ----------------------------------------------------------------------------------------------- as a program


def test_as_a_program(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import signal

    from byzer_ft.training.__main__ import main
    from tests.training.stage import stage

    stage(ROWS, tmp_path / "finetune_data")
    options = SMALL | {"max_steps": 1, "save_strategy": "no"}
    asked = {"name": "t", "family": "auto", "base": {"directory": str(tiny_llama)}, "training": options}
    (tmp_path / "request.json").write_text(json.dumps(asked), "utf-8")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        assert main([str(tmp_path / "request.json")]) == 0
        assert "***** train metrics *****" in capsys.readouterr().out
        assert (tmp_path / "finetune_model" / "final" / "byzer_ft.json").is_file()

        asked["training"] = {"lora_rnak": 3}
        (tmp_path / "request.json").write_text(json.dumps(asked), "utf-8")
        assert main([str(tmp_path / "request.json")]) == 1
        assert "lora_rnak" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
