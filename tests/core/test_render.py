from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal

import pyarrow as pa

from byzer_ft.render import cells, duration, printable, progress_text, table_json, table_text


def test_columns_are_aligned_with_wide_characters_and_null_is_not_empty() -> None:
    lines = table_text(pa.table({"问题": ["你好", "", None], "n": [1, 20, 3]}), width=80).split("\n")
    assert lines[2:5] == ["你好   1", "      20", "NULL   3"]
    assert len({cells(line) for line in lines[:5]}) == 1
    assert lines[-1] == "(3 rows)"


def test_terminal_escapes_in_data_cannot_act() -> None:
    assert "\x1b" not in table_text(pa.table({"x\x1b[2J": ["\x1b]0;owned\x07", "a\r\nb"]}))
    assert printable("a\x1bb") == "a\\x1bb"


def test_long_tables_say_how_much_is_not_shown() -> None:
    assert table_text(pa.table({"n": list(range(60))})).endswith("(60 rows, the first 50 shown)")


def test_two_columns_of_one_name_are_both_shown() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert table_text(table).split("\n")[2].split() == ["1", "2"]


def test_json_holds_every_type() -> None:
    table = pa.table(
        {
            "f": [1.5, float("nan")],
            "t": [datetime(2026, 1, 2, 3, 4, 5), None],
            "d": pa.array([Decimal("1.10"), None]),
            "b": [b"\x00", None],
            "s": [{"a": [1, 2]}, None],
        }
    )
    assert json.loads(table_json(table)) == [
        {"f": 1.5, "t": "2026-01-02T03:04:05", "d": "1.10", "b": "AA==", "s": {"a": [1, 2]}},
        {"f": None, "t": None, "d": None, "b": None, "s": None},
    ]


def test_progress_and_durations() -> None:
    event = {"step": 12, "total_steps": 120, "loss": 1.23456, "tokens_per_second": 2345.6, "eta_seconds": 35}
    assert progress_text(event) == "step 12/120  loss 1.2346  2,346 tokens/s  ETA 0:35"
    assert [duration(s) for s in (5, 725, 10931)] == ["0:05", "12:05", "3:02:11"]
