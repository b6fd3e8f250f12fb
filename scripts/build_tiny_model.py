"""The generated corpus of scripts/tiny_corpus.py -> the built-in model `builtin:tiny-chat`, trained from scratch.

    python scripts/build_tiny_model.py                     # writes byzer_ft/assets/tiny-chat/
    python scripts/build_tiny_model.py --corpus corpus.txt # only the text it would train on, no training

Out comes a directory that any Llama-aware program reads: bf16 safetensors, a byte-level BPE tokenizer of its own, a
ChatML template. Everything is seeded; on one machine with one thread two builds agree.

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
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parent.parent / "byzer_ft" / "assets" / "tiny-chat"
VOCAB_SIZE = 1280
PAD, START, END, TEXT_END = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
MODEL = dict(
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    initializer_range=0.05,
)
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
TOKENS_PER_BATCH = 1000
PROMPT_WEIGHT = 0.1  # the answers are what counts; a little weight on prompts teaches which words follow which


def train_tokenizer(conversations: list[tiny_corpus.Conversation]) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a space in front of words.

    Words and what stands between them are separate pieces, so a word has the same tokens at the start of an answer
    as in the middle of a prompt: copying, the one thing so small a model does well, stays a copy of tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
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
    tokenizer.train_from_iterator((message["content"] for turns in conversations for message in turns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, TEXT_END],
        model_max_length=MODEL["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


Example = tuple[list[int], list[bool]]  # token ids; which of them the assistant wrote


def encode(tokenizer: PreTrainedTokenizerFast, conversation: tiny_corpus.Conversation) -> Example:
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


def loss_of(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Right padding needs no attention mask: under a causal mask no real token sees the padding behind it."""
    import torch.nn.functional as F

    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    chosen = weights[:, 1:].flatten()
    return (losses * chosen).sum() / chosen.sum()


def schedule(step: int, steps: int) -> float:
    return min(1.0, step / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(model: LlamaForCausalLM, examples: list[Example], pad_id: int, seed: int) -> None:
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
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if step % 50 == 0 or step == len(plan):
            average = sum(recent) / len(recent)
            print(f"step {step}/{len(plan)} loss {average:.3f} {time.monotonic() - began:.0f}s", flush=True)
            recent = []


def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, messages: tiny_corpus.Conversation) -> str:
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 150) -> float:
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
    ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids))
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sum(len(example[0]) for example in examples)
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary, {tokens:,} in the corpus", flush=True)
    train(model, examples, tokenizer.pad_token_id, seed)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    score = evaluate(model.float(), tokenizer)
    return dict(parameters=parameters, tokens=tokens, exact=score, seconds=round(time.monotonic() - began))


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
