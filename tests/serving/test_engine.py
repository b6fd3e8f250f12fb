"""The transformers engine on tiny real models: batches, adapters, parameters, and requests that cannot be answered."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import ByzerError, DataError, EngineError, ModelError
from byzer_ft.serving.protocol import parse_element
from byzer_ft.serving.spec import AdapterRef
from tests.serving.models import make_adapter, open_engine
from tests.tiny import CHATML, make_tiny_llama

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
]

MIXED = [f"please explain {'data ' * (i % 37)}{i}" for i in range(48)]


@pytest.fixture(scope="module")
def adapters(tiny_llama_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    root = tmp_path_factory.mktemp("adapters")
    return [AdapterRef(directory=str(make_adapter(tiny_llama_chat, root / f"a{i}", seed=i))) for i in range(3)]


@pytest.fixture(scope="module")
def engine(tiny_llama_chat: Path) -> Iterator[Any]:
    engine = open_engine(tiny_llama_chat)
    yield engine
    engine.close()


def ask(engine: Any, text: str, adapter: AdapterRef | None = None, **values: Any) -> Any:
    values.setdefault("max_new_tokens", 12)
    return engine.submit(parse_element(json.dumps({"instruction": text, **values})), adapter).result(60)


def ask_all(engine: Any, texts: list[str], refs: list[AdapterRef | None], **values: Any) -> list[Any]:
    requests = [parse_element(text, {"max_new_tokens": 12, **values}) for text in texts]
    futures = [engine.submit(r, refs[i % len(refs)]) for i, r in enumerate(requests)]
    return [future.result(60) for future in futures]


def plain_generate(directory: Path, adapter: AdapterRef | None, texts: list[str], tokens: int = 12) -> list[str]:
    """What transformers and PEFT answer, one by one and without our batching."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.directory)
    model.eval()
    answers = []
    for text in texts:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


# ------------------------------------------------------------------------------------------------------ batches


def test_a_batch_answers_what_each_request_alone_gets(engine: Any, adapters: list[AdapterRef]) -> None:
    refs = [None, *adapters]
    together = ask_all(engine, MIXED, refs)
    alone = [ask(engine, text, refs[i % len(refs)]) for i, text in enumerate(MIXED)]
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.text for a in together}) > len(MIXED) // 2, "the answers must differ for this to say anything"


def test_mixed_adapters_answer_as_plain_peft_does(
    engine: Any, adapters: list[AdapterRef], tiny_llama_chat: Path
) -> None:
    refs: list[AdapterRef | None] = [None, *adapters[:2]]
    together = ask_all(engine, MIXED[:24], refs)
    for place, ref in enumerate(refs):
        expected = plain_generate(tiny_llama_chat, ref, MIXED[:24][place :: len(refs)])
        got = [answer.text for answer in together[place :: len(refs)]]
        assert got == [text.rstrip("\ufffd").strip() for text in expected]


def test_rows_of_one_batch_have_their_own_parameters(engine: Any) -> None:
    values = [{"max_new_tokens": n, "temperature": t, "seed": 5} for n in (1, 3, 20) for t in (0, 1.5)]
    requests = [parse_element(json.dumps({"instruction": "explain safety", **v})) for v in values]
    together = [f.result(60) for f in [engine.submit(r, None) for r in requests]]
    assert [a.completion_tokens for a in together] == [1, 1, 3, 3, 20, 20]
    assert [a.text for a in together] == [ask(engine, "explain safety", **v).text for v in values]
    assert together[4].text != together[5].text


def test_batches_keep_their_limits(engine: Any) -> None:
    from concurrent.futures import Future

    from byzer_ft.serving.engine import form_batches

    rows = [engine._row(parse_element(text), None, Future()) for text in MIXED]
    batches = list(form_batches(rows, 8, 10_000, 32))
    assert sorted(map(id, (r for b in batches for r in b))) == sorted(map(id, rows))
    assert all(len(b) <= 8 for b in batches)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(r.ids) for r in batch) + max(r.room for r in batch)) <= 10_000
    assert [len(b) for b in form_batches(rows, 8, 1, 32)] == [1] * len(rows), "a row that is too large goes alone"


# -------------------------------------------------------------------------------------------------------- stopping


def test_the_end_of_turn_token_ends_an_answer(tiny_llama_chat: Path, tmp_path: Path) -> None:
    """A head that always says one word, then the end-of-turn token: weights set so, not random."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path / "Llama-ends"
    shutil.copytree(tiny_llama_chat, directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    end = AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.fill_(0.1)
        model.lm_head.weight[end] = 1
    model.save_pretrained(directory)
    engine = open_engine(directory)
    try:
        answer = ask(engine, "hello", max_new_tokens=50)
    finally:
        engine.close()
    assert (answer.text, answer.finish, answer.completion_tokens) == ("", "stop", 0)


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(engine: Any) -> None:
    whole = ask(engine, "explain safety", max_new_tokens=40)
    assert whole.finish == "length"
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = ask(engine, "explain safety", max_new_tokens=40, stop=stop)
    assert cut.finish == "stop" and stop not in cut.text
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.completion_tokens < whole.completion_tokens


# ------------------------------------------------------------------------------------------------------ parameters


def test_a_seed_repeats_a_draw_whatever_else_is_in_the_batch(engine: Any) -> None:
    drawn = {"temperature": "1.2", "seed": "7", "max_new_tokens": "16"}
    alone = ask(engine, "explain safety", **drawn)
    crowd = [engine.submit(parse_element(text, {"temperature": 1}), None) for text in MIXED[:10]]
    again = ask(engine, "explain safety", **drawn)
    assert again.text == alone.text
    assert ask(engine, "explain safety", **drawn | {"seed": "8"}).text != alone.text
    assert all(f.result(60) for f in crowd)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}, {"temperature": 1e-9}])
def test_a_draw_from_one_token_is_the_greedy_answer(engine: Any, narrow: dict[str, Any]) -> None:
    assert ask(engine, "hello", **{"temperature": 1, **narrow}).text == ask(engine, "hello").text


def test_a_repetition_penalty_forbids_what_was_said(engine: Any) -> None:
    ids = [
        engine.base_voice.tokenizer.encode(ask(engine, "data", max_new_tokens=24, repetition_penalty=p).text)
        for p in (1, 100)
    ]
    assert len(set(ids[1])) / len(ids[1]) > len(set(ids[0])) / len(ids[0])


def test_a_raw_prompt_is_not_put_into_the_template(engine: Any) -> None:
    raw = ask(engine, "please explain", input_pattern="prompt")
    assert raw.prompt_tokens < ask(engine, "please explain").prompt_tokens


# ------------------------------------------------------------------------------- requests that cannot be answered


def test_a_context_that_is_too_long_says_how_long(engine: Any) -> None:
    long = "学习 " * 3000
    with pytest.raises(DataError, match=r"\d+ tokens, and the model reads 2048"):
        ask(engine, long)
    with pytest.raises(DataError, match="max_length=5"):
        ask(engine, "hello there", max_length=5)


def test_an_answer_is_bounded_by_the_context(engine: Any) -> None:
    nearly = ask(engine, "x" * 1900, max_new_tokens=1000)
    assert nearly.prompt_tokens + nearly.completion_tokens == 2048 and nearly.finish == "length"


def test_a_megabyte_fails_alone(engine: Any) -> None:
    futures = [engine.submit(parse_element(t, {"max_new_tokens": 4}), None) for t in ("hi", "x" * 1_000_000, "ho")]
    assert futures[0].result(60).text is not None and futures[2].result(60).text is not None
    with pytest.raises(DataError, match="tokens"):
        futures[1].result(60)


def test_every_unicode_class_and_nothing_at_all(engine: Any) -> None:
    first: dict[str, str] = {}
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            first.setdefault(unicodedata.category(chr(code)), chr(code))
    texts = [*first.values(), "".join(first.values()), "", " ", "\0", "e\u0301\u202e\ufeff", "👩‍👩‍👧", "<|im_end|>"]
    answers = ask_all(engine, texts, [None], max_new_tokens=3)
    assert len(answers) == len(texts) and all(isinstance(a.text, str) for a in answers)


def test_the_row_that_breaks_a_batch_fails_alone(tiny_llama_chat: Path, tmp_path: Path) -> None:
    """Its tokenizer knows a word that the model's embedding does not: a real IndexError in the middle of a batch."""
    from transformers import AutoTokenizer

    directory = tmp_path / "Llama-short"
    shutil.copytree(tiny_llama_chat, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["zzgrown"])
    tokenizer.save_pretrained(directory)
    engine = open_engine(directory)
    try:
        texts = [*MIXED[:12], "say zzgrown please", *MIXED[12:20]]
        futures = [engine.submit(parse_element(t, {"max_new_tokens": 6}), None) for t in texts]
        outcomes = [f.exception(60) for f in futures]
        expected = [a.text for a in ask_all(engine, MIXED[:20], [None], max_new_tokens=6)]
    finally:
        engine.close()
    assert isinstance(outcomes[12], EngineError) and "this request" in str(outcomes[12])
    answered = [f.result().text for f, error in zip(futures, outcomes, strict=True) if error is None]
    assert answered == expected


OUT_OF_MEMORY = """
import logging, resource, sys
from pathlib import Path
from byzer_ft.serving.protocol import parse_element
from tests.serving.models import open_engine

engine = open_engine(Path(sys.argv[1]))
short = [parse_element(f"explain {i}", {"max_new_tokens": 4}) for i in range(4)]
long = [parse_element("x" * 1900, {"max_new_tokens": 4}) for _ in range(32)]
expected = [f.result(60).text for f in [engine.submit(r, None) for r in [*short, *long[:1]]]]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20, resource.RLIM_INFINITY))
futures = [engine.submit(r, None) for r in [*short, *long]]
outcomes = [f.exception(120) for f in futures]
assert outcomes[:4] == [None] * 4, outcomes
assert [f.result().text for f in futures[:4]] == expected[:4]
assert all(o is None or "memory" in str(o) for o in outcomes), outcomes
assert all(f.result().text == expected[4] for f, o in zip(futures[4:], outcomes[4:]) if o is None)
"""


def test_out_of_memory_splits_the_batch_and_hits_only_what_cannot_fit(tiny_llama_chat: Path) -> None:
    """In a process whose memory is limited, so that a batch of long rows really cannot be allocated."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tiny_llama_chat)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trying its halves" in done.stderr


def test_a_cancelled_request_leaves_its_batch(engine: Any) -> None:
    futures = [engine.submit(parse_element("hello", {"max_new_tokens": 200}), None) for _ in range(3)]
    assert futures[1].cancel()
    assert futures[0].result(60).completion_tokens == futures[2].result(60).completion_tokens
    assert ask(engine, "hello").text


# -------------------------------------------------------------------------------------------------------- adapters


def test_more_adapters_than_fit_take_turns(tiny_llama_chat: Path, adapters: list[AdapterRef]) -> None:
    engine = open_engine(tiny_llama_chat, max_adapters=2)
    try:
        got = [a.text for a in ask_all(engine, MIXED[:12], list(adapters))]
        assert len(engine.info()["adapters"]) == 2
        again = [ask(engine, text, adapters[i % 3]).text for i, text in enumerate(MIXED[:12])]
    finally:
        engine.close()
    assert got == again


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    engine: Any, adapters: list[AdapterRef], tiny_llama_chat: Path, tmp_path: Path
) -> None:
    other = make_tiny_llama(tmp_path / "Llama-wide", template=CHATML, hidden=128)
    wrong = AdapterRef(directory=str(make_adapter(other, tmp_path / "wrong", seed=9)))
    before = ask_all(engine, MIXED[:6], [None, adapters[0]])
    loaded = engine.info()["adapters"]
    with pytest.raises(ModelError, match="does not fit"):
        engine.load(wrong)
    with pytest.raises(ModelError, match="does not fit"):
        ask(engine, "x", wrong)
    assert engine.info()["adapters"] == loaded
    assert ask_all(engine, MIXED[:6], [None, adapters[0]]) == before


def test_the_first_adapter_may_be_the_wrong_one(
    adapters: list[AdapterRef], tiny_llama_chat: Path, tmp_path: Path
) -> None:
    other = make_tiny_llama(tmp_path / "Llama-wide", template=CHATML, hidden=128)
    engine = open_engine(tiny_llama_chat)
    try:
        before = ask(engine, "hello").text
        with pytest.raises(ModelError, match="does not fit"):
            engine.load(AdapterRef(directory=str(make_adapter(other, tmp_path / "wrong", seed=9))))
        assert ask(engine, "hello").text == before
        expected = plain_generate(tiny_llama_chat, adapters[0], ["hello"])[0].rstrip("\ufffd").strip()
        assert ask(engine, "hello", adapters[0]).text == expected
    finally:
        engine.close()


@pytest.mark.parametrize("damage", ["nan", "truncated", "missing", "bias", "not_lora", "half"])
def test_a_damaged_adapter_is_refused_with_the_reason(
    engine: Any, adapters: list[AdapterRef], tiny_llama_chat: Path, tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "damaged"
    shutil.copytree(str(adapters[0].directory), directory)
    weights, config = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    if damage in ("nan", "half"):
        tensors = load_file(weights)
        first = next(iter(tensors))
        tensors[first] = tensors[first] * float("nan")
        save_file(tensors if damage == "nan" else dict(list(load_file(weights).items())[2:]), weights)
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing":
        weights.unlink()
    else:
        change = {"bias": "all"} if damage == "bias" else {"peft_type": "IA3"}
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelError):
        engine.load(AdapterRef(directory=str(directory)))
    assert ask(engine, "hello", adapters[0]).text == ask(engine, "hello", adapters[0]).text


def test_an_adapter_brings_its_own_template(tiny_llama: Path, tmp_path: Path) -> None:
    """The base has no chat template; what training wrote beside the adapter is what is asked with."""
    directory = make_adapter(tiny_llama, tmp_path / "own", seed=1)
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}<Q>{{ m['content'] }}<A>{% endfor %}{% if not add_generation_prompt %}</s>{% endif %}"
    )
    engine = open_engine(tiny_llama)
    try:
        engine.load(None)
        found = engine.load(AdapterRef(directory=str(directory)))
        assert found["source"] == "tokenizer"
        assert ask(engine, "hi", AdapterRef(directory=str(directory))).prompt_tokens != ask(engine, "hi").prompt_tokens
    finally:
        engine.close()


# ------------------------------------------------------------------------------------------------------ model files


def test_a_model_without_pad_token_is_padded_with_its_end(tiny_llama: Path) -> None:
    engine = open_engine(tiny_llama)
    try:
        assert engine.base_voice.tokenizer.pad_token_id is None
        got = [a.text for a in ask_all(engine, MIXED[:6], [None])]
        assert got == [ask(engine, text).text for text in MIXED[:6]]
    finally:
        engine.close()


def test_a_model_without_tokenizer_says_so_when_it_is_asked(tiny_llama_chat: Path, tmp_path: Path) -> None:
    directory = tmp_path / "Llama-mute"
    shutil.copytree(
        tiny_llama_chat, directory, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*", "special*")
    )
    engine = open_engine(directory)
    try:
        with pytest.raises(ModelError, match="no tokenizer"):
            ask(engine, "hello")
        speaking = AdapterRef(directory=str(make_adapter(tiny_llama_chat, tmp_path / "speaks", seed=2)))
        assert isinstance(ask(engine, "hello", speaking).text, str)
    finally:
        engine.close()


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_bases_answer_with_adapters(
    tiny_llama_chat: Path, adapters: list[AdapterRef], quantization: str
) -> None:
    engine = open_engine(tiny_llama_chat, quantization=quantization)
    try:
        together = ask_all(engine, MIXED[:6], [None, adapters[0]])
        assert all(isinstance(a.text, str) for a in together)
        assert ask(engine, "hello", adapters[0]).text != ask(engine, "hello", adapters[1]).text
    finally:
        engine.close()


def test_a_base_that_cannot_be_loaded_is_a_model_error(tiny_llama_chat: Path, tmp_path: Path) -> None:
    directory = tmp_path / "Llama-odd"
    shutil.copytree(tiny_llama_chat, directory)
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 96}))
    with pytest.raises(ByzerError) as caught:
        open_engine(directory)
    assert isinstance(caught.value, ModelError) and str(directory) in caught.value.message


def test_a_closed_engine_answers_nobody(tiny_llama_chat: Path) -> None:
    engine = open_engine(tiny_llama_chat)
    waiting = engine.submit(parse_element("hello", {"max_new_tokens": 2}), None)
    engine.close()
    assert isinstance(waiting.exception(30), EngineError | None)
    with pytest.raises(EngineError, match="closed"):
        ask(engine, "hello")
