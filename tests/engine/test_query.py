"""Selects become views: lazy where that is the same, kept where it is not, and errors that say what exists."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from byzer_ft.engine import references
from byzer_ft.errors import (
    Cancelled,
    EngineError,
    NotFoundError,
    NotSupportedError,
    ResourceError,
    ScriptError,
    SqlError,
)
from tests.engine.conftest import Desk


@pytest.fixture(autouse=True)
def people(desk: Desk) -> None:
    desk.engine.register("people", pa.table({"id": [1, 2, 3], "name": ["ann", "bo", None]}))


def test_columns_tables_and_drop(desk: Desk) -> None:
    desk.query("select id, named_struct('a', array('x')) as s, cast(1.5 as decimal(10,2)) as d from people", "shaped")
    assert desk.engine.columns("SHAPED") == [("id", "bigint"), ("s", "struct<a:array<string>>"), ("d", "decimal(10,2)")]
    assert desk.engine.tables()["shaped"] == desk.engine.columns("shaped")
    assert desk.engine.arrow("shaped", limit=1).num_rows == 1
    desk.engine.drop("shaped")
    with pytest.raises(NotFoundError, match="table `shaped` does not exist"):
        desk.engine.columns("shaped")


def test_names_are_the_users_own(desk: Desk) -> None:
    for name in ("中文 表", "a.b", "a-b", "select", "tick`ed", "MiXed"):
        quoted = "`" + name.replace("`", "``") + "`"
        assert desk.query("select 1 as `列 名`", name) == [{"列 名": 1}]
        assert desk.query(f"select `列 名` from {quoted}") == [{"列 名": 1}]
        assert name in desk.engine.tables()
    assert desk.query("select mixed.`列 名` from MIXED") == [{"列 名": 1}]
    desk.query("select 2 as x", "mixed")
    assert desk.query("select x from MiXed") == [{"x": 2}]
    assert [t for t in desk.engine.tables() if t.lower() == "mixed"] == ["mixed"]


def test_a_table_may_be_made_of_itself_and_others_keep_what_they_read(desk: Desk) -> None:
    desk.query("select id from people", "chain")
    desk.query("select id * 10 as id from chain", "dependent")
    desk.query("select id + 1 as id from chain", "chain")
    desk.query("select id + 1 as id from chain as chain", "chain")
    assert [r["id"] for r in desk.rows("chain")] == [3, 4, 5]
    assert [r["id"] for r in desk.rows("dependent")] == [10, 20, 30]
    desk.engine.drop("chain")
    assert [r["id"] for r in desk.rows("dependent")] == [10, 20, 30]


def test_a_cte_hides_a_table_of_its_name(desk: Desk) -> None:
    assert desk.query("with people as (select 7 as id) select * from people") == [{"id": 7}]
    assert desk.query("with people as (select id from people where id = 1) select * from people") == [{"id": 1}]
    with pytest.raises(NotFoundError, match="table `later` does not exist"):
        desk.query("with a as (select * from later), later as (select 1 as x) select * from a")


@pytest.mark.parametrize("word", ["rand()", "uuid()", "current_timestamp()", "now()", "monotonically_increasing_id()"])
def test_what_would_differ_is_computed_once(desk: Desk, word: str) -> None:
    first = desk.query(f"select id, {word} as r from people", "kept")
    assert desk.rows("kept") == first
    assert desk.query("select * from kept", "again") == first
    assert any(n.startswith("kept: computed once and kept, since") for n in desk.notices)


def test_an_ordinary_select_is_lazy(desk: Desk) -> None:
    desk.query("select id from people", "quiet")
    assert desk.notices == []


def test_the_order_of_rows_is_kept(desk: Desk) -> None:
    desk.engine.register("many", pa.table({"i": list(range(300_000)), "s": ["x" * 20] * 300_000}))
    assert [r["i"] for r in desk.query("select i from many where i % 3 = 0")] == list(range(0, 300_000, 3))
    assert [r["i"] for r in desk.rows("many")[:2000]] == list(range(2000))


def test_paths_inside_a_select(desk: Desk) -> None:
    path = desk.write("x.json", '[{"a": 1}]')
    assert desk.query(f"select j.a from json.`{path}` j") == [{"a": 1}]
    tables = set(desk.engine.tables())
    assert not [t for t in tables if t.startswith("__")]
    path.unlink()
    assert desk.rows("out") == [{"a": 1}]


# ------------------------------------------------------------------------------------------------------- errors


def test_unknown_column_lists_what_exists(desk: Desk) -> None:
    with pytest.raises(NotFoundError) as caught:
        desk.query("select id,\n  nmae from people")
    error = caught.value
    assert error.message == "column `nmae` does not exist. Columns of `people`: id, name"
    assert error.hint == "did you mean `name`?"
    assert error.span is not None and (error.span.line, error.span.text) == (2, "nmae")


def test_unknown_table_lists_what_exists(desk: Desk) -> None:
    with pytest.raises(NotFoundError) as caught:
        desk.query("select * from peopel")
    assert "Tables: " in caught.value.message and "people" in caught.value.message
    assert caught.value.hint == "did you mean `people`?"
    assert caught.value.span is not None


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("select x.id from people", NotFoundError, "column `x.id` does not exist"),
        ("select nofunc(id) from people", NotFoundError, "function `nofunc` does not exist"),
        ("select 1 +", SqlError, "ends too early"),
        ("selec 1", SqlError, "cannot be read"),
        ("select 1 as a, 2 as A", SqlError, "two columns of the result are named `A`"),
        ("select sum(id), name from people", ScriptError, "neither aggregated nor in group by"),
        ("select 1 as a; select 2 as b", SqlError, "2 statements"),
        ("", SqlError, "none"),
        ("drop table people", NotSupportedError, "drop is not a query"),
        ("insert into people values (4, 'x')", NotSupportedError, "insert is not a query"),
        ("create table x as select 1 as a", NotSupportedError, "create is not a query"),
        ("select * except(id) from people", ScriptError, "unexpected 'id'"),
    ],
)
def test_errors_are_ours(desk: Desk, body: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        desk.query(body)
    assert caught.value.span is not None  # type: ignore[attr-defined]


def test_an_error_of_a_value_comes_when_the_rows_are_read(desk: Desk) -> None:
    with pytest.raises(EngineError, match="Cannot cast string 'ann'") as caught:
        desk.query("select cast(name as int) as a from people")
    assert caught.value.hint == "try_cast and try_divide give NULL instead"


def test_a_failing_select_leaves_the_old_table(desk: Desk) -> None:
    desk.query("select 1 as a", "stays")
    with pytest.raises(NotFoundError):
        desk.query("select nope from people", "stays")
    assert desk.rows("stays") == [{"a": 1}]


def test_references() -> None:
    assert references("with c as (select * from a) select * from c join `b 中` on true join json.`/x`") == ["b 中", "a"]
    assert references("selec * from a") == []


def test_interrupt_stops_a_running_query(desk: Desk) -> None:
    desk.engine.register("big", pa.table({"i": list(range(200_000))}))
    threading.Timer(0.5, desk.engine.interrupt).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        desk.query("select sum(a.i + b.i) as c from big a join big b on a.i % 5 = b.i % 5", "endless")
    assert time.monotonic() - started < 60
    assert desk.query("select 1 as a") == [{"a": 1}]


def test_a_server_of_ones_own(make_desk: Callable[..., Desk], desk: Desk) -> None:
    """`BYZER_FT_ENGINE=sc://…`: here the embedded server of another engine plays the remote one."""
    host, port = desk.engine.spark._server.listening_address
    remote = make_desk(engine=f"sc://{host}:{port}")
    remote.engine.register("mine", pa.table({"a": [1]}))
    assert remote.query("select a from mine") == [{"a": 1}]
    with pytest.raises(NotFoundError):
        desk.query("select * from mine")
    remote.engine.close()
    assert desk.query("select 1 as a") == [{"a": 1}]


def test_a_server_that_is_not_there(make_desk: Callable[..., Desk]) -> None:
    """Said at once, with the address and without what may be a token; pyspark would try again for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for address, shown in [
        (f"sc://127.0.0.1:{port}/;token=secret", f"sc://127.0.0.1:{port}: "),
        (f"sc://user:secret@127.0.0.1:{port}", f"sc://127.0.0.1:{port}: "),
        ("sc:///x", "sc:///x: the address names no host"),
        ("sc://localhost:port", "sc://localhost:port: "),
    ]:
        with pytest.raises(ResourceError, match="no Spark Connect server answers at") as caught:
            make_desk(engine=address).query("select 1 as a")
        assert shown in caught.value.message and "secret" not in caught.value.render()
        assert "BYZER_FT_ENGINE" in str(caught.value.hint)


def test_close_leaves_nothing(make_desk: Callable[..., Desk]) -> None:
    closing = make_desk()
    closing.engine.register("x", pa.table({"a": [1]}))
    scratch = closing.engine._scratch
    assert scratch.exists()
    closing.engine.close()
    closing.engine.close()
    assert not scratch.exists()


def test_scratch_files_go_when_no_table_needs_them(desk: Desk) -> None:
    def folders() -> int:
        return len(list(desk.engine._scratch.iterdir()))

    desk.engine.register("once", pa.table({"a": [1]}))
    before = folders()
    for _ in range(3):
        desk.engine.register("once", pa.table({"a": [1]}))
    assert folders() == before
    desk.query("select a from once", "reader")
    desk.engine.drop("once")
    assert desk.rows("reader") == [{"a": 1}]
    desk.engine.drop("reader")
    assert folders() == before - 1
