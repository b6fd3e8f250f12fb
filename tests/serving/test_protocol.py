"""Elements of an argument -> requests, and answers -> the JSON that SQL receives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzer_ft.errors import DataError, OptionError
from byzer_ft.intents import BaseModelRef
from byzer_ft.serving.protocol import (
    DEFAULT_MAX_NEW_TOKENS,
    Reply,
    Request,
    array_element,
    parse_element,
    parse_elements,
)
from byzer_ft.serving.spec import AdapterRef, DeploymentSpec, FunctionSpec, files_key


def ask(value: Any, **defaults: Any) -> Request:
    return parse_element(value if isinstance(value, str) else json.dumps(value), defaults)


def error_of(value: Any) -> str:
    with pytest.raises(DataError) as caught:
        ask(value)
    return caught.value.message


# ------------------------------------------------------------------------------------------------ the three kinds


def test_a_text_is_a_prompt() -> None:
    request = ask("推荐一部电影")
    assert request.messages == [{"role": "user", "content": "推荐一部电影"}]
    assert request.raw == {"instruction": "推荐一部电影"}


@pytest.mark.parametrize("text", ["", " ", '{"a": 1}', '{"instruction"', "[1, 2]", '"x"', "null", "{" * 100_000])
def test_what_only_looks_like_a_request_is_a_prompt(text: str) -> None:
    assert ask(text).messages == [{"role": "user", "content": text}]


def test_plain_takes_even_a_request_as_text() -> None:
    text = '{"instruction": "x", "system_msg": "obey"}'
    assert parse_element(text, plain=True).messages == [{"role": "user", "content": text}]


def test_an_object_with_an_instruction_is_a_request() -> None:
    request = ask({"instruction": "推荐一部电影", "system_msg": "You are helpful.", "category": "x"})
    assert request.messages == [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "推荐一部电影"},
    ]
    assert request.raw["category"] == "x"


def test_values_may_be_strings_as_llm_param_makes_them() -> None:
    request = ask(
        {
            "instruction": "x",
            "temperature": "0.5",
            "top_p": " 0.7 ",
            "max_new_tokens": "12",
            "seed": "3",
            "stopping_sequences": "User:,###",
            "embedding": "false",
        }
    )
    used = request.generation
    assert (used.temperature, used.top_p, used.max_new_tokens, used.seed) == (0.5, 0.7, 12, 3)
    assert used.stop == ("User:", "###")


def test_prefixed_parameters_lose_their_prefix() -> None:
    used = ask({"instruction": "x", "generation.top_k": "5", "gen.repetition_penalty": "1.1"}).generation
    assert (used.top_k, used.repetition_penalty) == (5, 1.1)


def test_a_prefixed_parameter_that_is_unknown_is_an_error_with_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        ask({"instruction": "x", "generation.temprature": "1"})
    assert "temprature" in caught.value.message and "temperature" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", "hot"), ("temperature", "-1"), ("top_p", "2"), ("top_p", "nan"), ("max_new_tokens", "0")]
    + [("max_new_tokens", "1.5"), ("seed", "-1"), ("repetition_penalty", "0"), ("input_pattern", "x"), ("stop", "[1]")],
)
def test_a_parameter_out_of_range_names_itself(key: str, value: str) -> None:
    assert key in error_of({"instruction": "x", key: value})


@pytest.mark.parametrize("value", [None, [], {"a": 1}, True])
def test_an_instruction_must_be_a_text(value: Any) -> None:
    assert "instruction" in error_of({"instruction": value})


@pytest.mark.parametrize(("key", "value"), [("embedding", "true"), ("embedding", True), ("image", "aGk=")])
def test_what_is_not_served_is_refused_not_ignored(key: str, value: Any) -> None:
    assert key in error_of({"instruction": "x", key: value})


@pytest.mark.parametrize(
    "history",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "Human", "content": "a"}, {"role": "bot", "content": "b"}],
        [["a", "b"]],
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
    ],
)
def test_history_in_its_forms(history: Any) -> None:
    assert [m["content"] for m in ask({"instruction": "c", "history": history}).messages] == ["a", "b", "c"]


def test_roles_name_the_roles_of_the_history() -> None:
    turns = [{"role": "Mensch", "content": "a"}, {"role": "Maschine", "content": "b"}]
    request = ask({"instruction": "c", "history": turns, "user_role": "Mensch", "assistant_role": "Maschine"})
    assert [m["role"] for m in request.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    "history", ["x", "{}", [1], [{"role": "king", "content": "a"}], [["a"]], [{"role": "user"}], 5]
)
def test_a_history_that_is_none_is_an_error(history: Any) -> None:
    assert "history" in error_of({"instruction": "c", "history": history})


# --------------------------------------------------------------------------------------------------- parameters


def test_answers_are_greedy_unless_a_draw_is_asked_for() -> None:
    assert ask("x").generation.temperature == 0
    assert ask({"instruction": "x", "top_p": "0.9"}).generation.temperature == 1
    assert ask({"instruction": "x", "gen.do_sample": "true"}).generation.temperature == 1
    assert ask({"instruction": "x", "gen.do_sample": "false", "temperature": "0.9"}).generation.temperature == 0
    assert ask({"instruction": "x", "temperature": "0", "top_p": "0.9"}).generation.temperature == 0


def test_how_much_room_an_answer_has() -> None:
    assert ask("x").generation.room(10, 100_000) == DEFAULT_MAX_NEW_TOKENS
    assert ask({"instruction": "x", "max_length": "100"}).generation.room(10, 100_000) == 90
    assert ask({"instruction": "x", "max_length": "100", "max_tokens": 5}).generation.room(10, 100_000) == 5
    assert ask({"instruction": "x", "max_length": 4096}).generation.room(10, 2048) == 2038
    assert ask("x").generation.room(2048, 2048) == 0


def test_a_request_wins_over_the_functions_defaults() -> None:
    defaults = {"temperature": "0.3", "max_new_tokens": 7, "system_msg": "S", "stop": "E"}
    assert ask("x", **defaults).generation.temperature == 0.3
    assert ask("x", **defaults).messages[0] == {"role": "system", "content": "S"}
    own = ask({"instruction": "x", "temperature": "0", "max_length": "50", "system_msg": "T"}, **defaults)
    assert (own.generation.temperature, own.generation.max_new_tokens, own.generation.max_length) == (0, None, 50)
    assert own.messages[0]["content"] == "T"


def test_defaults_are_checked_when_a_function_is_made() -> None:
    assert FunctionSpec(name="f", defaults={"temperature": "0.2"}).defaults == {"temperature": "0.2"}
    with pytest.raises(OptionError) as caught:
        FunctionSpec(name="f", defaults={"temprature": "0.2"})
    assert "temperature" in (caught.value.hint or "")
    with pytest.raises(OptionError):
        FunctionSpec(name="f", defaults={"top_p": "7"})


def test_a_raw_prompt_has_named_roles_as_the_original_wrote_them() -> None:
    plain = ask({"instruction": "Once", "input_pattern": "prompt"})
    assert plain.raw_prompt() == "Once"
    named = ask(
        {
            "instruction": "hi",
            "system_msg": "Be kind.",
            "input_pattern": "prompt",
            "system_role": "System",
            "user_role": "User",
            "assistant_role": "Assistant",
        }
    )
    assert named.raw_prompt() == "System:\nBe kind.\nUser:hi\nAssistant:"


# ------------------------------------------------------------------------------------------- replies and stacking


def reply_to(value: Any, answer: str) -> str:
    return array_element(Reply(answer, None, ask(value), {"finish_reason": "stop"}))


def test_a_reply_speaks_both_protocols() -> None:
    [item] = json.loads(reply_to({"instruction": "你好", "system_msg": "S", "x": "1"}, "答"))
    assert item["predict"] == item["output"] == "答"
    assert item["input"] == {"instruction": "你好", "system_msg": "S", "x": "1"}
    assert [m["role"] for m in item["history"]] == ["system", "user", "assistant"]
    assert item["metadata"] == {"finish_reason": "stop"}


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: json.dumps(v), lambda v: [json.dumps(v)]])
def test_a_stack_goes_on_with_the_conversation(wrap: Any) -> None:
    first = reply_to({"instruction": "a", "system_msg": "S", "temperature": "0.9"}, "b")
    request = ask({"stack": [wrap(json.loads(first)), wrap({"instruction": "c"})]})
    assert [(m["role"], m["content"]) for m in request.messages] == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert request.generation.temperature == 0, "parameters belong to their own request"
    third = ask({"stack": [array_element(Reply("d", None, request)), {"instruction": "e", "system_msg": "T"}]})
    assert [m["content"] for m in third.messages] == ["T", "a", "b", "c", "d", "e"]


def test_a_stack_on_a_reply_of_the_original() -> None:
    old = [{"predict": "b", "input": {"instruction": "a"}}]
    assert [m["content"] for m in ask({"stack": [old, {"instruction": "c"}]}).messages] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "stack",
    [[], [1], ["x", {"instruction": "c"}], [[{"predict": "b"}], "x"], [[{"predict": "b"}], {"a": 1}], [None, None]],
)
def test_a_stack_of_something_else_is_an_error(stack: list[Any]) -> None:
    assert "llm_stack" in error_of({"stack": stack})


def test_one_bad_element_does_not_hurt_the_others() -> None:
    items = parse_elements(["a", '{"instruction": "b", "top_p": "9"}', None, "c"])
    assert [type(i) for i in items] == [Request, Reply, Reply, Request]
    assert all(i.error and i.text is None for i in items if isinstance(i, Reply))


@given(st.text(), st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.none(), max_size=4))
def test_any_text_makes_a_request_or_a_reason_and_a_reply_is_utf8_json(text: str, extra: dict[str, Any]) -> None:
    for element in (text, json.dumps({**extra, "instruction": text})):
        (item,) = parse_elements([element])
        reply = Reply("x", None, item) if isinstance(item, Request) else item
        assert json.loads(array_element(reply).encode("utf-8"))


def test_lone_surrogates_become_valid_text() -> None:
    request = ask('{"instruction": "a\\ud800b", "x": ["\\udfff"], "temperature": "0"}')
    request.messages[0]["content"].encode("utf-8")
    array_element(Reply("x", None, request)).encode("utf-8")


def test_nan_in_a_request_is_not_json_for_us() -> None:
    assert "temperature" in error_of('{"instruction": "a", "temperature": NaN}')


def test_a_request_survives_the_way_to_a_replica() -> None:
    request = ask({"instruction": "x", "history": [["a", "b"]], "temperature": "0.5", "user_role": "U", "stop": "E"})
    assert Request.from_json(json.loads(json.dumps(request.as_json()))) == request


# ----------------------------------------------------------------------------------------------------------- specs


def test_an_application_is_named_by_its_base_and_engine_settings() -> None:
    base = BaseModelRef(directory="/m", root_hash="h")
    one = DeploymentSpec(owner="ann", base=base)
    assert one.application.startswith("byzer_ft.ann.")
    same = [
        DeploymentSpec(owner="ann", base=base, replicas=4),
        DeploymentSpec(owner="ann", base=BaseModelRef(directory="/elsewhere", root_hash="h", uri="/lake/x")),
        DeploymentSpec(owner="ann", base=base, num_gpus=0, num_cpus=0.5),
    ]
    assert {spec.application for spec in same} == {one.application}
    others = [
        DeploymentSpec(owner="bob", base=base),
        DeploymentSpec(owner="ann", base=BaseModelRef(directory="/m", root_hash="other")),
        DeploymentSpec(owner="ann", base=base, quantization="4bit"),
        DeploymentSpec(owner="ann", base=base, num_gpus=1),
        DeploymentSpec(owner="ann", base=base, custom={"master": 0.01}),
    ]
    assert len({spec.application for spec in [one, *others]}) == 1 + len(others)


def test_a_directory_trained_again_is_another_one(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"1")
    before = files_key(tmp_path)
    assert files_key(tmp_path) == before
    weights.write_bytes(b"22")
    assert files_key(tmp_path) != before


def test_specs_survive_the_catalog() -> None:
    function = FunctionSpec(name="f", adapter=AdapterRef(directory="/a", root_hash="h"), defaults={"top_k": 3})
    assert FunctionSpec.model_validate(function.model_dump(mode="json")) == function
    spec = DeploymentSpec(owner="ann", base=BaseModelRef(directory="/m"), custom={"master": 0.01})
    assert DeploymentSpec.model_validate(spec.model_dump(mode="json")) == spec
