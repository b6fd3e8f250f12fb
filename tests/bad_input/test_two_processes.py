"""Two runs at once with one home: two processes, one catalog, one lake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.session.test_cli import byzer_ft
from tests.tiny import write_jsonl

SCRIPT = """
load json.`{rows}` as t;
save append t as delta.`shop.both`;
!show jobs;
!show models;
load model.`{model}` as m;
save overwrite m as delta.`ai_model.both`;
save append t as delta.`shop.both`;
select count(*) as n from t as out;
"""


def test_two_runs_at_once_with_one_home(home: Path, tmp_path: Path) -> None:
    """Both create the catalog, append to one table and save one model; the third finds what both have done.

    That they also share one Ray is tests/jobs/test_cluster.py's
    `test_a_home_has_one_cluster_which_ends_with_the_process_that_started_it`.
    """
    from tests.test_modeldir import make

    rows = write_jsonl(tmp_path / "rows.jsonl", [{"q": f"question {i}"} for i in range(50)])
    script = tmp_path / "both.sql"
    script.write_text(SCRIPT.format(rows=rows, model=make(tmp_path / "m")), "utf-8")
    command = [sys.executable, "-m", "byzer_ft.cli", "run", str(script), "--format", "json"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        out, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
        assert json.loads(out) == [{"n": 50}]
    after = byzer_ft(
        "run", "-", "--format", "json",
        stdin="load delta.`shop.both` as t; select count(*) as n, count(distinct q) as d from t as out;",
    )  # fmt: skip
    assert json.loads(after.stdout) == [{"n": 300, "d": 50}], after.stderr
    stored = byzer_ft("run", "-", "--format", "json", stdin="load delta.`ai_model.both` as m;")
    assert json.loads(stored.stdout)[0]["kind"] == "full", stored.stderr
    assert not list((home / "cache" / "sessions").iterdir()), "scratch of a session that has ended"
