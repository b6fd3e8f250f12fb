"""The documented statements, the places of their parts, and what lies between parsing and a session."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from byzer_ft.errors import NotSupportedError, OptionError, ScriptErrors, Source, SqlError
from byzer_ft.intents import Finetune, Setup, TrainingOptions
from byzer_ft.modeldir import FAMILIES
from byzer_ft.sql import Part, Scope, SetupState, Statement, check, notices, parse, parse_json, plan
from byzer_ft.sql.options import (
    FinetuneOptions,
    GenerationOptions,
    InferOptions,
    SetupOptions,
    expected,
    shown,
    spellings,
    type_word,
)
from byzer_ft.sql.parser import STATEMENTS
from byzer_ft.sql.statements import Options


def parts(value: object) -> Iterator[Part]:
    """Every part below a statement, options' keys and values included."""
    if isinstance(value, Part):
        yield value
    elif isinstance(value, Options):
        for option in value:
            yield from (option.key, option.value)
    elif isinstance(value, tuple):
        for item in value:
            yield from parts(item)
    elif dataclasses.is_dataclass(value) and isinstance(value, Statement):
        for item in dataclasses.fields(value):
            yield from parts(getattr(value, item.name))


def test_documented_statements_are_typed(acceptance: str) -> None:
    statements = parse(Source(acceptance, "acceptance.sql"))
    found = Counter(s["kind"] for s in parse_json(statements))
    assert found == {"macro": 25, "select": 11, "run": 10, "load": 8, "set": 6, "save": 4}


def test_every_part_of_the_documented_statements_knows_its_place(acceptance: str) -> None:
    statements = parse(Source(acceptance, "acceptance.sql"))
    position = 0
    for statement in statements:
        assert statement.span.start >= position
        position = statement.span.end
        line, column = statement.as_json()["line"], statement.as_json()["column"]
        assert (line, column) == (statement.span.line, statement.span.column)
        found = list(parts(statement))
        assert found
        for part in found:
            assert statement.span.start <= part.span.start < part.span.end <= statement.span.end
            if "." in part.span.text and part.quote == "":
                continue  # a dotted name, whose steps may be quoted one by one
            assert part.span.text == f"{part.quote}{part.value}{part.quote}"


def test_the_json_of_every_statement_is_json(acceptance: str) -> None:
    document = parse_json(parse(Source(acceptance)))
    assert json.loads(json.dumps(document)) == document
    finetune = next(d for d in document if d["kind"] == "run")
    assert finetune["options"]["pretrainedModelType"] == "sft/llama2"
    assert finetune["text"].startswith("run command as LLM.``")


def test_all_that_checking_the_documented_statements_refuses_is_not_supported_yet(acceptance: str) -> None:
    errors = check(parse(Source(acceptance)), Scope(owner="me"))
    assert [e.message for e in errors if not isinstance(e, NotSupportedError)] == [
        "variable `ds_config` is not defined"
    ]
    assert {e.message.removesuffix(" is not supported yet") for e in errors} >= {
        *("load excel", "!if", "!delta", "run … as TableRepartition", "!loadExcel (a macro)"),
        'run … as LLM with action="merge"',
    }


@pytest.mark.parametrize("word", STATEMENTS)
def test_every_first_word_in_a_broken_statement_is_an_error_with_a_place(word: str) -> None:
    for text in (word, f"{word} (", f"{word} ''", f"{word} a", f"{word} a as", f"{word} a.`b` where x"):
        try:
            parse(Source(text))
        except ScriptErrors as error:
            assert all(isinstance(e, SqlError) and e.span for e in error.errors)
        else:
            assert word in ("insert", "create", "drop", "refresh", "connect", "unregister", "include"), text


def test_errors_are_in_the_order_of_the_text() -> None:
    with pytest.raises(ScriptErrors) as caught:
        parse(Source("foo;\nsave t as csv.`x` where a='1' and fileNum=0;\nbar;\nselect '", "my.sql"))
    assert [e.span.line for e in caught.value.errors if e.span] == [1, 2, 2, 3, 4]
    assert "my.sql:4:8: error: unterminated string" in caught.value.render()


# ---------------------------------------------------------------------------------------------------------- planning


def finetune(options: str, scope: Scope | None = None) -> Finetune:
    text = f'run t as LLM.`` where localModelDir="/m" and {options}'
    intent = plan(parse(Source(text))[0], scope or Scope(owner="me"))
    assert isinstance(intent, Finetune)
    return intent


@pytest.mark.parametrize("name", TrainingOptions.model_fields)
def test_every_hyper_parameter_has_its_typed_key_and_its_bare_one(name: str) -> None:
    info = TrainingOptions.model_fields[name]
    value = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
    for key in (name, f"`sft.{type_word(info)}.{name}`"):
        training = finetune(f'{key}="{value}"').training
        assert training.model_fields_set == {name}
        assert getattr(training, name) == info.default


@pytest.mark.parametrize("name", TrainingOptions.model_fields)
@pytest.mark.parametrize("value", ["", "nan", "inf", "-1e400", "９", "None", "[]"])
def test_no_hyper_parameter_takes_nonsense(name: str, value: str) -> None:
    with pytest.raises(ScriptErrors) as caught:
        finetune(f'{name}="{value}"')
    (error,) = caught.value.errors
    assert isinstance(error, OptionError)
    assert error.message.startswith(f"option `{name}` must be ")
    assert error.span is not None
    assert error.span.text == f'"{value}"'


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_trained_and_deployed(family: str) -> None:
    assert finetune(f'pretrainedModelType="sft/{family}"').family == family


@pytest.mark.parametrize("model", [FinetuneOptions, InferOptions, GenerationOptions, SetupOptions, TrainingOptions])
def test_every_option_is_described_and_spelled_two_ways(model: type[TrainingOptions]) -> None:
    for name, info in model.model_fields.items():
        assert info.description, name
        assert expected(info), name
        assert name in spellings(model)
    assert len(shown(model)) == len(model.model_fields)


def test_options_of_the_two_actions_do_not_collide() -> None:
    """A bare key must be unambiguous: no hyper-parameter is also a statement's option or a setup key."""
    statement = {*spellings(FinetuneOptions), *spellings(InferOptions), *spellings(SetupOptions)}
    assert not statement & {*spellings(TrainingOptions), *spellings(GenerationOptions)}
    assert not {*spellings(FinetuneOptions), *spellings(InferOptions)} & {*spellings(SetupOptions)}


def test_generation_parameters_are_those_that_serving_understands() -> None:
    from byzer_ft.serving.protocol import PARAMETERS

    ours = {*GenerationOptions.model_fields, "max_tokens"}
    assert ours >= PARAMETERS
    assert ours - PARAMETERS == {"stopping_sequences", "system_msg"}


def test_a_late_error_can_underline_the_option_that_caused_it() -> None:
    (statement,) = parse(Source('load json.`/a` where inferSchema="true" as t'))
    option = statement.options.get("inferSchema")  # type: ignore[attr-defined]
    assert option.value.span.text == '"true"'
    assert option.span.text == 'inferSchema="true"'


def test_options_without_effect_are_announced() -> None:
    script = """
        run t as LLM.`` where localModelDir="/m" and devices="0" and pythonExec="python"
            and remove_unused_columns="true";
        !byzerllm setup "schema=file"; !byzerllm setup num_gpus=1; !python conf "runIn=driver"; !show jobs;
        load json.`/a` where multiLine="true" as t;
        load csv.`/a` where header="true" as t
    """
    found = [[n.split("`")[1] for n in notices(s)] for s in parse(Source(script))]
    assert found == [
        ["devices", "pythonExec", "remove_unused_columns"],
        ["schema"],
        [],
        ["runIn"],
        [],
        ["multiLine"],
        [],
    ]
    (first, *_) = notices(parse(Source(script))[0])
    assert first == "option `devices` has no effect: accepted for compatibility; Ray chooses the GPUs"


# ------------------------------------------------------------------------------------------------------------- setup


def test_setup_is_a_value() -> None:
    empty = SetupState()
    state = empty.apply(Setup(mode="sft")).apply(Setup(key="num_gpus", value="4"))
    assert dict(empty) == {}
    assert dict(state) == {"runIn": "executor", "num_gpus": "4"}
    assert dict(state.rows("me"))["owner"] == "me"
    assert dict(state.rows()) | {"num_gpus": "4", "mode": "sft", "runIn": "executor"} == dict(state.rows())
    assert dict(state.apply(Setup(mode="single"))) == {}
    assert state.apply(Setup()) == state


def test_setup_lives_from_statement_to_statement_in_check() -> None:
    deploy = 'run command as LLM.`` where action="infer" and model="m" and udfName="f";'
    script = '!byzerllm setup "infer_backend=tgi"; {} ' + deploy
    assert [e.message for e in check(parse(Source(script.format(""))), Scope())] == [
        "infer_backend=tgi is not supported yet"
    ]
    assert check(parse(Source(script.format("!byzerllm setup single;"))), Scope()) == []


def test_the_scope_given_to_check_is_not_changed() -> None:
    variables = {"a": "1"}
    scope = Scope(variables=variables)
    assert check(parse(Source("set a='2'; set b='${a}'; select ${b} as c as t")), scope) == []
    assert variables == {"a": "1"}


def test_a_value_that_grows_without_end_is_refused() -> None:
    doubling = "set a='xxxxxxxx';" + "set a='${a}${a}';" * 60
    errors = check(parse(Source(doubling)), Scope())
    assert [e.message for e in errors][:1] == ["the value grows over 16777216 characters"]


def test_importing_sql_loads_nothing_heavy() -> None:
    heavy = "sqlglot,torch,ray,pyspark,pyarrow,duckdb,deltalake,pandas,sqlalchemy"
    program = f"import sys, byzer_ft.sql; print(sorted(set({heavy!r}.split(',')) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
