"""A checked model directory -> a tokenizer that is fit for training, and a 4-bit base with a LoRA adapter on it.

The base is quantised to NF4 with double quantisation; the adapter stands on every linear layer but the head. Nothing
is downloaded. Knows nothing of rows, steps or reports.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from byzer_ft.chat import ChatTemplate, Specials, manner_of, template_for
from byzer_ft.errors import JobError, ModelError
from byzer_ft.intents import TrainingOptions, TrainingRequest
from byzer_ft.modeldir import BUILTIN, MARKER, MARKER_FORMAT, ModelDir
from byzer_ft.training.config import Device

_FINAL_ASIDE = "final.tmp"
CHECKPOINT_ASIDE = ".writing"


def load_tokenizer(model: ModelDir) -> tuple[Any, ChatTemplate, Specials, list[str]]:
    """The tokenizer with pad, eos and template set, and the choices that were made for that."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model.directory), local_files_only=True, trust_remote_code=model.remote_code
        )
    except Exception as error:  # whatever the libraries or the model's own code raise
        raise ModelError(f"the tokenizer in {model.directory} cannot be loaded: {_short(error)}") from error
    choices: list[str] = []
    template = template_for(model.template, model.family)
    if template.source != "tokenizer":
        why = "of its family" if template.source == "family" else "since its family has none either"
        choices.append(f"the tokenizer has no chat template: `{template.name}` is used, {why}, and saved with it")
    manner = manner_of(template, Specials.of(tokenizer))
    if not tokenizer.eos_token:
        tokenizer.eos_token = manner.end_of_turn
        choices.append(f"the tokenizer has no eos token: the template's end of turn {manner.end_of_turn!r} is used")
    if not tokenizer.pad_token:
        name = "unk" if tokenizer.unk_token else "eos"
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        choices.append(f"the tokenizer has no pad token: {name} {tokenizer.pad_token!r} is used (padding is masked)")
    if manner.append_eos:
        choices.append(f"the template ends an answer with no special token: {tokenizer.eos_token!r} is added")
    if manner.folds_system:
        choices.append("the template has no system message: it is put in front of the first question")
    tokenizer.chat_template = template.text
    return tokenizer, template, Specials.of(tokenizer), choices


def load_base(model: ModelDir, device: Device, precision: str) -> Any:
    """The base model in 4 bits on this process's device."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    place = "cpu" if device.kind == "cpu" else f"cuda:{torch.cuda.current_device()}"
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(model.directory),
            quantization_config=quantization,
            dtype=dtype,
            device_map={"": place},
            local_files_only=True,
            trust_remote_code=model.remote_code,
            use_safetensors=not model.pickle,
        )
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error) from error
    except Exception as error:  # the loaders raise a dozen types for a broken or unknown model
        raise ModelError(
            f"the model in {model.directory} cannot be loaded: {_short(error)}",
            hint=f"its type is {model.model_type!r}; its files passed the first check, so their contents do not fit it",
        ) from error


def add_adapter(base: Any, options: TrainingOptions) -> tuple[Any, list[str]]:
    """LoRA on every linear layer but the head, ready for training; and the kinds of layers."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    prepared = prepare_model_for_kbit_training(
        base,
        use_gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(prepared, config)
    except ValueError as error:
        raise ModelError(f"LoRA finds no linear layers in this model: {_short(error)}") from error
    adapted.config.use_cache = False
    return adapted, sorted({name.rpartition(".")[2] for name in adapted.peft_config["default"].target_modules})


# --------------------------------------------------------------------------------------------------------- saving


def save_final(
    out_dir: Path,
    adapter: Any,
    tokenizer: Any,
    *,
    request: TrainingRequest,
    model: ModelDir,
    template: ChatTemplate,
    summary: dict[str, Any],
) -> Path:
    """Writes `final/` beside its name and renames it at the end: what is called final is complete."""
    check_adapter(adapter)
    final, writing = out_dir / "final", out_dir / _FINAL_ASIDE
    shutil.rmtree(writing, ignore_errors=True)
    try:
        adapter.save_pretrained(str(writing))
        tokenizer.save_pretrained(str(writing))
        marker = _marker(tokenizer, request=request, model=model, template=template, summary=summary)
        (writing / MARKER).write_text(json.dumps(marker, ensure_ascii=False, indent=2) + "\n", "utf-8")
        _sync(writing)
        if final.exists():
            shutil.rmtree(final)
        writing.rename(final)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    return final


def remove_leftovers(out_dir: Path) -> None:
    """What a killed run was writing when it died."""
    for name in (_FINAL_ASIDE, CHECKPOINT_ASIDE):
        shutil.rmtree(out_dir / name, ignore_errors=True)


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _marker(
    tokenizer: Any, *, request: TrainingRequest, model: ModelDir, template: ChatTemplate, summary: dict[str, Any]
) -> dict[str, Any]:
    end_of_turn = manner_of(template, Specials.of(tokenizer)).end_of_turn
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end_of_turn)]
    return {
        "format_version": MARKER_FORMAT,
        "kind": "adapter",
        "name": request.name,
        "base": {**request.base.model_dump(), "directory": _place(request, model), "model_type": model.model_type},
        "family": model.family,
        "template": {"name": template.name, "source": template.source},
        "generation": {
            "end_of_turn": end_of_turn,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "stop_token_ids": sorted({s for s in stops if s is not None}),
            "add_special_tokens": False,
        },
        "training": summary,
    }


def _place(request: TrainingRequest, model: ModelDir) -> str:
    """Where the base is; a built-in model is the same on every machine, its directory is not."""
    return request.base.directory if request.base.directory.startswith(BUILTIN) else str(model.directory)


def check_adapter(adapter: Any) -> None:
    """Refuses an adapter that holds no number, or that changes nothing: neither is a result."""
    import torch

    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    broken = [name for name, p in trained.items() if not bool(torch.isfinite(p).all())]
    if broken:
        raise JobError(
            f"the adapter is broken: {len(broken)} of its {len(trained)} matrices hold NaN or infinity, "
            f"the first is {broken[0]}",
            hint='lower `sft.float.learning_rate`, or give `sft.bool.bf16`="true" where the device has it',
        )
    if not any(bool(p.any()) for name, p in trained.items() if "lora_B" in name):
        raise JobError(
            "the adapter is all zero: training changed nothing",
            hint="the learning rate never left zero: raise `sft.float.num_train_epochs` or lower "
            "`sft.int.warmup_steps`",
        )


def explain(error: BaseException, place: Path) -> JobError | None:
    """A JobError for what a machine does to a run: a full disk, too little memory. None: something else."""
    seen: BaseException | None = error
    while seen is not None:
        text = f"{type(seen).__name__}: {seen}"
        if _is_disk_full(seen, text):
            free = shutil.disk_usage(place).free // 2**20 if place.exists() else 0
            return JobError(
                f"the disk is full or a quota is reached: {_short(seen)}",
                hint=f"{place} has {free} MiB left; free some, or name another localPathPrefix. What was written "
                "completely (earlier checkpoints) is kept",
            )
        if isinstance(seen, PermissionError):
            return JobError(f"{seen.filename or place} may not be written: {seen.strerror}")
        if type(seen).__name__ == "OutOfMemoryError" or isinstance(seen, MemoryError):
            return _out_of_memory(seen)
        seen = seen.__cause__ or seen.__context__
    return None


def _is_disk_full(error: BaseException, text: str) -> bool:
    import errno

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # The Rust and C++ writers of safetensors and torch tell it in words only.
    words = ("No space left", "os error 28", "os error 122", "os error 27", "File too large", "quota exceeded")
    torch_writer = ("write failed", "unexpected pos")  # the second when it ends a file that it could not write
    return any(w in text for w in words) or ("inline_container" in text and any(w in text for w in torch_writer))


def _out_of_memory(error: BaseException) -> JobError:
    return JobError(
        f"out of memory: {_short(error)}",
        hint="lower `sft.int.max_seq_length` or `sft.int.per_device_train_batch_size`, or give "
        '`sft.bool.gradient_checkpointing`="true"',
    )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:399] + "…"
