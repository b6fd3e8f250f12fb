"""Conversations to token ids with a real tokenizer: which tokens carry the loss, and what happens to long ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byzer_ft.chat import NAMED, ChatTemplate, Conversation, RowError, Specials, conversation, prompt
from byzer_ft.errors import DataError
from byzer_ft.training.data import Encoded, Encoder, fit, prepare, shards
from tests.training.stage import stage

pytestmark = pytest.mark.torch


def load(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_chat: Path) -> Any:
    return load(tiny_llama_chat)


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A tokenizer that puts a blank before each text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = [chr(c) for c in range(32, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(["please explain the safety rules of the table [INST] because model data"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def encoder_of(tokenizer: Any, name: str = "chatml") -> Encoder:
    return Encoder(tokenizer, ChatTemplate(name, NAMED[name], "family"), Specials.of(tokenizer))


def chat(*texts: str, system: str | None = None) -> Conversation:
    pairs = [{"human": q, "assistant": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]
    return conversation({"conversation": pairs, "system": system})


def encode(encoder: Encoder, one: Conversation) -> Encoded:
    found = encoder.conversations([one])[0]
    assert isinstance(found, Encoded)
    return found


def answers(tokenizer: Any, found: Encoded) -> list[str]:
    """The text of each run of tokens that carries loss."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found.target, [False]]).astype(int)))
    return [tokenizer.decode(found.ids[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_loss_is_on_every_answer_and_its_end_and_nothing_else(tokenizer: Any, name: str) -> None:
    texts = ["please", "model 安全", "because\n", "\n\n  data table "]
    found = encode(encoder_of(tokenizer, name), chat(*texts, system="be kind"))
    end = "<|im_end|>"  # this tokenizer's eos
    first, last = answers(tokenizer, found)
    assert texts[1] in first
    assert last.endswith(end)
    assert last.replace("<eoa>", "").replace("<|eot_id|>", "").removesuffix(end).strip() == texts[3].strip()
    assert first.replace("<eoa>", "").replace("<|eot_id|>", "").removesuffix(end).strip() == texts[1]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_transformers_renders_the_saved_template_the_same(tiny_llama_chat: Path, name: str) -> None:
    theirs = load(tiny_llama_chat)
    theirs.chat_template = NAMED[name]
    encoder = encoder_of(theirs, name)
    one = chat("please\n", " model", "why?", "{{ data }}", system="be <kind> & 安全")
    asked = one.messages[:-1]
    assert prompt(asked, encoder.template, encoder.specials) == theirs.apply_chat_template(
        [dict(m) for m in asked], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("name", ["llama2", "mistral", "vicuna", "plain"])
def test_a_tokenizer_with_a_blank_before_each_text(sentencepiece: Any, name: str) -> None:
    encoder = encoder_of(sentencepiece, name)
    assert encoder.whole
    one = chat("please explain", "the rules", "because", "of the model")
    found = encode(encoder, one)
    assert [a.removesuffix("</s>").strip() for a in answers(sentencepiece, found)] == ["the rules", "of the model"]
    text = sentencepiece.decode(found.ids)
    assert "  " not in text, "a text cut in pieces would get a blank before each"


letters = st.text(st.sampled_from("ab \n安<|[/INST]"), min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(letters, letters), min_size=1, max_size=3), name=st.sampled_from(sorted(NAMED)))
def test_the_ids_of_the_first_prompt_are_those_of_inference(
    tokenizer: Any, turns: list[tuple[str, str]], name: str
) -> None:
    encoder = encoder_of(tokenizer, name)
    one = chat(*(text for pair in turns for text in pair))
    found = encode(encoder, one)
    asked = tokenizer(prompt(one.messages[:1], encoder.template, encoder.specials), add_special_tokens=False)
    ids = asked["input_ids"]
    assert found.ids[: len(ids)].tolist() == ids
    assert int(found.target.argmax()) == len(ids)


def test_a_slow_tokenizer_gives_the_same_kind_of_answer() -> None:
    """ByT5's is plain Python: no offsets, no batches."""
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    encoder = encoder_of(slow, "vicuna")
    found = encode(encoder, chat("please", "yes", "why", "no"))
    assert answers(slow, found) == [" yes</s>", " no</s>"]


def test_truncation_that_a_tokenizer_file_brings_along_is_off(tiny_llama_chat: Path) -> None:
    tokenizer = load(tiny_llama_chat)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    long = encode(encoder_of(tokenizer), chat("please " * 30, "model"))
    assert 30 < len(long.ids) != 64


# --------------------------------------------------------------------------------------------------------- fitting


def fitted(tokenizer: Any, one: Conversation, limit: int) -> tuple[list[Encoded], int]:
    encoder = encoder_of(tokenizer)
    whole = encode(encoder, one)
    assert len(whole.ids) > limit
    found, shortened = fit(whole, one, encoder, limit)
    assert all(0 < len(p.ids) <= limit and p.target.any() for p in found)
    return found, shortened


def test_a_long_conversation_is_cut_between_turns_and_keeps_its_system_message(tokenizer: Any) -> None:
    texts = [f"{'please ' if i % 2 == 0 else 'model '}{i} " + "data " * 10 for i in range(12)]
    found, shortened = fitted(tokenizer, chat(*texts, system="be kind"), 100)
    assert len(found) > 1
    assert not shortened
    decoded = [tokenizer.decode(p.ids) for p in found]
    assert all(d.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nplease ") for d in decoded)
    everything = "".join(decoded)
    assert all(everything.count(text) == 1 for text in texts)
    assert sum(len(answers(tokenizer, p)) for p in found) == 6


def test_a_long_answer_loses_its_tail_and_its_end(tokenizer: Any) -> None:
    found, shortened = fitted(tokenizer, chat("please explain", "model " * 200), 64)
    assert (len(found), shortened) == (1, 1)
    text = tokenizer.decode(found[0].ids)
    assert text.startswith("<|im_start|>user\nplease explain<|im_end|>\n<|im_start|>assistant\nmodel model")
    assert not text.endswith("<|im_end|>")
    assert len(found[0].ids) == 64


def test_a_long_question_loses_its_beginning(tokenizer: Any) -> None:
    one = chat("because " * 200 + "what is a table", "model data", system="be kind")
    found, shortened = fitted(tokenizer, one, 64)
    assert (len(found), shortened) == (1, 1)
    text = tokenizer.decode(found[0].ids)
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n")
    assert "what is a table<|im_end|>" in text
    assert answers(tokenizer, found[0]) == ["model data<|im_end|>"]


def test_all_parts_too_long(tokenizer: Any) -> None:
    one = chat("because " * 300, "model " * 300, system="data " * 300)
    found, shortened = fitted(tokenizer, one, 128)
    assert (len(found), shortened) == (1, 1)
    assert found[0].target.sum() >= 64
    assert tokenizer.decode(found[0].ids).startswith("<|im_start|>system\ndata data")


def test_a_long_turn_among_short_ones(tokenizer: Any) -> None:
    found, shortened = fitted(tokenizer, chat("please", "data", "why", "model " * 100, "and", "table"), 48)
    assert shortened == 1
    assert [len(answers(tokenizer, p)) for p in found] == [1, 1, 1]


def test_a_template_longer_than_the_limit_fits_nothing(tokenizer: Any) -> None:
    encoder = encoder_of(tokenizer)
    one = chat("please " * 20, "data")
    with pytest.raises(RowError) as caught:
        fit(encode(encoder, one), one, encoder, 8)
    assert caught.value.reason == "does_not_fit"


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    system=st.integers(0, 40),
    limit=st.integers(40, 150),
)
def test_fitting_loses_no_turn(tokenizer: Any, lengths: list[tuple[int, int]], system: int, limit: int) -> None:
    encoder = encoder_of(tokenizer)
    texts = [text for q, a in lengths for text in ("please " * q, "model " * a)]
    one = chat(*texts, system="data " * system or None)
    whole = encode(encoder, one)
    if len(whole.ids) <= limit:
        return
    found, shortened = fit(whole, one, encoder, limit)
    assert all(len(p.ids) <= limit for p in found)
    assert sum(len(answers(tokenizer, p)) for p in found) == len(lengths)
    assert shortened <= len(lengths)


# -------------------------------------------------------------------------------------------------------- reading


def test_rows_are_counted_over_shards(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"instruction": f"please {i}", "output": "" if i % 5 == 0 else "model"} for i in range(23)]
    found, report = prepare(stage(rows, tmp_path, shards=3), encoder_of(tokenizer), 128)
    assert (report.rows_in, report.used, report.dropped) == (23, 18, 5)
    assert len(found) == report.pieces == 18
    assert report.tokens == found.lengths.sum()
    entry = report.reasons["ends_with_user"]
    assert entry["count"] == 5
    assert [e["row"] for e in entry["examples"]] == [1, 6, 11]
    assert '"please 0"' in entry["examples"][0]["text"]
    assert tokenizer.decode(found[0].ids).startswith("<|im_start|>user\nplease 1")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "manifest.json is missing"),
        ("{", "cannot be read"),
        ('{"format_version": 2, "shards": []}', "format version 2"),
        ('{"format_version": 1, "shards": [{"file": "gone.parquet"}]}', "gone.parquet is missing"),
        ('{"format_version": 1, "shards": [{"file": "../x.parquet"}]}', "missing"),
    ],
)
def test_an_incomplete_staging(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest, "utf-8")
    with pytest.raises(DataError, match=message):
        shards(tmp_path)


def test_a_broken_shard(tokenizer: Any, tmp_path: Path) -> None:
    stage([{"instruction": "a", "output": "b"}], tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"part-00000\.parquet cannot be read"):
        prepare(tmp_path, encoder_of(tokenizer), 128)
