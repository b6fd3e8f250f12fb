"""Statements and options that are wrong: refused before anything starts, underlining the user's own text."""

from __future__ import annotations

import json

import pytest

from byzer_ft.errors import NotSupportedError, OptionError, ScriptErrors, SqlError
from tests.bad_input.conftest import Desk
from tests.session.test_cli import byzer_ft

# Everything but the option under test is right, though neither table nor model exists: nothing is looked up.
FINETUNE = """run command as LLM.`` where
pretrainedModelType="sft/auto" and localModelDir="/models/x" and inputTable="rows"
and {option};"""
INFER = """run command as LLM.`` where action="infer"
and pretrainedModelType="custom/auto" and localModelDir="/models/x"
and {option};"""


@pytest.mark.parametrize(
    ("script", "words", "at"),
    [
        (
            "select 1 as a as t;\n  lod json.`x` as t;",
            ["unknown statement `lod`", "did you mean `load`?"],
            (2, 3, "lod"),
        ),
        ("frobnicate the table;", ["unknown statement `frobnicate`", "load, ", "`!command`"], (1, 1, "frobnicate")),
        ("加载 json.`x` as t;", ["unknown statement `加载`", "load, "], (1, 1, "加载")),
        ("show tables;", ["did you mean `!show`?"], (1, 1, "show")),
        ("#select 1;", ["a comment begins with `--`"], (1, 1, "#")),
    ],
)
def test_unknown_statement(desk: Desk, script: str, words: list[str], at: tuple[int, int, str]) -> None:
    desk.refused(script, SqlError, *words, at=at)


@pytest.mark.parametrize(
    ("script", "words", "at"),
    [
        ("load json.`/x.jsonl`;", ["`as` and a table name is missing", "load json.`"], (1, 11, "`/x.jsonl`")),
        ('load json.`/x` where\nmode="failfast";', ["`as` and a table name is missing"], (2, 6, '"failfast"')),
        ("select 1 as a;", ["`as a` names the column", "… as a as result;"], (1, 13, "a")),
        ("select a, b from t;", ["has no result table", "select a, b from t as result;"], (1, 18, "t")),
        ("save overwrite t delta.`db.t`;", ["expected `as`", "save overwrite t as delta.`db.t`;"], (1, 18, "delta")),
        ("run command LLM.`` where a='1';", ["expected `as`", "run command as LLM.``"], (1, 13, "LLM")),
    ],
)
def test_missing_as(desk: Desk, script: str, words: list[str], at: tuple[int, int, str]) -> None:
    desk.refused(script, SqlError, *words, at=at)


@pytest.mark.parametrize(
    ("script", "what", "at"),
    [
        ("select 1 as a as t;\nselect\n  'abc as t;\nselect 2 as b as u;\n", "string", (3, 3, "'")),
        ('set a = "never closed;\nset b = 1;', "string", (1, 9, '"')),
        ("set a = '''block\n\nof text;", "string", (1, 9, "'''")),
        ("load json.`/data/x.json as t;", "back-quoted name", (1, 11, "`")),
        ("select 1 /* as a as t;", "comment", (1, 10, "/*")),
    ],
)
def test_unterminated_string_points_at_its_start(desk: Desk, script: str, what: str, at: tuple[int, int, str]) -> None:
    desk.refused(script, SqlError, f"unterminated {what}", "close it with", at=at)


def test_an_odd_quote_far_above_is_suspected(desk: Desk) -> None:
    """The quote that is never closed stands in line 3; the one that is too many, in line 1."""
    script = "select it's as a as t;\nselect 'b' as b as u;\nselect 'c' as c as v;\n"
    desk.refused(script, SqlError, "unterminated string", "or look at line 1", at=(3, 10, "'"))


@pytest.mark.parametrize(
    ("script", "words", "at"),
    [
        ("load csv.`x` where haeder='true' as t;", ["`haeder` of load", "did you mean `header`?"], (1, 20, "haeder")),
        ("save t as csv.`x` where wibble='1';", ["`wibble` of save", "fileNum", "header"], (1, 25, "wibble")),
        ("set a='1' where tpye='text';", ["`tpye`", "did you mean `type`?"], (1, 17, "tpye")),
        (
            FINETUNE.format(option='inputTabel="rows"'),
            ["unknown option `inputTabel`", "did you mean `inputTable`?"],
            (3, 5, "inputTabel"),
        ),
        (
            FINETUNE.format(option='`sft.int.max_seq_lenght`="512"'),
            ["max_seq_lenght", "did you mean `sft.int.max_seq_length`?"],
            (3, 5, "`sft.int.max_seq_lenght`"),
        ),
        (
            FINETUNE.format(option='udfName="f"'),
            ["`udfName`", 'action="infer"'],
            (3, 5, "udfName"),
        ),
        (
            INFER.format(option='max_new_token="5"'),
            ["unknown option `max_new_token`", "did you mean `max_new_tokens`?"],
            (3, 5, "max_new_token"),
        ),
        ('!byzerllm setup "num_gpu=4";', ["num_gpu", "did you mean `num_gpus`?"], (1, 17, '"num_gpu=4"')),
    ],
)
def test_unknown_option(desk: Desk, script: str, words: list[str], at: tuple[int, int, str]) -> None:
    desk.refused(script, OptionError, *words, at=at)


@pytest.mark.parametrize(
    ("option", "words", "column", "text"),
    [
        ('`sft.int.lora_rank`="big"', ["must be a whole number from 1 to 4096, not 'big'"], 25, '"big"'),
        ('`sft.int.lora_rank`="8.5"', ["must be a whole number from 1 to 4096, not '8.5'"], 25, '"8.5"'),
        ('`sft.float.lora_rank`="8"', ["`lora_rank` is", "sft.int.lora_rank"], 5, "`sft.float.lora_rank`"),
        ('`sft.int.lora_rank`="0"', ["must be a whole number from 1 to 4096, not '0'"], 25, '"0"'),
        ('`sft.int.lora_rank`="-8"', ["from 1 to 4096, not '-8'"], 25, '"-8"'),
        ('`sft.float.learning_rate`="nan"', ["must be a number above 0 and at most 10, not 'nan'"], 31, '"nan"'),
        ('`sft.float.learning_rate`="inf"', ["at most 10, not 'inf'"], 31, '"inf"'),
        ('`sft.float.learning_rate`="0"', ["must be a number above 0"], 31, '"0"'),
        ('`sft.float.num_train_epochs`="1e9"', ["above 0 and at most 10000, not '1e9'"], 34, '"1e9"'),
        ('num_train_epochs="1e9"', ["above 0 and at most 10000, not '1e9'"], 22, '"1e9"'),
        ('`sft.int.max_seq_length`="1e400"', ["must be a whole number"], 30, '"1e400"'),
        ('`sft.bool.fp16`="perhaps"', ["`true` or `false`, not 'perhaps'"], 21, '"perhaps"'),
        ('`sft.str.optim`="adamm_torch"', ["did you mean `adamw_torch`?"], 21, '"adamm_torch"'),
        ('detached="maybe"', ["option `detached` must be `true` or `false`, not 'maybe'"], 14, '"maybe"'),
        ('num_gpus="many"', ["option `num_gpus` must be a number", "not 'many'"], 14, '"many"'),
        ('num_gpus="-1"', ["option `num_gpus` must be a number", "not '-1'"], 14, '"-1"'),
        ('num_gpus="1.5"', ["num_gpus=1.5: a fine-tune takes whole GPUs"], 14, '"1.5"'),
        ('config=\'{"lora_rank": "big"}\'', ["config.lora_rank", "not 'big'"], 12, None),
        ("config='{\"learning_rate\": NaN}'", ["config.learning_rate", "not 'nan'"], 12, None),
        ("config='{lora_rank: 8'", ["option `config` is not JSON"], 12, None),
        ('name="../../etc"', ["name '../../etc' cannot name a job", "letters, digits"], 10, '"../../etc"'),
    ],
)
def test_wrong_type_or_value(desk: Desk, option: str, words: list[str], column: int, text: str | None) -> None:
    at = (3, column) if text is None else (3, column, text)
    desk.refused(FINETUNE.format(option=option), OptionError, *words, at=at)


def test_a_value_from_a_variable_is_judged_before_anything_starts(desk: Desk) -> None:
    """The line of the option is underlined, not that of the `set`."""
    script = "set rank='0';\nselect 1 as a as made_before_the_error;\n" + FINETUNE.format(option='lora_rank="${rank}"')
    desk.refused(script, OptionError, "`lora_rank`", "from 1 to 4096, not '0'", at=(5, 15, '"${rank}"'))


def test_an_undefined_variable_lists_what_is_defined(desk: Desk) -> None:
    script = "set city='杭州';\nselect '${ctiy}' as a as t;"
    desk.refused(script, SqlError, "variable `ctiy` is not defined", "did you mean `city`?", at=(2, 9, "${ctiy}"))


@pytest.mark.parametrize("word", ["command", "COMMAND"])
def test_command_is_no_input_table(desk: Desk, word: str) -> None:
    script = (
        f'run command as LLM.`` where pretrainedModelType="sft/auto"\nand localModelDir="/m" and inputTable="{word}";'
    )
    desk.refused(script, OptionError, f"inputTable={word!r}", "a fine-tune needs rows", "load or select", at=(2, 39))


def test_a_fine_tune_without_rows_or_model(desk: Desk) -> None:
    desk.refused(
        'select 1 as a as t;\nrun command as LLM.`` where pretrainedModelType="sft/auto" and localModelDir="/m";',
        OptionError, "inputTable is missing", 'inputTable="name"', at=(2, 1, "run command as LLM"),
    )  # fmt: skip
    desk.refused(
        'run command as LLM.`` where pretrainedModelType="sft/auto" and inputTable="t";',
        OptionError, "which model?", "localModelDir", "load model.", at=(1, 1, "run command as LLM"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("s/baichuan", "did you mean `sft/baichuan`?"),
        ("sft/baichaun", "did you mean `sft/baichuan`?"),
        ("baichuan", "did you mean `sft/baichuan`?"),
        ("custom/llama2", "did you mean `sft/llama2`?"),
        ("sft/neverheard", "types: sft/auto, "),
    ],
)
def test_a_model_type_that_is_none(desk: Desk, kind: str, hint: str) -> None:
    script = f'select 1 as a as never_made;\nrun command as LLM.`` where\npretrainedModelType="{kind}"\n' + (
        'and localModelDir="/m" and inputTable="never_made";'
    )
    desk.refused(script, OptionError, kind, hint, at=(3, 21, f'"{kind}"'))


def test_the_command_line_finds_it_before_anything_starts(desk: Desk) -> None:
    """As the issue has it: `run` of a script with `s/baichuan`; its first statement would write a folder."""
    path = desk.write(
        "my.sql",
        f"select 1 as a as t;\nsave overwrite t as json.`{desk.folder}/written`;\n"
        'run command as LLM.`` where pretrainedModelType="s/baichuan" and localModelDir="/m" and inputTable="t";',
    )
    done = byzer_ft("run", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{path}:3:49: error: " in done.stderr and "did you mean `sft/baichuan`?" in done.stderr
    assert not (desk.folder / "written").exists() and "Traceback" not in done.stderr
    parsed = byzer_ft("parse", str(path))
    assert parsed.returncode == 0 and len(json.loads(parsed.stdout)) == 3


@pytest.mark.parametrize("name", ["count", "UPPER", "llm_param", "llm_response_predict", "select", "from"])
def test_a_function_may_not_take_a_built_in_name(desk: Desk, name: str) -> None:
    script = INFER.format(option=f'udfName="{name}"')
    desk.refused(script, OptionError, f"udfName '{name}' is the name of a built-in", f"{name}_chat", at=(3, 13))
    assert desk.rows("!show functions;") == []


@pytest.mark.parametrize("name", ["", " ", "a b", "1a", "x;drop", "中文", "a.b", "f" * 200])
def test_a_function_needs_a_plain_name(desk: Desk, name: str) -> None:
    desk.refused(INFER.format(option=f'udfName="{name}"'), OptionError, "udfName", at=(3, 13))


def test_all_errors_of_a_script_are_told_at_once(desk: Desk) -> None:
    script = "lod json.`x` as t;\nselect 1;\nload json.`x` where haeder='1' as t;\nselect 'fine' as a as fine;\n"
    with pytest.raises(ScriptErrors) as caught:
        desk.session.sql(script, "bad.sql")
    assert [e.span.line for e in caught.value.errors if e.span] == [1, 2, 3]
    assert caught.value.render().count("bad.sql:") == 3
    assert "fine" not in [row["table"] for row in desk.rows("!show tables;")]


def test_what_is_read_but_not_executed_yet_says_so(desk: Desk) -> None:
    script = "set a='1';\nregister LLM.`x` as y;"
    desk.refused(script, NotSupportedError, "register is not supported yet", at=(2, 1, "register LLM.`x` as y"))
