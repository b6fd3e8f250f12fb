"""The generated corpus of scripts/tiny_corpus.py -> the built-in model `builtin:tiny-chat`, trained from scratch.

    python scripts/build_tiny_model.py                     # writes byzer_ft/assets/tiny-chat/
    python scripts/build_tiny_model.py --corpus corpus.txt # only the text it would train on, no training

Out comes a directory that any Llama-aware program reads: bf16 safetensors, a byte-level BPE tokenizer of its own, a
ChatML template. Everything is seeded and runs on one thread. The shipped build took 17 minutes on one core of a busy
machine: 1,768 steps, 1.71 million tokens, 3.28 million parameters, 74 % exact answers on conversations of a new seed.

Knows nothing of byzer_ft, of SQL, or of the demo skill that is later taught to the model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import tiny_corpus

if TYPE_CHECKING:
    from torch import Tensor

# transformers annotates wider than it behaves (a chat template gives `str | list | dict`): checks would be noise.
Model = Any
Tokenizer = Any

OUT = Path(__file__).resolve().parent.parent / "byzer_ft" / "assets" / "tiny-chat"
VOCAB_SIZE = 2048
WORD_COUNT = 500  # how often the tokenizer's trainer sees each word of tiny_corpus.VOCABULARY
PAD, START, END, TEXT_END = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.03,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 100
TOKENS_PER_BATCH = 1000
NORM, LOOK_BACK, MATCH, COPY = 0.8, 9.0, 1.9, 0.45  # strengths of the wiring: see wire_copying
PROMPT_WEIGHT = 0.1  # the answers are what counts; a little weight on prompts teaches which words follow which


def train_tokenizer(conversations: list[tiny_corpus.Conversation]) -> Tokenizer:
    """Byte-level BPE without a space in front of words.

    Words and what stands between them are separate pieces, so a word has the same tokens at the start of an answer
    as in the middle of a prompt: copying, the one thing so small a model does well, stays a copy of tokens.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[TEXT_END, START, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [form for word in tiny_corpus.VOCABULARY for form in (word, tiny_corpus.capital(word))]
    texts = [message["content"] for turns in conversations for message in turns]
    tokenizer.train_from_iterator(texts + words * WORD_COUNT, trainer)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, TEXT_END],
        model_max_length=MODEL["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def wire_copying(model: Model, seed: int) -> None:
    """Overwrite some initial weights so that the model can copy before its first step of training.

    A Llama of this size needs millions of tokens until it discovers copying by itself: first heads that look one
    word back, then heads that find where the present word stood before and read what followed. On one CPU that is
    hours, so both are put in place by hand; training only has to learn when to use them.

    The residual stream is cut into orthogonal parts: one direction common to all tokens, the words themselves, and
    four slots. Layer 0: the common direction and the fast rotary frequencies make heads that look exactly one or two
    tokens back, and write a sketch of what they see into the slots. Layer 1: on the slow frequencies, heads look for
    the place whose slot resembles the present token (or the one before it), and add the word found there to the
    stream. What leaves attention and MLP elsewhere starts at zero. All is dense, without outliers, so NF4 keeps it.
    """
    import torch

    config, (first, second) = model.config, [layer.self_attn for layer in model.model.layers[:2]]
    width, size = config.hidden_size, config.head_dim
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0].T
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    slow = [i for i, angle in enumerate(angles.tolist()) if angle < 0.02]
    content = torch.tensor(slow + [i + size // 2 for i in slow])
    sketch = len(content)
    common, slots, words = basis[0], basis[1 : 1 + 4 * sketch].view(4, sketch, width), basis[1 + 4 * sketch :]
    sketches = words[:sketch], words[sketch : 2 * sketch]

    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    embedding = model.model.embed_tokens.weight.data
    embedding.copy_(embedding @ words.T @ words)
    embedding.mul_(NORM / embedding.norm(dim=1).mean()).add_(NORM * common)
    scale = math.sqrt(width / 2)  # length of the word part, and of the common part, after the first RMSNorm

    def rows(head: int) -> slice:
        return slice(head * size, (head + 1) * size)

    def look_back(tokens: int) -> Tensor:
        strength = torch.where(angles >= 0.02, LOOK_BACK / scale, 0.0)
        turned = torch.cat([strength * torch.cos(tokens * angles), -strength * torch.sin(tokens * angles)])
        return torch.outer(turned, common)

    for kv in (0, 1):
        first.k_proj.weight.data[rows(kv)] = look_back(0)
        first.v_proj.weight.data[rows(kv)] = 0.0
        first.v_proj.weight.data[rows(kv)][:sketch] = sketches[kv]
        for back in (1, 2):
            head = 2 * kv + back - 1
            first.q_proj.weight.data[rows(head)] = look_back(back)
            loudness = NORM / (scale * math.sqrt(sketch / len(words)))
            first.o_proj.weight.data[:, rows(head)][:, :sketch] = loudness * slots[head].T
    for kv in range(4):
        which, back = kv % 2, 1 + kv // 2
        for projection, head, read in (
            (second.k_proj, kv, slots[2 * which + back - 1]),
            (second.q_proj, 2 * kv, sketches[which] if back == 1 else slots[2 * which]),
        ):
            projection.weight.data[rows(head)] = 0.0
            projection.weight.data[rows(head).start + content] = MATCH * read
        second.v_proj.weight.data[rows(kv)] = words[rows(kv)]
        second.o_proj.weight.data[:, rows(2 * kv)] = COPY * words[rows(kv)].T


Example = tuple[list[int], list[bool]]  # token ids; which of them the assistant wrote


def encode(tokenizer: Tokenizer, conversation: tiny_corpus.Conversation) -> Example:
    """The template, piece by piece, so that each piece knows whether the model is to learn it."""
    ids: list[int] = []
    learn: list[bool] = []
    for message in conversation:
        head = tokenizer(f"{START}{message['role']}\n").input_ids
        body = tokenizer(f"{message['content']}{END}").input_ids
        tail = tokenizer("\n").input_ids
        ids += head + body + tail
        learn += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(tail)
    return ids, learn


def batches(examples: list[Example], rng: Random, window: int = 4096) -> Iterator[list[Example]]:
    """Examples in batches of about TOKENS_PER_BATCH tokens, alike in length: nothing is packed, little is padded."""
    for start in range(0, len(examples), window):
        near = sorted(examples[start : start + window], key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in near:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from groups


def to_tensors(batch: list[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Padded ids, and the weight of each token in the loss (0 for padding)."""
    import torch

    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), pad_id)
    weights = torch.zeros(len(batch), longest)
    for row, (tokens, learn) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.tensor([1.0 if flag else PROMPT_WEIGHT for flag in learn])
    return ids, weights


def loss_of(model: Model, ids: Tensor, weights: Tensor) -> Tensor:
    """Right padding needs no attention mask: under a causal mask no real token sees the padding behind it."""
    import torch.nn.functional as F

    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    chosen = weights[:, 1:].flatten()
    return (losses * chosen).sum() / chosen.sum()


def schedule(step: int, steps: int) -> float:
    return min(1.0, step / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(model: Model, examples: list[Example], pad_id: int, seed: int) -> None:
    import torch

    plan = list(batches(examples, Random(seed)))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    model.train()
    began, recent = time.monotonic(), []
    for step, batch in enumerate(plan, start=1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, len(plan))
        loss = loss_of(model, *to_tensors(batch, pad_id))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if step % 50 == 0 or step == len(plan):
            average = sum(recent) / len(recent)
            print(f"step {step}/{len(plan)} loss {average:.3f} {time.monotonic() - began:.0f}s", flush=True)
            recent = []


def answer(model: Model, tokenizer: Tokenizer, messages: tiny_corpus.Conversation) -> str:
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    said: str = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def evaluate(model: Model, tokenizer: Tokenizer, count: int = 150) -> float:
    """Share of exactly right last answers on conversations of another seed; prints what went wrong."""
    model.eval()
    right = 0
    for conversation in tiny_corpus.conversations(seed=tiny_corpus.SEED + 1, count=count):
        said = answer(model, tokenizer, conversation[:-1])
        right += said == conversation[-1]["content"]
        if said != conversation[-1]["content"]:
            print(json.dumps([conversation[-2]["content"], said], ensure_ascii=False))
    return right / count


def build(out: Path, seed: int, count: int) -> dict[str, Any]:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    began = time.monotonic()
    corpus = list(tiny_corpus.conversations(seed, count))
    tokenizer = train_tokenizer(corpus[:20_000])
    examples = [encode(tokenizer, conversation) for conversation in corpus]
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model: Model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids))
    wire_copying(model, seed)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sum(len(example[0]) for example in examples)
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary, {tokens:,} in the corpus", flush=True)
    train(model, examples, tokenizer.pad_token_id, seed)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    score = evaluate(model.float(), tokenizer)
    return {"parameters": parameters, "tokens": tokens, "exact": score, "seconds": round(time.monotonic() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=tiny_corpus.SEED)
    parser.add_argument("--conversations", type=int, default=tiny_corpus.CONVERSATIONS)
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="write the training text here and stop")
    args = parser.parse_args()
    if args.corpus:
        texts = map(tiny_corpus.as_text, tiny_corpus.conversations(args.seed, args.conversations))
        args.corpus.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        return
    print(json.dumps(build(args.out, args.seed, args.conversations)))


if __name__ == "__main__":
    main()
