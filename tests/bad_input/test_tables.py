"""Tables, columns and files that are missing, malformed or of another shape than the statement needs."""

from __future__ import annotations

import gzip
import json

import pytest

from byzer_ft.errors import ConflictError, DataError, NotFoundError, OptionError, SqlError
from tests.bad_input.conftest import Desk

FINETUNE = (
    'run command as LLM.`` where pretrainedModelType="sft/auto" and localModelDir="builtin:tiny-chat"\n'
    'and inputTable="{table}" and outputTable="helper";'
)


@pytest.fixture(scope="module", autouse=True)
def tickets(desk: Desk) -> None:
    path = desk.write("tickets.jsonl", '{"question": "q1", "answer": "a1"}\n{"question": "q2", "answer": "a2"}\n')
    desk.session.sql(f"load json.`{path}` as tickets; select question as q from tickets as short;")


# -------------------------------------------------------------------------------------------- unknown tables, columns


@pytest.mark.parametrize(
    ("script", "at"),
    [
        ("select 1 as one as still_here;\nselect *\nfrom tikets as t;", (3, 6, "tikets")),
        ("select * from (select question from tikets) as t;", (1, 37, "tikets")),
        ("select a.q from short a join tikets b on a.q = b.question as t;", (1, 30, "tikets")),
        ("save overwrite tikets as json.`/tmp/never`;", (1, 16, "tikets")),
        ("!desc tikets;", None),
        (FINETUNE.format(table="tikets"), None),
    ],
)
def test_an_unknown_table_lists_what_exists(desk: Desk, script: str, at: tuple[int, int, str] | None) -> None:
    desk.refused(script, NotFoundError, "`tikets` does not exist", "short", "tickets", "did you mean `tickets`?", at=at)


@pytest.mark.parametrize(
    ("script", "word", "at"),
    [
        ("select question,\n  anser from tickets as t;", "anser", (2, 3, "anser")),
        ("select t.anser from tickets t as u;", "anser", None),
        ("select count(*) as n from tickets where anser = 'x' as u;", "anser", (1, 41, "anser")),
        ("select question from tickets order by anser as u;", "anser", (1, 39, "anser")),
    ],
)
def test_an_unknown_column_lists_what_exists(
    desk: Desk, script: str, word: str, at: tuple[int, int, str] | None
) -> None:
    said = (f"{word}` does not exist", "`tickets`: answer, question", "did you mean `answer`?")
    desk.refused(script, NotFoundError, *said, at=at)


def test_a_column_to_partition_by_lists_what_exists(desk: Desk) -> None:
    script = f"save overwrite tickets as parquet.`{desk.folder}/p` partitionBy anser;"
    desk.refused(script, NotFoundError, "no column `anser`", "answer, question", "did you mean `answer`?")
    assert not (desk.folder / "p").exists()


def test_an_unknown_function_names_the_nearest(desk: Desk) -> None:
    desk.refused("select llm_parm(map('a','b')) as a as t;", NotFoundError, "llm_parm", "did you mean `llm_param`?")


def test_a_query_that_cannot_be_read_is_not_blamed_on_a_column(desk: Desk) -> None:
    desk.refused("select question + from tickets as t;", SqlError, "cannot be read")


# ------------------------------------------------------------------------------------------------- rows to train on


def test_a_table_with_neither_format_shows_its_columns_and_both_shapes(desk: Desk) -> None:
    desk.refused(
        FINETUNE.format(table="tickets"),
        DataError,
        "their columns: question, answer",
        "Alpaca: instruction string, output string, optional: input string, history array<array<string>>",
        "MOSS:   conversation array<struct<human string, assistant string>>",
        "select question as instruction, answer as output",
        at=(1, 1),
    )
    assert desk.rows("!show models;") == []


def test_an_empty_table_is_said_before_anything_starts(desk: Desk) -> None:
    desk.session.sql("select question as instruction, answer as output from tickets where question = 'none' as none;")
    desk.refused(FINETUNE.format(table="none"), DataError, "table 'none' has no rows to train on", "select")
    assert desk.rows("!show models;") == []


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_an_empty_file_is_no_table(desk: Desk, text: str) -> None:
    path = desk.write("empty.jsonl", text)
    desk.refused(f"load json.`{path}` as t;", DataError, str(path), "is empty", "one object a line", at=(1, 1))


# ------------------------------------------------------------------------------------------------------------ files


def test_a_malformed_line_is_named_and_can_be_left_out(desk: Desk) -> None:
    path = desk.write("bad.jsonl", '{"a": 1}\n{"a": 2}\n{"a": 3\n{"a": 4}\n')
    desk.refused(
        f"select 1 as one as still_here;\nload json.`{path}`\nas t;",
        DataError, f"{path}, line 3: malformed JSON", 'mode="dropmalformed"', at=(2, 1),
    )  # fmt: skip
    assert desk.rows(f'load json.`{path}` where mode="dropmalformed" as t;') == [{"a": 1}, {"a": 2}, {"a": 4}]
    assert f"{path}: 1 malformed rows were dropped" in desk.notices


def test_the_malformed_line_of_many_files_is_found(desk: Desk) -> None:
    desk.write("many/1.jsonl", '{"a": 1}\n')
    bad = desk.write("many/2.jsonl.gz", gzip.compress(b'{"a": 2}\nnot json\n'))
    desk.refused(f"load json.`{desk.folder}/many/*` as t;", DataError, f"{bad}, line 2: malformed JSON")
    rows = desk.rows(f'load json.`{desk.folder}/many/*` where mode="dropmalformed" as t;')
    assert rows == [{"a": 1}, {"a": 2}]


def test_a_failed_load_leaves_the_table_of_that_name(desk: Desk) -> None:
    path = desk.write("worse.jsonl", "{")
    desk.refused(f"load json.`{path}` as tickets;", DataError, "line 1")
    assert len(desk.rows("select * from tickets as all_of_them;")) == 2


def test_a_missing_file_names_its_neighbours(desk: Desk) -> None:
    given = f"{desk.folder}/ticket.jsonl"
    desk.refused(f"load json.`{given}` as t;", NotFoundError, given, "did you mean `tickets.jsonl`?", at=(1, 1))
    desk.refused(f"load csv.`{desk.folder}/*.csv` as t;", NotFoundError, "no file matches", "tickets.jsonl")
    desk.refused("load json.`/no/such/folder/x.json` as t;", NotFoundError, "/no/such/folder/x.json")
    desk.refused(
        "select * from json.`/no/such/x.json` as t;", NotFoundError, "/no/such/x.json", at=(1, 20, "`/no/such/x.json`")
    )
    desk.refused("load delta.`shop.tickets` as t;", NotFoundError, "shop.tickets", "tables: ")


def test_gbk_read_as_utf8_says_where_and_how_to_read_it(desk: Desk) -> None:
    row = {"instruction": "推荐一部电影", "output": "霸王别姬"}
    path = desk.write("gbk.jsonl", (json.dumps(row, ensure_ascii=False) + "\n").encode("gbk"))
    desk.refused(f"load json.`{path}` as t;", DataError, f"{path}: byte 17", "utf-8", 'encoding="gb18030"', at=(1, 1))
    assert desk.rows(f'load json.`{path}` where encoding="gb18030" as t;') == [row]
    desk.refused(f'load json.`{path}` where encoding="utf9" as t;', OptionError, "'utf9'", "did you mean `utf-8`?")


def test_what_is_there_is_not_written_over_unasked(desk: Desk) -> None:
    desk.session.sql(f"save tickets as json.`{desk.folder}/saved`; save tickets as delta.`shop.kept`;")
    for place in (f"json.`{desk.folder}/saved`", "delta.`shop.kept`"):
        desk.refused(f"save short as {place};", ConflictError, "exists", "overwrite")
        assert len(desk.rows(f"load {place} as again; select question, answer from again as out;")) == 2
