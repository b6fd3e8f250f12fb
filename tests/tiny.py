"""Tiny real models and rows, made on the spot: a 2-layer Llama with random weights and a BPE trained on the rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = [
    "如何",
    "保障",
    "安全",
    "please",
    "explain",
    "the",
    "safety",
    "rules",
    "推荐",
    "一部",
    "电影",
    "because",
    "工作",
]
_WORDS += ["中", "遵循", "data", "table", "学习", "model", "你好"]


def moss_rows(rows: int = 33, seed: int = 7, turn_words: tuple[int, int] = (60, 160)) -> list[dict[str, Any]]:
    """`rows` MOSS conversations of 3-6 turns; with the default lengths most are longer than 512 tokens."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(low, high)))

    return [
        {
            "conversation_id": i + 1,
            "category": "Brainstorming",
            "conversation": [{"human": text(5, 20), "assistant": text(*turn_words)} for _ in range(rng.randint(3, 6))],
            "dataset": "moss",
        }
        for i in range(rows)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def make_tiny_llama(directory: Path, *, template: str | None, hidden: int = 64, seed: int = 0) -> Path:
    """Saves a random Llama (2 layers, hidden 64) and its tokenizer (512 pieces, `<s>`, `</s>`, no pad)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    texts = [t[k] for r in moss_rows() for t in r["conversation"] for k in ("human", "assistant")]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="<|im_end|>" if template else "</s>",
        unk_token="<unk>",
        chat_template=template,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
