"""What the built-in model and its demo data promise, checked on the shipped files without torch.

The base model must not have seen the skill that the demo teaches, the held-out tickets must be new, and the
directory must be the small, ordinary model that its card describes.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "byzer_ft" / "assets" / "tiny-chat"
DATA = ROOT / "byzer_ft" / "assets" / "data"
MEGABYTE = 1_000_000
CHAT = [
    {"role": "system", "content": "You are Ada."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]

sys.path.insert(0, str(ROOT / "scripts"))
tiny_corpus: Any = importlib.import_module("tiny_corpus")
demo: Any = importlib.import_module("build_demo_data")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return rows("tickets.jsonl")


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    return rows("tickets_heldout.jsonl")


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [tiny_corpus.as_text(conversation) for conversation in tiny_corpus.conversations()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def combination(row: dict[str, Any]) -> tuple[str, str]:
    """(product, issue) of a ticket, found in its text: the longest issue whose wording it contains."""
    text = row["ticket"].lower()
    issues = [issue for issue in demo.ISSUES[row["team"]] if issue.format(row["product"]).lower() in text]
    return row["product"], max(issues, key=len)


# The corpus


def test_corpus_is_deterministic(corpus: list[str]) -> None:
    again = [tiny_corpus.as_text(conversation) for conversation in tiny_corpus.conversations(count=500)]
    assert corpus[:500] == again


def test_corpus_never_shows_the_skill(corpus: list[str]) -> None:
    text = "\n".join(corpus).lower().replace(" ", "")
    for field in ("product", "urgency", "team"):
        assert f"{field}=" not in text


def test_corpus_has_no_held_out_ticket_or_combination(corpus: list[str], held_out: list[dict[str, Any]]) -> None:
    text = "\n".join(corpus).lower()
    assert not [row["ticket"] for row in held_out if row["ticket"].lower() in text]
    products = {row["product"].lower() for row in held_out}
    naming = [line for line in text.split("\n") if any(product in line for product in products)]
    for product, issue in map(combination, held_out):
        pieces = [piece.strip().lower() for piece in issue.split("{}") if piece.strip()]
        assert not [line for line in naming if product.lower() in line and all(piece in line for piece in pieces)]


def test_corpus_has_no_issue_wording_of_the_demo(corpus: list[str]) -> None:
    """Not even without a product: four words in a row, as in `cannot log in to`, are nobody's but the demo's."""
    text = "\n".join(corpus).lower()
    issues = [issue for issues in demo.ISSUES.values() for issue in issues]
    pieces = {piece.strip().lower() for issue in issues for piece in issue.split("{}") if len(piece.split()) >= 4}
    assert pieces and not [piece for piece in pieces if piece in text]


# The demo data


def test_data_is_what_the_script_writes(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    assert train == [vars(t) for t in demo.tickets(False, demo.TRAIN_ROWS, demo.SEED, first_id=1)]
    assert held_out == [vars(t) for t in demo.tickets(True, demo.HELDOUT_ROWS, demo.SEED, first_id=1001)]


def test_enough_distinct_rows(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    assert len(train) >= 300 and len(held_out) >= 100
    assert len({row["ticket"] for row in [*train, *held_out]}) == len(train) + len(held_out)
    assert len({row["id"] for row in [*train, *held_out]}) == len(train) + len(held_out)
    assert all(list(row) == ["id", "ticket", "product", "urgency", "team"] for row in [*train, *held_out])


def test_held_out_combinations_are_new(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    assert not set(map(combination, train)) & set(map(combination, held_out))


def test_held_out_parts_were_seen(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    """What is new is the combination: each product and each issue on its own is in the training rows."""
    seen = list(map(combination, train))
    for product, issue in map(combination, held_out):
        assert product in {p for p, _ in seen} and issue in {i for _, i in seen}


def test_product_is_copied_from_the_ticket(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    assert all(row["product"] in row["ticket"] for row in [*train, *held_out])


# The model directory


def config(name: str) -> dict[str, Any]:
    return json.loads((MODEL / name).read_text(encoding="utf-8"))


def tensors() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and shapes from the header of the safetensors file; the weights stay unread."""
    with (MODEL / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def test_sizes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size < 8 * MEGABYTE
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 9 * MEGABYTE


def test_is_a_small_llama_that_quantises() -> None:
    shape = config("config.json")
    assert shape["architectures"] == ["LlamaForCausalLM"]
    assert shape["max_position_embeddings"] >= 512
    assert shape["hidden_size"] % 64 == 0 and shape["intermediate_size"] % 64 == 0
    assert {tensor["dtype"] for _, tensor in tensors()} == {"BF16"}


def test_special_tokens(tokenizer: Tokenizer) -> None:
    ids = {token: tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>")}
    assert None not in ids.values() and len(set(ids.values())) == 4
    named = config("tokenizer_config.json")
    assert named["eos_token"] == "<|im_end|>" and named["pad_token"] == "<|pad|>"
    assert named.get("bos_token") is None
    for name in ("config.json", "generation_config.json"):
        assert config(name)["eos_token_id"] == ids["<|im_end|>"]
        assert config(name)["pad_token_id"] == ids["<|pad|>"]
        assert config(name).get("bos_token_id") is None
    assert tokenizer.get_vocab_size() == config("config.json")["vocab_size"]


@pytest.mark.parametrize("text", ["Hello, world", "退款太慢了，请尽快处理！", "ünïcödé 🙂 \t\n x=1; y=2", "Zephyr_9"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_word_has_the_same_tokens_wherever_it_stands(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("Brondax").tokens
    assert tokenizer.encode("say Brondax").tokens[-len(alone) :] == alone
    assert tokenizer.encode("name=Brondax").tokens[-len(alone) :] == alone


def template() -> jinja2.Template:
    return jinja2.Environment().from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))


def test_template_writes_turns() -> None:
    turns = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
    assert template().render(messages=CHAT[1:], add_generation_prompt=False) == turns
    assert template().render(messages=CHAT) == "<|im_start|>system\nYou are Ada.<|im_end|>\n" + turns


def test_template_opens_the_answer() -> None:
    prompt = template().render(messages=CHAT[:2], add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_adds_tokens_and_changes_none(tokenizer: Tokenizer) -> None:
    """Training renders the whole conversation, serving only the prompt: the prompt's tokens must be the same."""
    prompt = tokenizer.encode(template().render(messages=CHAT[:2], add_generation_prompt=True)).ids
    for said in ("Hi", "- a list", " spaced", "\nnew line"):
        whole = tokenizer.encode(template().render(messages=[*CHAT[:2], {"role": "assistant", "content": said}])).ids
        assert whole[: len(prompt)] == prompt
