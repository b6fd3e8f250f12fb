"""Tiny adapters made on the spot, and a way to open an engine on a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from byzer_ft.modeldir import open_model_dir
from byzer_ft.paths import PathGuard
from byzer_ft.settings import Settings


def make_adapter(base: Path, directory: Path, seed: int, **config: Any) -> Path:
    """A LoRA adapter with random weights, large enough to change every answer; its base's tokenizer is beside it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings | config))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


def open_engine(base: Path, **options: Any) -> Any:
    from byzer_ft.serving.engine import EngineOptions, TransformersEngine

    def opened(directory: Path, **more: Any) -> Any:
        return open_model_dir(str(directory), guard=PathGuard(None), settings=Settings(home=base.parent), **more)

    return TransformersEngine(
        opened(base),
        locate=lambda ref: Path(ref.directory or ""),
        open_adapter=lambda directory: opened(directory, base=str(base)),
        options=EngineOptions(**options),
    )
