"""Scripts through a real session with its real engine; nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from byzer_ft.errors import ByzerError, NotFoundError, NotSupportedError, ScriptErrors
from byzer_ft.session import Session
from byzer_ft.settings import load_settings
from tests.tiny import write_jsonl


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def session(home: Path, notices: list[str]) -> Iterator[Session]:
    with Session(load_settings(home=home), notice=notices.append) as session:
        yield session


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    rows = [
        {"id": 1, "q": "printer is broken", "n": 1},
        {"id": 2, "q": "无法登录", "n": 2.5},
        {"id": 3, "q": None, "n": 3},
    ]
    return write_jsonl(tmp_path / "tickets.jsonl", rows)


def test_rows_are_loaded_shaped_saved_and_loaded_again(session: Session, tickets: Path, tmp_path: Path) -> None:
    out = session.sql(
        f"""
        load json.`{tickets}` as raw;
        select id, upper(q) as q, n * 2 as n from raw where id < 3 as shaped;
        save overwrite shaped as delta.`shop.tickets`;
        save overwrite shaped as parquet.`{tmp_path}/p`;
        load delta.`shop.tickets` as again;
        load parquet.`{tmp_path}/p` as more;
        select a.id, m.q, a.n from again a join more m on a.id = m.id order by a.id as out;
        """
    )
    assert out.rows() == [{"id": 1, "q": "PRINTER IS BROKEN", "n": 2.0}, {"id": 2, "q": "无法登录", "n": 5.0}]
    assert list(out.pandas().columns) == ["id", "q", "n"]


def test_each_statement_gives_its_result(session: Session, tickets: Path) -> None:
    results = list(session.run(f"load json.`{tickets}` as t; select count(*) as n from t as c; set x = 'y';"))
    assert [r.kind for r in results] == ["load", "select", "set"]
    assert results[1].rows() == [{"n": 3}]
    with pytest.raises(NotFoundError, match="gives no table"):
        results[2].arrow()


def test_variables_reach_paths_options_and_bodies(session: Session, tickets: Path) -> None:
    script = f"""
    set file = "{tickets}"; set least = "2"; set name = "picked";
    load json.`${{file}}` as t;
    select id from t where id >= ${{least}} order by id as `${{name}}`;
    set n = `select count(*) from picked` where type = "sql";
    select ${{n}} as n, '#set $x is no directive' as kept as out;
    """
    assert session.sql(script).rows() == [{"n": 2, "kept": "#set $x is no directive"}]


def test_default_parameters_do_not_replace(session: Session) -> None:
    script = "set a = 'first'; set a = 'second' where type='defaultParam'; select '${a}' as a as out;"
    assert session.sql(script).rows() == [{"a": "first"}]


def test_nothing_starts_when_anything_is_wrong(session: Session, tickets: Path, tmp_path: Path) -> None:
    script = f"""load json.`{tickets}` as t;
save overwrite t as parquet.`{tmp_path}/p`;
run command as LLM.`` where pretrainedModelType="s/baichuan" and localModelDir="/m" and inputTable="t";"""
    with pytest.raises(ByzerError) as caught:
        session.sql(script, "my.sql")
    assert "s/baichuan" in caught.value.message and "sft/baichuan" in (caught.value.hint or "")
    assert caught.value.span is not None and caught.value.span.line == 3
    assert not (tmp_path / "p").exists()


def test_all_errors_are_found_at_once(session: Session) -> None:
    with pytest.raises(ScriptErrors) as caught:
        session.sql("lod json.`x` as t;\nselect 1;\nload json.`x` where haeder='1' as t;")
    assert [e.span.line for e in caught.value.errors if e.span] == [1, 2, 3]


def test_unknown_tables_and_columns_list_what_exists(session: Session, tickets: Path) -> None:
    session.sql(f"load json.`{tickets}` as tickets;")
    with pytest.raises(ByzerError) as table:
        session.sql("select * from tikets as t;")
    assert "tickets" in (table.value.hint or "") + table.value.message
    with pytest.raises(ByzerError) as column:
        session.sql("select qq from tickets as t;").rows()
    assert "q" in (column.value.hint or "") and column.value.span is not None


def test_what_is_not_executed_yet_says_so_with_its_place(session: Session) -> None:
    with pytest.raises(NotSupportedError, match="not supported yet") as caught:
        session.sql("set a = '1';\nregister LLM.`x` as y;")
    assert caught.value.span is not None and caught.value.span.line == 2


def test_shell_is_refused_and_conf_is_announced(session: Session, notices: list[str]) -> None:
    session.sql('set spark.x = "1" where type="conf";')
    assert any("spark.x" in n for n in notices)
    with pytest.raises(NotSupportedError, match="refused"):
        session.sql('set a = "rm -rf /" where type="shell";')


def test_setup_is_shown_typed_and_reset(session: Session) -> None:
    session.sql('!byzerllm setup sft; !byzerllm setup "num_gpus=4"; !byzerllm setup resource.master=0.01;')
    shown = {row["k"]: row["v"] for row in session.sql("!byzerllm setup num_cpus=2;").rows()}
    assert (shown["num_gpus"], shown["num_cpus"], shown["resource.master"]) == ("4", "2", "0.01")
    after = {row["k"]: row["v"] for row in session.sql("!byzerllm setup single;").rows()}
    assert after["num_gpus"] == "1" and "resource.master" not in after
    with pytest.raises(ByzerError, match="maxCocurrency"):
        session.sql('!byzerllm setup "maxCocurrency=2";')


def test_tables_and_columns_are_shown(session: Session, tickets: Path) -> None:
    session.sql(f"load json.`{tickets}` as t;")
    assert [r["table"] for r in session.sql("!show tables;").rows()] == ["t"]
    assert [r["column"] for r in session.sql("!desc t;").rows()] == ["id", "q", "n"]
    assert session.sql("!show jobs;").rows() == [] and session.sql("!show models;").rows() == []
    with pytest.raises(ByzerError):
        session.sql("!show nonsense;")


def test_a_model_directory_becomes_a_table_whose_rows_are_its_manifest(session: Session) -> None:
    session.sql("load model.`builtin:tiny-chat` as tiny; save overwrite tiny as delta.`ai_model.tiny`;")
    stored = session.sql("load delta.`ai_model.tiny` as stored; select kind, family from stored as out;")
    assert stored.rows()[0]["kind"] == "full"
    assert session.sql('!byzerllm model exists "nothing";').rows() == [{"value": False}]
    assert session.sql('!byzerllm model exists "stored";').rows() == [{"value": True}]


def test_an_unknown_model_table_is_named(session: Session, tickets: Path) -> None:
    session.sql(f"load json.`{tickets}` as t;")
    with pytest.raises(NotFoundError) as caught:
        session.sql(
            'run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto" '
            'and modelTable="helpr" and udfName="f";'
        )
    assert "helpr" in caught.value.message


def test_a_table_may_replace_itself(session: Session, tickets: Path) -> None:
    out = session.sql(
        f"load json.`{tickets}` as t; select id + 1 as id from t as t; select id + 1 as id from t as t; "
        "select max(id) as m from t as out;"
    )
    assert out.rows() == [{"m": 5}]
