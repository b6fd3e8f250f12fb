"""Saves: the four modes, four formats, and what was there before stays whole until the new is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byzer_ft.errors import AccessError, ConflictError, NotFoundError, NotSupportedError, OptionError
from tests.engine.conftest import Desk

FORMATS = ["json", "csv", "parquet"]


@pytest.fixture(autouse=True)
def numbers(desk: Desk) -> None:
    desk.engine.register("n", pa.table({"k": ["a", "b", "a"], "v": [1, 2, 3]}))


@pytest.mark.parametrize("fmt", FORMATS)
def test_modes_of_a_folder(desk: Desk, fmt: str) -> None:
    path = desk.folder / "deep" / fmt
    assert desk.save("n", fmt, path) == f"saved 3 rows to {fmt}.`{path}`"
    with pytest.raises(ConflictError, match="exists"):
        desk.save("n", fmt, path)
    assert "left as it is" in desk.save("n", fmt, path, "ignore")
    desk.save("n", fmt, path, "append")
    assert sorted(r["v"] for r in desk.load(fmt, path)) == [1, 1, 2, 2, 3, 3]
    desk.save("n", fmt, path, "overwrite", fileNum=2)
    assert [r["v"] for r in desk.load(fmt, path)] == [1, 2, 3]
    assert len(list(path.iterdir())) == 2
    assert [p.name for p in path.parent.iterdir()] == [fmt], "nothing temporary is left"


@pytest.mark.parametrize("fmt", FORMATS)
def test_saving_over_what_the_query_reads(desk: Desk, fmt: str) -> None:
    path = desk.folder / fmt
    desk.save("n", fmt, path)
    desk.load(fmt, path, "source")
    desk.query("select k, v + 1 as v from source", "next")
    for _ in range(2):
        desk.save("next", fmt, path, "overwrite")
    assert [r["v"] for r in desk.load(fmt, path, "read")] == [2, 3, 4]
    assert [r["v"] for r in desk.rows("source")] == [1, 2, 3], "a table keeps what it was"


def test_delta_modes_and_versions(desk: Desk) -> None:
    assert desk.save("n", "delta", "db.t") == "saved 3 rows to delta.`db.t`, version 0"
    with pytest.raises(ConflictError):
        desk.save("n", "delta", "db.t")
    desk.save("n", "delta", "db.t", "append")
    assert len(desk.load("delta", "db.t", "d")) == 6
    desk.query("select k from d", "lazy")
    desk.query("select distinct k from d", "few")
    desk.save("few", "delta", "db.t", "overwrite")
    assert len(desk.rows("lazy")) == 6, "a view keeps the version that it read"
    assert len(desk.load("delta", "db.t", "d")) == 2
    assert len(desk.load("delta", "db.t", "d", versionAsOf=0)) == 3
    assert len(desk.query("select * from delta.`db.t`")) == 2
    with pytest.raises(NotFoundError) as caught:
        desk.load("delta", "db.t", "d", versionAsOf=9)
    assert caught.value.hint == "versions 0 to 2"
    with pytest.raises(NotFoundError, match="no delta table") as caught:
        desk.load("delta", "db.x", "d")
    assert "db.t" in str(caught.value.hint)
    with pytest.raises(ConflictError, match="columns do not fit"):
        desk.engine.register("other", pa.table({"z": [1.5]}))
        desk.save("other", "delta", "db.t", "append")


def test_delta_by_path(desk: Desk) -> None:
    path = desk.folder / "中文 dir" / "t"
    from byzer_ft.intents import SaveOptions, SaveTable

    desk.engine.save(SaveTable(table="n", format="delta", path=str(path), options=SaveOptions(mode="path")))
    assert len(desk.load("delta", path, "d", mode="path")) == 3
    with pytest.raises(OptionError, match="not of the form db.table"):
        desk.save("n", "delta", path, "overwrite")


@pytest.mark.parametrize("fmt", FORMATS)
def test_partitions(desk: Desk, fmt: str) -> None:
    path = desk.folder / fmt
    desk.save("n", fmt, path, partition_by=["K"])
    assert sorted(p.name for p in path.iterdir()) == ["k=a", "k=b"]
    assert sorted((r["k"], r["v"]) for r in desk.load(fmt, path)) == [("a", 1), ("a", 3), ("b", 2)]
    with pytest.raises(NotFoundError, match="no column `kk`"):
        desk.save("n", fmt, desk.folder / "x", partition_by=["kk"])


def test_nested_values(desk: Desk) -> None:
    desk.query("select array(named_struct('human', k, 'assistant', '中')) as conversation from n", "nested")
    expected = desk.rows("nested")
    for fmt in ("json", "parquet"):
        desk.save("nested", fmt, desk.folder / fmt)
        assert desk.load(fmt, desk.folder / fmt, "back") == expected
    with pytest.raises(NotSupportedError, match="csv cannot hold"):
        desk.save("nested", "csv", desk.folder / "csv")
    assert not (desk.folder / "csv").exists()


def test_overwrite_deletes_only_data(desk: Desk) -> None:
    desk.write("home/notes.md", "mine")
    with pytest.raises(ConflictError, match="would delete it: notes.md"):
        desk.save("n", "json", desk.folder / "home", "overwrite")
    with pytest.raises(AccessError, match="must not be replaced"):
        desk.save("n", "json", "/", "overwrite")
    with pytest.raises(NotSupportedError, match="save as orc"):
        desk.save("n", "orc", desk.folder / "x")
    with pytest.raises(OptionError, match="`sep` has no effect on json"):
        desk.save("n", "json", desk.folder / "x", sep=";")


STRANGERS = ["secret.txt", "s.jsonl", "mine.csv", "data.parquet", "party.json", "part-list.csv", "x.crc", "k=a/s.txt"]


@pytest.mark.parametrize("name", [*STRANGERS, "part-00000/x.json", ".hidden", "_delta_logs/x", "manifest.json"])
def test_overwrite_refuses_what_no_save_wrote(desk: Desk, name: str) -> None:
    """Even beside files of a save, and in a folder of a partition."""
    path = desk.folder / "p"
    desk.save("n", "json", path, partition_by=["k"])
    desk.write(f"p/{name}", "mine")
    before = sorted(p for p in path.rglob("*"))
    with pytest.raises(ConflictError, match="would delete it") as caught:
        desk.save("n", "json", path, "overwrite")
    assert name.removesuffix("/x").removesuffix("/x.json") in caught.value.message
    assert "choose another folder" in str(caught.value.hint)
    assert sorted(p for p in path.rglob("*")) == before and (path / name).read_text() == "mine"
    desk.save("n", "json", path, "append")
    assert (path / name).read_text() == "mine"


def test_overwrite_replaces_what_spark_wrote(desk: Desk) -> None:
    part = "part-00000-6e3f2a10-7c1d-4b6e-9a55-0f1e2d3c4b5a-c000.snappy.parquet"
    for name in ("_SUCCESS", "._SUCCESS.crc", f".{part}.crc", part, "_committed_12", "part-00001", f"k=a b/{part}"):
        desk.write(f"spark/{name}", "old")
    desk.save("n", "parquet", desk.folder / "spark", "overwrite")
    assert len(list((desk.folder / "spark").iterdir())) == 1
    assert [r["v"] for r in desk.load("parquet", desk.folder / "spark")] == [1, 2, 3]


@pytest.mark.parametrize("mode", ["overwrite", "append", "errorifexists"])
def test_a_file_is_never_replaced_by_a_folder(desk: Desk, mode: str) -> None:
    file = desk.write("t.jsonl", '{"v": 7}\n')
    desk.load("json", file, "loaded")
    with pytest.raises(ConflictError, match="exists" if mode == "errorifexists" else "is a file") as caught:
        desk.save("loaded", "json", file, mode)
    assert mode == "errorifexists" or caught.value.hint == "choose a folder"
    assert file.read_text() == '{"v": 7}\n' and [p.name for p in desk.folder.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("mode", ["overwrite", "append", "errorifexists"])
def test_a_table_is_not_saved_over_a_model(desk: Desk, mode: str) -> None:
    from byzer_ft.lake import ModelMeta, read_version, save_model

    model = desk.write("model/config.json", "{}").parent
    settings = desk.engine.settings
    uri = f"{settings.lake_root}/{settings.owner}/db/model_{mode}"
    saved = save_model(model, uri, "append", ModelMeta(kind="full"))
    with pytest.raises(ConflictError, match="holds a model") as caught:
        desk.save("n", "delta", f"db.model_{mode}", mode)
    assert "choose another name" in str(caught.value.hint)
    assert read_version(uri) == saved
    assert "left as it is" in desk.save("n", "delta", f"db.model_{mode}", "ignore")


def test_stage_writes_the_manifest_last(desk: Desk) -> None:
    folder = desk.folder / "staged"
    assert desk.engine.stage("n", folder) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format_version"] == 1 and manifest["rows"] == 3
    assert [c["name"] for c in manifest["columns"]] == ["k", "v"]
    assert sum(s["rows"] for s in manifest["shards"]) == 3
    for shard in manifest["shards"]:
        file = folder / shard["file"]
        assert file.stat().st_size == shard["bytes"] and pq.read_table(file).num_rows == shard["rows"]


def test_stage_of_no_rows(desk: Desk) -> None:
    desk.query("select k from n where v > 100", "none")
    assert desk.engine.stage("none", desk.folder) == 0
    assert json.loads((desk.folder / "manifest.json").read_text())["shards"] == []
    desk.save("none", "parquet", desk.folder / "p")
    assert desk.load("parquet", desk.folder / "p") == [] and desk.engine.columns("t") == [("k", "string")]


def test_a_full_disk_leaves_the_old(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: in a process of its own, which it would else break."""
    program = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from byzer_ft.engine import SparkEngine
from byzer_ft.errors import ByzerError
from byzer_ft.intents import SaveTable
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings
import os
base = Path(sys.argv[1])
engine = SparkEngine(load_settings(env={}, home=base / "home"), PathGuard(None), base / "scratch", print)
engine.register("small", pa.table({"a": [b"1"]}))
engine.register("large", pa.table({"a": [os.urandom(1000) for _ in range(3000)]}))
for fmt, path in (("parquet", str(base / "p")), ("json", str(base / "j")), ("delta", "db.t")):
    engine.save(SaveTable(table="small", format=fmt, path=path))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for fmt, path in (("parquet", str(base / "p")), ("json", str(base / "j")), ("delta", "db.t")):
    try:
        engine.save(SaveTable(table="large", mode="overwrite", format=fmt, path=path))
        print("SAVED", fmt)
    except ByzerError as error:
        print("REFUSED", fmt, error.message)
try:
    engine.stage("large", base / "staged")
except ByzerError as error:
    print("REFUSED stage", error.message)
engine.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("REFUSED") == 4, done.stdout
    assert pq.read_table(next((tmp_path / "p").iterdir())).num_rows == 1
    assert not (tmp_path / "staged" / "manifest.json").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    from deltalake import DeltaTable

    table = DeltaTable(str(next((tmp_path / "home" / "lake").glob("*/db/t"))))
    assert table.version() == 0
