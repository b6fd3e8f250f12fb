"""Queries of thousands of terms: answered, or refused in words. A crash of the engine would end the whole program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from byzer_ft.engine.nesting import MAX_DEPTH, depth
from byzer_ft.errors import SqlError
from byzer_ft.paths import PathGuard
from tests.engine.conftest import Desk

PROGRAM = """
import sys
from pathlib import Path
import pyarrow as pa
from byzer_ft.engine import SparkEngine
from byzer_ft.errors import ByzerError
from byzer_ft.intents import Query
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings
base = Path(sys.argv[1])
engine = SparkEngine(load_settings(env={}, home=base / "home"), PathGuard(None), base / "scratch", print)
engine.register("t", pa.table({"a": [1, -1]}))
def peak():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10
for body in sys.stdin.read().splitlines():
    try:
        engine.query(Query(body=body, table="out"))
        print("ROWS", engine.arrow("out").num_rows)
    except ByzerError as error:
        print(type(error).__name__, error.message)
engine.close()
print("PEAK", peak())
"""


def _child(bodies: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        input="\n".join(bodies),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.splitlines()


def test_a_thousand_terms_are_answered_and_more_are_refused(tmp_path: Path) -> None:
    """Each of these ended the process with the stacks that the engine takes by default, and that cost no memory."""
    terms = " or ".join(f"a={i}" for i in range(1000))
    *said, peak = _child(
        [
            f"select a from t where {terms}",
            f"select {'case when true then ' * 1000}1{' end' * 1000} as a",
            f"select {'(' * 1000}1{')' * 1000} as a",
            f"select {' + '.join(['1'] * 3000)} as a",
            f"select {'(' * 2000}1{')' * 2000} as a",
            "select a from t where " + " or ".join(["a=1"] * 100_000),
            "select " + "(" * 100_000,
            "select 1 as a",
        ],
        tmp_path,
    )
    refused = "SqlError the query is nested too deeply"
    assert said == ["ROWS 1", "ROWS 1", "ROWS 1", refused, refused, refused, refused, "ROWS 1"]
    assert int(peak.split()[1]) < 1024, "reserved stack must not be resident"


@pytest.mark.parametrize("source", ["json.`{path}`", "t"])
def test_what_we_cannot_follow_is_refused_only_where_it_names_files(desk: Desk, source: str) -> None:
    path = desk.write("x.json", '{"a": 1}')
    desk.load("json", path, "t")
    body = f"select {'(' * 500}a{')' * 500} as b from {source.format(path=path)}"
    if source == "t":
        assert desk.query(body) == [{"b": 1}]
        return
    with pytest.raises(SqlError, match="nested too deeply") as caught:
        desk.query(body)
    assert caught.value.span is not None and "select before" in str(caught.value.hint)


def test_what_we_cannot_follow_is_refused_behind_a_wall(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.engine, "_guard", PathGuard([desk.folder]))
    with pytest.raises(SqlError, match="nested too deeply"):
        desk.query(f"select {'(' * 500}1{')' * 500} as b")


@pytest.mark.parametrize(
    "body",
    [
        "select " + "abs(" * 3000 + "1" + ")" * 3000,
        "select " + "not " * 3000 + "true as a",
        "select " + "- " * 3000 + "1 as a",
        "select " + "||".join(["'a'"] * 3000),
        " union all ".join(["select 1 as a"] * 3000),
        "select * from t " + "join t on true " * 3000,
        "select " + "a[0" * 3000 + "]" * 3000,
        "select a" + "[0]" * 3000,
        "select (case " * 3000 + "end)" * 3000,
        "select ((a" + "+1+1+1)" * 600 + ")",
        "select " + "((a)+1+1+1" * 600,
        "select '((((' + (" * 3000,
    ],
)
def test_depth_of_what_is_deep(body: str) -> None:
    assert depth(body) > MAX_DEPTH


@pytest.mark.parametrize(
    "body",
    [
        "select a from t where a in (" + ",".join(map(str, range(100_000))) + ")",
        "select " + ", ".join(f"(a{i} + b - c) * 2 as x{i}" for i in range(10_000)) + " from t",
        "select '" + "(" * 10_000 + "' as a, \"" + "(" * 10_000 + '" as b',
        "select `" + "(" * 10_000 + "` from t -- " + "(" * 10_000,
        "select /* " + "(" * 10_000 + " */ a from t",
        "select case " + "when a = 1 or b = 2 then c + 1 " * 10_000 + "end as x from t",
        "select * from (values " + ", ".join(["(1, 2 + 3)"] * 10_000) + ")",
        "select a from t where " + " or ".join(f"a = {i} and b > 2 * c + 1" for i in range(1_000)),
    ],
)
def test_depth_of_what_is_only_long(body: str) -> None:
    assert depth(body) <= MAX_DEPTH
