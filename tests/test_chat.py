"""Rows to conversations to text: every shape, every reason, every template, and templates that mean harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byzer_ft.chat import (
    NAMED,
    REASONS,
    ChatTemplate,
    Conversation,
    RowError,
    Specials,
    conversation,
    detect,
    manner_of,
    prompt,
    render,
    template_for,
)
from byzer_ft.errors import DataError, ModelError

LLAMA = Specials(bos="<s>", eos="</s>", unk="<unk>", known=frozenset({"<s>", "</s>", "<unk>"}))
CHATML = Specials(eos="<|im_end|>", known=frozenset({"<|im_start|>", "<|im_end|>"}))
# Close to what Qwen3 ships: an empty thought before the last answer, none before earlier ones.
THINKING = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if loop.last else '') }}"
    "{{- m.content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def own(text: str) -> ChatTemplate:
    return ChatTemplate("tokenizer", text, "tokenizer")


def chat(*texts: str, system: str | None = None) -> Conversation:
    head = [{"role": "system", "content": system}] if system else []
    return Conversation((*head, *({"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts))))


# ------------------------------------------------------------------------------------------------------- the rows


def test_an_alpaca_row() -> None:
    row = {"instruction": "add", "input": "1, 2", "output": "3", "history": [["hi", "hello"]], "system": "be kind"}
    found = conversation(row)
    assert found == chat("hi", "hello", "add\n1, 2", "3", system="be kind")
    assert found.system == "be kind"
    assert [m["role"] for m in found.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_input_leaves_no_line_behind(empty: str | None) -> None:
    assert conversation({"instruction": "add", "input": empty, "output": "3"}) == chat("add", "3")
    assert conversation({"instruction": empty, "input": "add", "output": "3"}) == chat("add", "3")


def test_a_moss_row_with_and_without_its_other_columns() -> None:
    turns = [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]
    assert conversation({"conversation": turns}) == chat("a", "b", "c", "d")
    more = {"category": "x", "conversation_id": 7, "dataset": "moss", "instruction": None, "output": None}
    assert conversation({"conversation": turns} | more) == chat("a", "b", "c", "d")


def test_whole_numbers_are_text() -> None:
    """Schema inference reads an answer "42" without quotes as a number."""
    assert conversation({"instruction": "6 * 7", "output": 42}) == chat("6 * 7", "42")


def pairs(*of: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversation": [{"human": q, "assistant": a} for q, a in of]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "", "input": " ", "output": None}, "empty"),
        ({"conversation": []}, "empty"),
        ({"conversation": None}, "empty"),
        ({"conversation": [], "system": "be kind"}, "system_only"),
        ({"instruction": "", "output": "", "system": "be kind"}, "system_only"),
        ({"instruction": "a", "output": ""}, "ends_with_user"),
        (pairs(("a", "b"), ("c", None)), "ends_with_user"),
        (pairs(("a", None), ("c", "d")), "two_user_turns"),
        (pairs(("a", "b"), ("", "d")), "two_assistant_turns"),
        ({"instruction": "", "output": "b"}, "starts_with_assistant"),
        (pairs((None, "b")), "starts_with_assistant"),
        ({"conversation": "a"}, "malformed"),
        ({"conversation": ["a", "b"]}, "malformed"),
        ({"conversation": [None]}, "malformed"),
        ({"conversation": [{"question": "a", "answer": "b"}]}, "malformed"),
        (pairs((["a"], "b")), "malformed"),
        (pairs((True, "b")), "malformed"),
        (pairs((1.5, "b")), "malformed"),
        (pairs(("a", "\ud800")), "malformed"),
        ({"instruction": "a", "output": "b", "history": "c"}, "malformed"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "malformed"),
        ({"instruction": "a", "output": "b", "history": [{"c": "d"}]}, "malformed"),
        ({"instruction": "a", "output": "b", "history": [["c", ""]]}, "two_user_turns"),
        ({"instruction": {"a": 1}, "output": "b"}, "malformed"),
    ],
)
def test_rows_that_are_no_conversation(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        conversation(row)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(REASONS[reason])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                max_leaves=6,
            )
            for name in ("instruction", "input", "output", "history", "system", "conversation")
        },
    )
)
def test_any_row_is_a_conversation_or_a_reason(row: dict[str, Any]) -> None:
    try:
        found = conversation(row)
    except RowError as error:
        assert error.reason in REASONS
    else:
        assert [m["role"] for m in found.turns] == ["user", "assistant"] * (len(found.turns) // 2)
        assert all(m["content"].strip() for m in found.messages)


def test_detect() -> None:
    assert detect(["instruction", "output"]) == "alpaca"
    assert detect([("instruction", "string"), ("input", "string"), ("output", "string")]) == "alpaca"
    assert detect(["conversation", "instruction", "output"]) == "moss"


def test_detect_shows_the_columns_the_shapes_and_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        detect([("instuction", "string"), ("output", "string"), ("id", "bigint")])
    assert "instuction string, output string, id bigint" in caught.value.message
    hint = caught.value.hint or ""
    assert "conversation array<struct<human string, assistant string>>" in hint
    assert "history array<array<string>>" in hint
    assert "for column `instruction`: did you mean `instuction`?" in hint


def test_detect_without_columns() -> None:
    with pytest.raises(DataError, match="none"):
        detect([])


# ------------------------------------------------------------------------------------------------------ templates


def test_the_tokenizers_own_template_wins() -> None:
    assert template_for("{{ messages }}", "llama2").source == "tokenizer"
    assert template_for(None, "llama2") == ChatTemplate("llama2", NAMED["llama2"], "family")
    assert template_for(" ", "Qwen3").name == "chatml"
    assert template_for("", "never-heard-of") == ChatTemplate("plain", NAMED["plain"], "default")


def test_llama2_is_written_as_its_makers_do() -> None:
    found = render(chat("q1", "a1", "q2", "a2", system="sys"), template_for(None, "llama2"), LLAMA)
    assert found.text == ("<s>[INST] <<SYS>>\nsys\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST] a2 </s>")
    assert [found.text[a:b] for a, b in found.spans] == [" a1 </s>", " a2 </s>"]


def test_the_newline_after_the_end_of_turn_carries_no_loss() -> None:
    found = render(chat("q1", "a1", "q2", "a2"), template_for(None, "qwen"), CHATML)
    assert [found.text[a:b] for a, b in found.spans] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert "<|im_end|>\n<|im_start|>user\nq2" in found.text
    assert found.text.endswith("a2<|im_end|>")


def test_eos_is_added_where_the_template_ends_with_no_token() -> None:
    manner = manner_of(template_for(None, "qwen"), LLAMA)  # a tokenizer that does not know <|im_end|>
    assert manner.append_eos
    assert manner.end_of_turn == "</s>"
    found = render(chat("q", "a"), template_for(None, "qwen"), LLAMA)
    assert found.text.endswith("a<|im_end|></s>")
    assert not manner_of(template_for(None, "llama2"), LLAMA).append_eos


def test_neither_eos_nor_end_of_turn_is_an_error() -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        manner_of(template_for(None, "llama2"), Specials())


def test_a_template_that_thinks_before_its_last_answer() -> None:
    found = render(chat("q1", "a1", "q2", "a2"), own(THINKING), CHATML)
    assert [found.text[a:b] for a, b in found.spans] == ["a1<|im_end|>", "<think>\n\n</think>\n\na2<|im_end|>"]
    for i in (1, 3):
        asked = prompt(chat("q1", "a1", "q2", "a2").messages[:i], own(THINKING), CHATML)
        assert found.text.startswith(asked)


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system role') }}", ""])
def test_a_refused_or_dropped_system_message_goes_into_the_first_question(refusal: str) -> None:
    text = (
        "{% for m in messages %}{% if m.role == 'system' %}" + refusal + "{% else %}"
        "{{ '<' ~ m.role ~ '>' ~ m.content ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert manner_of(own(text), LLAMA).folds_system
    found = render(chat("q", "a", system="be kind"), own(text), LLAMA)
    assert found.text == "<user>be kind\n\nq</s><assistant>a</s>"
    assert [found.text[a:b] for a, b in found.spans] == ["a</s>"]


def test_a_template_without_the_prefix_property_is_refused() -> None:
    text = (
        "{% if add_generation_prompt %}ASK {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    )
    with pytest.raises(ModelError, match="not the beginning") as caught:
        render(chat("q", "a"), own(text), LLAMA)
    assert "chat_template" in (caught.value.hint or "")


def test_a_row_that_the_template_rewrites_is_one_bad_row() -> None:
    """One question and its answer are fine, and so is the template; it counts the messages of longer chats."""
    text = (
        "{% for m in messages %}{{ m.role ~ ':' ~ (m.content | replace('secret', '')) ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    shuffled = "{% if messages | length > 3 %}{{ messages | length }}{% endif %}" + text
    assert render(chat("q", "a"), own(shuffled), LLAMA).spans
    with pytest.raises(RowError) as caught:
        render(chat("q", "a", "b", "c"), own(shuffled), LLAMA)
    assert caught.value.reason == "not_renderable"


def test_generation_marks_and_loop_controls_are_read_as_transformers_does() -> None:
    text = (
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "    {% if m.role == 'assistant' %}{% generation %}{{ m.content ~ eos_token }}{% endgeneration %}\n"
        "    {% else %}{{ m.content ~ '>' }}{% endif %}{% endfor %}"
    )
    assert render(chat("q", "a"), own(text), LLAMA).text == "q>a</s>"


def test_a_request_must_end_with_a_question() -> None:
    for messages in ([], [{"role": "system", "content": "x"}], chat("q", "a").messages):
        with pytest.raises(DataError, match="user message"):
            prompt(messages, template_for(None, "llama2"), LLAMA)


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)


@settings(deadline=None)
@pytest.mark.parametrize("name", [*NAMED, "thinking"])
@given(
    turns=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    system=st.none() | words,
    specials=st.sampled_from([LLAMA, CHATML]),
)
def test_every_prompt_is_the_beginning_of_the_training_text(
    name: str, turns: list[tuple[str, str]], system: str | None, specials: Specials
) -> None:
    """And what follows it is the answer with its end, and nothing but answers carries loss."""
    template = own(THINKING) if name == "thinking" else ChatTemplate(name, NAMED[name], "family")
    one = chat(*(text for pair in turns for text in pair), system=system)
    found = render(one, template, specials)
    assert len(found.spans) == len(turns)
    head = 1 if system else 0
    for i, (begin, end) in enumerate(found.spans):
        asked = prompt(one.messages[: head + 2 * i + 1], template, specials)
        assert found.text[:begin] == asked
        assert turns[i][1] in found.text[begin:end]
        assert len(found.text[begin:end]) <= len(turns[i][1]) + len("<think>\n\n</think>\n\n<|im_end|></s>")
    assert found.text[: found.spans[-1][1]] == found.text


# ------------------------------------------------------------------------------------------------------- harm


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{% for m in messages %}{{ m.content }}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'x' | center(10000000000) }}",
        "{% set _ = messages.append(1) %}{{ messages[0].pop('role') }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% include '/etc/passwd' %}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_hostile_or_broken_template_is_an_error(text: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        render(chat("q", "a"), own(text), LLAMA)


def test_specials_of_a_tokenizer() -> None:
    class Tokenizer:
        bos_token, eos_token, unk_token, pad_token = "<s>", "</s>", None, None
        all_special_tokens = ("<s>", "</s>", "<|im_end|>")

    found = Specials.of(Tokenizer())
    assert found.variables() == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.is_token("<|im_end|>")
    assert not found.is_token("")
