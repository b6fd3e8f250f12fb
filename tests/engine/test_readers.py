"""Files become tables: every row's keys, types and encodings; what is wrong is said with file and line."""

from __future__ import annotations

import gzip
import json
import os
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byzer_ft.errors import AccessError, DataError, NotFoundError, NotSupportedError, OptionError
from byzer_ft.paths import PathGuard
from tests.engine.conftest import Desk

# --------------------------------------------------------------------------------------------------------- json


def test_a_key_first_seen_late_is_a_column(desk: Desk) -> None:
    lines = [json.dumps({"a": i}) for i in range(30_000)] + ['{"a": 30000, "late": "yes"}']
    rows = desk.load("json", desk.write("late.jsonl", "\n".join(lines)))
    assert len(rows) == 30_001
    assert rows[0] == {"a": 0, "late": None}
    assert rows[-1] == {"a": 30_000, "late": "yes"}
    assert [r["a"] for r in rows] == list(range(30_001)), "the order of the lines is kept"


def test_types_come_from_all_rows(desk: Desk) -> None:
    text = '{"i": 1, "m": 1, "d": "2024-01-01", "n": null, "b": true, "e": {}}\n{"i": 2.5, "m": "x", "l": [1, 2]}\n'
    rows = desk.load("json", desk.write("types.jsonl", text))
    assert rows[0] == {"i": 1.0, "m": "1", "d": "2024-01-01", "n": None, "b": True, "e": "{}", "l": None}
    assert dict(desk.engine.columns("t")) == {
        "i": "double", "m": "string", "d": "string", "n": "string", "b": "boolean", "e": "string", "l": "array<bigint>"
    }  # fmt: skip
    assert desk.notices == ["column `m`: no one type fits all rows: read as string"]


def test_nested_structs_are_united(desk: Desk) -> None:
    text = '{"s": {"x": 1, "t": [{"human": "h"}]}}\n{"s": {"y": "z", "t": [{"assistant": "a"}]}}\n'
    rows = desk.load("json", desk.write("nested.jsonl", text))
    assert rows[0]["s"] == {"x": 1, "t": [{"human": "h", "assistant": None}], "y": None}
    assert rows[1]["s"] == {"x": None, "t": [{"human": None, "assistant": "a"}], "y": "z"}


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '[\n {"a": 1},\n {\n  "a": 2}\n]\n',
        '{\n "a": 1\n}\n{\n "a": 2\n}\n',
        '{"a": 1}\r\n\r\n{"a": 2}\r\n',
        '\ufeff{"a": 1}\n{"a": 2}',
        '{"a": 1}\n{"a": 2}',
    ],
)
def test_lines_arrays_and_spread_objects(desk: Desk, text: str) -> None:
    assert desk.load("json", desk.write("shape.json", text)) == [{"a": 1}, {"a": 2}]


def test_files_of_different_shapes_are_one_table(desk: Desk) -> None:
    desk.write("mixed/1.json", '[{"a": 1}, {"b": "x"}]')
    desk.write("mixed/2.json", '{"a": 2.5}\n')
    assert desk.load("json", desk.folder / "mixed") == [
        {"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": 2.5, "b": None}
    ]  # fmt: skip


def test_no_digit_of_a_large_integer_is_lost(desk: Desk) -> None:
    text = '{"big": 12345678901234567890123, "mix": 99999999999999999999, "id": 9007199254740993}\n'
    text += '{"big": -1, "mix": 1.5}\n'
    rows = desk.load("json", desk.write("big.jsonl", text))
    assert rows[0] == {"big": Decimal("12345678901234567890123"), "mix": "99999999999999999999", "id": 9007199254740993}
    assert rows[1] == {"big": Decimal(-1), "mix": "1.5", "id": None}
    assert len(desk.notices) == 2 and all("over 64 bits" in n for n in desk.notices)


def test_keys_that_differ_in_case_and_repeated_keys(desk: Desk) -> None:
    rows = desk.load("json", desk.write("case.jsonl", '{"a": 1, "A": "x", "k": 1, "k": 2}\n{"A": "y"}\n'))
    assert rows == [{"a": 1, "A_1": "x", "k": 1}, {"a": None, "A_1": "y", "k": None}]
    assert any("`A` is named `A_1`" in n for n in desk.notices)


def test_repeated_keys_alone(desk: Desk) -> None:
    assert desk.load("json", desk.write("dup.jsonl", '{"k": 1, "k": 2}\n')) == [{"k": 1}]
    assert any("repeat a key" in n for n in desk.notices)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', 2, "malformed JSON"),
        ('{"a": 1}\n\n[1]\n', 3, "must be an object"),
        ('{"a": 1}\n5\n', 2, "must be an object"),
        ('[{"a": 1},\n{"a": }]', 2, "malformed JSON"),
        ('{"a": ' * 2000 + "1" + "}" * 2000 + "\n", 1, "nested too deep"),
    ],
)
def test_a_malformed_line_names_file_and_line(desk: Desk, text: str, line: int, what: str) -> None:
    path = desk.write("bad.jsonl", text)
    with pytest.raises(DataError) as caught:
        desk.load("json", path)
    assert f"{path}, line {line}: " in caught.value.message
    assert what in caught.value.message
    assert caught.value.span is not None


@pytest.mark.parametrize("mode", ["dropmalformed", "DROPMALFORMED", "permissive"])
def test_dropmalformed_goes_on_with_a_count(desk: Desk, mode: str) -> None:
    path = desk.write("bad.jsonl", '{"a": 1}\n{"a": 2\n{"a": 3}\n"x"\n')
    assert desk.load("json", path, mode=mode) == [{"a": 1}, {"a": 3}]
    assert desk.notices == [f"{path}: 2 malformed rows were dropped"]


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_an_empty_json_file_is_an_error(desk: Desk, text: str) -> None:
    with pytest.raises(DataError, match="is empty"):
        desk.load("json", desk.write("empty.json", text))


# ---------------------------------------------------------------------------------------- encodings, compression


def test_gbk_read_as_utf8_says_where_and_how(desk: Desk) -> None:
    path = desk.write("gbk.jsonl", '{"a": "中文内容"}\n'.encode("gbk"))
    with pytest.raises(DataError) as caught:
        desk.load("json", path)
    assert f"{path}: byte 7" in caught.value.message
    assert 'encoding="gb18030"' in str(caught.value.hint)
    for encoding in ("gb18030", "GBK", "gb2312"):
        assert desk.load("json", path, encoding=encoding) == [{"a": "中文内容"}]


def test_the_position_is_counted_over_chunks(desk: Desk) -> None:
    text = b'{"a": "' + "中".encode() * 700_000 + b'"}\n' + '{"a": "文"}\n'.encode("gbk")
    with pytest.raises(DataError, match=f"byte {7 + 2_100_000 + 3 + 7} "):
        desk.load("json", desk.write("late.jsonl", text))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "gb18030", "big5"])
def test_encodings(desk: Desk, encoding: str) -> None:
    path = desk.write("text.jsonl", '{"a": "中文"}\r\n{"a": "b"}\r\n'.encode(encoding))
    assert desk.load("json", path, encoding=encoding) == [{"a": "中文"}, {"a": "b"}]


def test_a_byte_order_mark_speaks_for_itself(desk: Desk) -> None:
    assert desk.load("json", desk.write("bom.jsonl", '{"a": "中"}\n'.encode("utf-16"))) == [{"a": "中"}]
    assert "byte order mark" in desk.notices[0]


def test_unknown_encodings(desk: Desk) -> None:
    path = desk.write("x.jsonl", "{}")
    with pytest.raises(OptionError, match="gbkk") as caught:
        desk.load("json", path, encoding="gbkk")
    assert caught.value.hint == "did you mean `gbk`?"
    with pytest.raises(OptionError, match="not a text encoding"):
        desk.load("json", path, encoding="zlib")


def test_gz_and_zst(desk: Desk) -> None:
    body = b'{"a": 1}\n{"a": 2}\n'
    gz = desk.write("x.jsonl.gz", gzip.compress(body))
    zst = desk.folder / "y.jsonl.zst"
    with pa.CompressedOutputStream(str(zst), "zstd") as out:
        out.write(body)
    for path in (gz, zst):
        assert desk.load("json", path) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="damaged"):
        desk.load("json", desk.write("cut.jsonl.gz", gzip.compress(body)[:-9]))


# --------------------------------------------------------------------------------------------------------- csv


def test_csv_types_by_all_rows(desk: Desk) -> None:
    text = 'id,zip,big,ok,day,name,half\n1,007,12345678901234567890,true,2020-01-01,"x, ""y""",1\n'
    text += '-2,10,1,FALSE,,"two\nlines",2.5\n'
    rows = desk.load("csv", desk.write("types.csv", text))
    assert rows == [
        {"id": 1, "zip": "007", "big": "12345678901234567890", "ok": True, "day": "2020-01-01", "name": 'x, "y"',
         "half": 1.0},
        {"id": -2, "zip": "10", "big": "1", "ok": False, "day": None, "name": "two\nlines", "half": 2.5},
    ]  # fmt: skip
    assert set(dict(desk.engine.columns("t")).values()) == {"bigint", "string", "boolean", "double"}


def test_csv_options(desk: Desk) -> None:
    path = desk.write("o.csv", "1;'a;b'\r\n2;c\r\n")
    rows = desk.load("csv", path, header=False, sep=";", quote="'", inferSchema=False)
    assert rows == [{"_c0": "1", "_c1": "a;b"}, {"_c0": "2", "_c1": "c"}]
    assert desk.load("csv", desk.write("t.csv", "a\tb\n1\t2\n"), sep="\\t") == [{"a": 1, "b": 2}]
    assert desk.load("csv", desk.write("h.csv", "a,b\n")) == []
    assert [c for c, _ in desk.engine.columns("t")] == ["a", "b"]


def test_csv_backslash_escapes_are_found(desk: Desk) -> None:
    path = desk.write("e.csv", 'a,b\n"x \\"q\\" y",2\n')
    assert desk.load("csv", path) == [{"a": 'x "q" y', "b": 2}]
    assert "escaped with" in desk.notices[0]


def test_csv_ragged_rows(desk: Desk) -> None:
    path = desk.write("r.csv", "a,b\n1,2\n3,4,5\n6\n7,8\n")
    with pytest.raises(DataError, match="r.csv, line 3: malformed CSV: Expected Number of Columns: 2 Found: 3"):
        desk.load("csv", path)
    assert desk.load("csv", path, mode="dropmalformed") == [{"a": 1, "b": 2}, {"a": 7, "b": 8}]
    assert desk.notices == [f"{path}: 2 malformed rows were dropped"]


def test_csv_files_with_different_headers(desk: Desk) -> None:
    desk.write("h/1.csv", "a,b\n1,2\n")
    desk.write("h/2.csv", "b,c\n3,x\n")
    assert desk.load("csv", f"{desk.folder}/h/*.csv") == [{"a": 1, "b": 2, "c": None}, {"a": None, "b": 3, "c": "x"}]


# -------------------------------------------------------------------------------------------------- text, parquet


def test_text_has_file_and_value(desk: Desk) -> None:
    one, two = desk.write("1.txt", "a\r\nb\n"), desk.write("2.txt", "c")
    rows = desk.load("text", f"{one},{two}")
    assert [(r["file"], r["value"]) for r in rows] == [(str(one), "a"), (str(one), "b"), (str(two), "c")]
    rows = desk.load("text", f"{desk.folder}/*.txt", wholetext=True)
    assert [r["value"] for r in rows] == ["a\r\nb\n", "c"]
    assert desk.load("text", desk.write("0.txt", "")) == []


def test_parquet_files(desk: Desk) -> None:
    (desk.folder / "p").mkdir()
    pq.write_table(pa.table({"a": [1], "中": ["x"]}), desk.folder / "p/1.parquet")
    pq.write_table(pa.table({"a": [2], "中": ["y"]}), desk.folder / "p/2.parquet")
    assert desk.load("parquet", desk.folder / "p") == [{"a": 1, "中": "x"}, {"a": 2, "中": "y"}]
    pq.write_table(pa.table({"b": [3.5]}), desk.folder / "p/3.parquet")
    assert desk.load("parquet", desk.folder / "p")[2] == {"a": None, "中": None, "b": 3.5}
    with pytest.raises(DataError, match="not a Parquet file"):
        desk.load("parquet", desk.write("x.parquet", "no"))


def test_a_parquet_file_that_has_gone_is_not_read_as_no_rows(desk: Desk) -> None:
    path = desk.folder / "gone.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    desk.load("parquet", path, "going")
    desk.query("select a from going", "lazy")
    path.unlink()
    for table in ("going", "lazy"):
        with pytest.raises(NotFoundError, match="which has gone"):
            desk.rows(table)


# --------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "name", ["a b.json", "中文.json", "st*r.json", "br[1].json", "q?.json", "100%25.json", "a,b.json"]
)
def test_odd_file_names(desk: Desk, name: str) -> None:
    assert desk.load("json", desk.write(f"dir {name}/{name}", '{"a": 1}')) == [{"a": 1}]


@pytest.mark.parametrize("name", ["a b", "中文", "st*r", "br[1]", "q?", "100%25"])
def test_odd_parquet_names(desk: Desk, name: str) -> None:
    (desk.folder / name).mkdir()
    pq.write_table(pa.table({"a": [1]}), desk.folder / name / f"{name}.parquet")
    assert desk.load("parquet", desk.folder / name) == [{"a": 1}]


def test_globs_braces_folders_and_partitions(desk: Desk) -> None:
    desk.write("d/k=1/x.json", '{"a": 1}')
    desk.write("d/k=2/y.json", '{"a": 2}')
    desk.write("d/_SUCCESS", "")
    assert desk.load("json", desk.folder / "d") == [{"a": 1, "k": 1}, {"a": 2, "k": 2}]
    assert desk.load("json", f"{desk.folder}/d/k={{1,2}}/*.json") == [{"a": 1}, {"a": 2}]
    assert len(desk.load("json", f"{desk.folder}/d/**")) == 2


def test_missing_files_name_the_nearest(desk: Desk) -> None:
    desk.write("tickets.jsonl", "{}")
    with pytest.raises(NotFoundError) as caught:
        desk.load("json", desk.folder / "ticket.jsonl")
    assert "did you mean `tickets.jsonl`?" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="no file matches"):
        desk.load("json", f"{desk.folder}/*.csv")
    (desk.folder / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no data files"):
        desk.load("json", desk.folder / "empty")


def test_only_regular_files(desk: Desk) -> None:
    os.mkfifo(desk.folder / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        desk.load("text", desk.folder / "pipe")
    with pytest.raises(NotSupportedError, match="object store"):
        desk.load("json", "s3://bucket/x.json")


def test_options_that_have_no_effect_are_errors(desk: Desk) -> None:
    path = desk.write("x.json", '{"a": 1}')
    with pytest.raises(OptionError, match="`sep` has no effect on json"):
        desk.load("json", path, sep=";")
    with pytest.raises(NotSupportedError, match="load orc"):
        desk.load("orc", path)


def test_a_load_that_fails_leaves_the_old_table(desk: Desk) -> None:
    desk.load("json", desk.write("x.json", '{"a": 1}'), "kept")
    with pytest.raises(DataError):
        desk.load("json", desk.write("y.json", "{"), "kept")
    assert desk.rows("kept") == [{"a": 1}]


def test_every_match_goes_through_the_guard(desk: Desk, tmp_path: Path) -> None:
    from byzer_ft.engine.files import expand

    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    (inside / "deep").mkdir(parents=True)
    (outside / "secret.json").write_text('{"a": 1}')
    (inside / "ok.json").write_text('{"a": 1}')
    (inside / "link.json").symlink_to(outside / "secret.json")
    (inside / "deep" / "folder").symlink_to(outside)
    guard = PathGuard([inside])
    for spec in (
        "inside/*.json",
        "inside",
        "inside/**",
        "inside/deep/*/secret.json",
        "inside/ok.json,inside/link.json",
    ):
        with pytest.raises(AccessError):
            expand(str(tmp_path / spec), guard)
    assert [f.path for f in expand(str(inside / "ok.json"), guard)] == [str(inside / "ok.json")]
