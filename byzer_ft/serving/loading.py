"""A checked model directory -> a transformers model on its device, and what can be known about it beforehand.

Knows nothing of adapters, requests or Ray.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from byzer_ft.errors import ByzerError, ModelError, ResourceError
from byzer_ft.modeldir import ModelDir

if TYPE_CHECKING:
    from byzer_ft.serving.engine import EngineOptions


def load_model(base: ModelDir, options: EngineOptions) -> Any:
    from transformers import AutoModelForCausalLM

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("a GPU was asked for, and torch sees none here", hint="look at nvidia-smi on this node")
    dtype = _dtype(options.device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=base.remote_code,
            use_safetensors=not base.pickle,
            **_quantized(options.quantization, dtype),
            **_placed(options.device),
        )
    except MemoryError:
        raise ResourceError(f"{base.directory} does not fit into the memory of this node") from None
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{base.directory} does not fit on the GPU: {reason_of(error)}", hint='quantization="4bit" takes a quarter'
        ) from None
    except Exception as error:
        raise ModelError(f"{base.directory} cannot be loaded: {reason_of(error)}") from error
    offloaded = {str(place) for place in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if options.device == "cuda" and offloaded:
        raise ResourceError(
            f"{base.directory} does not fit on the GPUs of a replica: a part of it would stay on {offloaded.pop()}",
            hint='ask for more num_gpus, or quantization="4bit"',
        )
    return model.eval().requires_grad_(False)


def _placed(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {}
    return {"device_map": {"": 0} if torch.cuda.device_count() == 1 else "auto"}


def _dtype(device: str) -> torch.dtype:
    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _quantized(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def context_length(config: Any) -> int:
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(value := getattr(text, name, None), int) and value > 0:
            return value
    return 1_000_000  # positions are unbounded (ALiBi, state spaces): memory is the limit


def forward_arguments(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def default_batch_tokens(model: Any, device: str) -> int:
    """How many tokens a batch may hold: a fifth of what is free on the CPU's node, at most 4 GiB; half of a GPU's."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 32)
    size = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 32)
    per_token = 2 * getattr(config, "num_hidden_layers", 32) * heads * size * (2 if device == "cuda" else 4)
    budget = torch.cuda.mem_get_info()[0] // 2 if device == "cuda" else min(_free_memory() // 5, 4 * 2**30)
    return max(2048, min(budget // per_token, 262_144 if device == "cuda" else 65_536))


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def reason_of(error: BaseException) -> str:
    """The first lines of a library's message with its type, for an error that a person reads."""
    if isinstance(error, ByzerError):
        return error.message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}" if lines else type(error).__name__
