"""Model calls inside a select: each distinct argument is asked once, and nothing is ever answered wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from byzer_ft import errors
from byzer_ft.errors import EngineError
from tests.engine.conftest import Desk, Shouting

CASES = (Path(__file__).parent / "cases" / "models.sql").read_text("utf-8").split("\n\n")[1:]


@pytest.fixture(autouse=True)
def tables(desk: Desk) -> None:
    desk.engine.register(
        "t",
        pa.table(
            {
                "id": [1, 2, 3, 4, 5],
                "x": ["a", "b", "a", None, "c"],
                "n": [1.5, 2.5, None, 4.0, 5.0],
                "l": [["p"], ["q", None], [], None, [None]],
            }
        ),
    )
    desk.engine.register("u", pa.table({"id": [1, 2, 2, 9], "y": ["k", "l", "m", "n"]}))


@pytest.mark.parametrize("case", CASES, ids=[c.strip().splitlines()[0][:60] for c in CASES])
def test_cases(desk: Desk, case: str) -> None:
    body, *expected = case.strip().splitlines()
    wanted = dict(line.removeprefix("-- ").split(": ", 1) for line in expected)
    models = Shouting()
    if "error" in wanted:
        kind, says = wanted["error"].split(": ", 1)
        with pytest.raises(getattr(errors, kind)) as caught:
            desk.query(body, models=models)
        assert says in caught.value.message
        assert caught.value.span is not None
        return
    rows = [list(row.values()) for row in desk.query(body, models=models)]
    assert rows == json.loads(wanted["rows"])
    assert models.asked == [tuple(a) for a in json.loads(wanted["asked"])]
    assert not [c for c, _ in desk.engine.columns("out") if c.startswith("__")]


def test_reading_the_answers_again_asks_nobody(desk: Desk) -> None:
    models = Shouting()
    desk.query("select up(x) as y from t", "answers", models)
    desk.query("select y from answers where y is not null", "later", models)
    desk.rows("answers")
    assert len(models.asked) == 1
    assert "answers: computed once and kept, since it calls up" in desk.notices


def test_rows_that_fail_are_null_with_one_warning(desk: Desk) -> None:
    rows = desk.query("select id, picky(x) y from t where picky(x) is not null or id = 2", models=Shouting())
    assert [(r["id"], r["y"]) for r in rows] == [(1, "A"), (2, None), (3, "A"), (5, "C")]
    warnings = [n for n in desk.notices if "failed" in n]
    assert warnings == ["picky failed for 1 of 4 rows, which are NULL: starts with b (1 rows)"]


def test_a_query_that_only_fails_fails(desk: Desk) -> None:
    with pytest.raises(EngineError, match="picky failed for all 1 rows: starts with b") as caught:
        desk.query("select picky(x) y from t where id = 2", models=Shouting())
    assert caught.value.span is not None and caught.value.span.text == "picky"


def test_many_rows_with_few_prompts(desk: Desk) -> None:
    prompts = [f"prompt {i % 1000}" for i in range(100_000)]
    desk.engine.register("many", pa.table({"i": list(range(100_000)), "p": prompts}))
    models = Shouting()
    rows = desk.query("select i, up(p) as y from many", models=models)
    assert sum(len(values) for _, values in models.asked) == 1000
    assert [r["i"] for r in rows] == list(range(100_000))
    assert all(r["y"] == p.upper() for r, p in zip(rows, prompts, strict=True))


def test_a_failed_query_leaves_no_helper_tables(desk: Desk) -> None:
    with pytest.raises(EngineError):
        desk.query("select broken(up(x)) y from t", models=Shouting())
    assert not [v.name for v in desk.engine.views() if v.name.startswith("__")]
