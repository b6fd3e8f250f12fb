"""The command line as a user types it: real processes, their two streams and their exit status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from byzer_ft.cli import Screen
from tests.tiny import write_jsonl


def byzer_ft(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "byzer_ft.cli", *args], capture_output=True, text=True, input=stdin, timeout=120
    )


@pytest.fixture
def script(home: Path, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", [{"q": "你好", "n": 1}, {"q": None, "n": 2}])
    path = tmp_path / "my.sql"
    path.write_text(f"load json.`{tmp_path}/rows.jsonl` as t;\nselect q, n from t order by n as out;\n", "utf-8")
    return path


def test_json_is_the_only_thing_on_stdout(script: Path) -> None:
    done = byzer_ft("run", str(script), "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"q": "你好", "n": 1}, {"q": None, "n": 2}]


def test_the_last_table_is_shown(script: Path) -> None:
    done = byzer_ft("run", str(script))
    assert done.returncode == 0 and "你好" in done.stdout and "(2 rows)" in done.stdout


def test_an_error_names_file_line_and_column_and_underlines(script: Path) -> None:
    script.write_text("select 1 as a as t;\n  lod json.`x` as t;\n")
    done = byzer_ft("run", str(script))
    assert done.returncode == 1 and done.stdout == ""
    assert f"{script}:2:3: error: " in done.stderr and "\n      lod json.`x` as t;\n      ^^^" in done.stderr
    assert "Traceback" not in done.stderr


def test_parse_prints_typed_statements_and_runs_nothing(script: Path, home: Path) -> None:
    done = byzer_ft("parse", str(script))
    assert done.returncode == 0, done.stderr
    assert [s["kind"] for s in json.loads(done.stdout)] == ["load", "select"]
    assert list(home.iterdir()) == []


def test_parse_reports_every_error_and_accepts_undefined_variables(script: Path) -> None:
    script.write_text("select ${x} as a as t;\nselect 1;\nload json.`x` where haeder='1' as t;\n")
    done = byzer_ft("parse", str(script))
    assert done.returncode == 1 and done.stderr.count(": error: ") == 2
    assert ":2:" in done.stderr and ":3:" in done.stderr and "header" in done.stderr


def test_a_script_may_come_from_standard_input(home: Path) -> None:
    done = byzer_ft("run", "-", "--format", "json", stdin="select 1 as one as t;")
    assert (done.returncode, done.stdout.strip()) == (0, '[{"one": 1}]')


@pytest.mark.parametrize(
    ("text", "says"),
    [("select 'a as t;", "unterminated"), ("\x00;", "error"), ("run away;", "error"), ("\ufeffselekt 1;", "error")],
)
def test_odd_scripts_end_with_a_message(home: Path, text: str, says: str) -> None:
    done = byzer_ft("run", "-", stdin=text)
    assert done.returncode == 1 and says in done.stderr.lower() and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "-- nothing\n", ";;"])
def test_an_empty_script_is_no_error(home: Path, text: str) -> None:
    done = byzer_ft("run", "-", "--format", "json", stdin=text)
    assert (done.returncode, done.stdout.strip()) == (0, "[]") and "nothing to show" in done.stderr


def test_a_missing_script_and_one_that_is_no_text(home: Path, tmp_path: Path) -> None:
    assert "there is no script" in byzer_ft("run", "nowhere.sql").stderr
    (tmp_path / "x.sql").write_bytes("select '推荐' as a as t;".encode("gb18030"))
    done = byzer_ft("run", str(tmp_path / "x.sql"))
    assert done.returncode == 1 and "not UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_result_may_be_piped_into_head(script: Path, tmp_path: Path) -> None:
    script.write_text("select explode(sequence(1, 100000)) as n as out;")
    command = f"{sys.executable} -m byzer_ft.cli run {script} --rows 100000 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_rewritten_and_other_lines_stand_below_it() -> None:
    stream = _Terminal()
    screen = Screen(stream)
    for step in (1, 2):
        screen.event({"event": "progress", "step": step, "total_steps": 2, "loss": 1.0, "tokens_per_second": 10.0})
    screen.event({"event": "line", "text": "done\x1b[2J"})
    assert stream.getvalue() == (
        "\r\x1b[2Kstep 1/2  loss 1.0000  10 tokens/s\r\x1b[2Kstep 2/2  loss 1.0000  10 tokens/s\ndone\\x1b[2J\n"
    )
