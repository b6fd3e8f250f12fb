"""With allowed roots set, nothing outside them is read or written, however it is spelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byzer_ft.errors import AccessError, ByzerError, NotFoundError
from byzer_ft.intents import SaveOptions, SaveTable
from tests.engine.conftest import Desk

SECRET = "the-secret-of-the-house"


@pytest.fixture(scope="module")
def walled(make_desk: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """An engine that may touch `inside` only; `outside` holds a secret in every format, links lead to it."""
    base = tmp_path_factory.mktemp("walled")
    inside, outside = base / "inside", base / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "s.txt").write_text(SECRET + "\n")
    (outside / "s.json").write_text(json.dumps({"v": SECRET}))
    (outside / "s.csv").write_text(f"v\n{SECRET}\n")
    pq.write_table(pa.table({"v": [SECRET]}), outside / "s.parquet")
    from deltalake import write_deltalake

    write_deltalake(str(outside / "delta"), pa.table({"v": [SECRET]}))
    write_deltalake(str(inside / "forged"), pa.table({"v": ["mine"]}))
    for name in ("s.txt", "s.json", "s.csv", "s.parquet", "delta"):
        (inside / f"link-{name}").symlink_to(outside / name)
    (inside / "folder").symlink_to(outside)
    (inside / "ok.json").write_text('{"v": "fine"}')
    desk = make_desk(roots=[inside])
    desk.folder = inside
    desk.engine.register("t", pa.table({"v": ["x"]}))
    return desk


HOSTILE = [
    "select * from text.`{out}/s.txt`",
    "select * from TEXT.`{out}/s.txt`",
    "select * from `text`.`{out}/s.txt`",
    "select * from csv.`{out}/s.csv`",
    "select * from json.`{out}/s.json`",
    "select * from parquet.`{out}/s.parquet`",
    "select * from delta.`{out}/delta`",
    "select * from text.`{in}/../outside/s.txt`",
    "select * from text.`{in}/link-s.txt`",
    "select * from text.`{in}/folder/s.txt`",
    "select * from text.`{in}/*`",
    "select * from text.`{in}/{{ok.json,link-s.txt}}`",
    "select * from parquet.`{in}/link-s.parquet`",
    "select * from delta.`{in}/link-delta`",
    "select * from text.`file://{out}/s.txt`",
    "select * from text.`file:{out}/s.txt`",
    "select * from text.`FILE://localhost{out}/s.txt`",
    "select * from text.`{in}/ok.json,{out}/s.txt`",
    "select * from binaryFile.`{out}/s.txt`",
    "select * from orc.`{out}/s.txt`",
    "select * from avro.`{out}/s.txt`",
    "select * from parquet.`hf://datasets/x/y/s.parquet`",
    "select * from parquet.`http://localhost:1/s.parquet`",
    "select * from parquet.`s3://bucket/s.parquet`",
    "with c as (select * from text.`{out}/s.txt`) select * from c",
    "with t as (select 1 as v) select * from t, text.`{out}/s.txt`",
    "select (select max(value) from text.`{out}/s.txt`) as v",
    "select * from t where v in (select value from text.`{out}/s.txt`)",
    "select * from t where exists (select 1 from text.`{out}/s.txt`)",
    "select v from t union all select value from text.`{out}/s.txt`",
    "select * from t join text.`{out}/s.txt` s on true",
    "select * from t lateral view explode(array((select max(value) from text.`{out}/s.txt`))) e as x",
    "select * from global_temp.secrets",
    "select * from spark_catalog.text.`{out}/s.txt`",
    "select * from spark_catalog.default.t",
    "select * from `text.{out}/s.txt`",
    "select * from identifier('text.`{out}/s.txt`')",
    "select * from read_files('{out}/s.txt')",
    "select * from read_text('{out}/s.txt')",
    "select java_method('java.nio.file.Files', 'readString', '{out}/s.txt') as v",
    "select reflect('java.lang.System', 'getProperty', 'user.home') as v",
    "select transform(v) using 'cat {out}/s.txt' as (v) from t",
    "table text.`{out}/s.txt`",
    "from text.`{out}/s.txt` select *",
    "select 1 as v; select * from text.`{out}/s.txt`",
    "create table x using csv location '{out}'",
    "create external table x (v string) using csv options (path '{out}/s.csv')",
    "create temporary view x using csv options (path '{out}/s.csv')",
    "create or replace temporary view x as select * from text.`{out}/s.txt`",
    "insert overwrite directory '{in}/../outside/new' using csv select 1 as v",
    "insert into t select value from text.`{out}/s.txt`",
    "load data inpath '{out}/s.csv' into table t",
    "add jar '{out}/x.jar'",
    "set spark.sql.warehouse.dir={out}",
    "copy into t from '{out}'",
    "explain select * from text.`{out}/s.txt`",
    "describe formatted text.`{out}/s.txt`",
    "cache table x as select * from text.`{out}/s.txt`",
    "select r'a\\' as v, (select max(value) from text.`{out}/s.txt`) as w --'",
    "select /* /* */ 1 as v, */ (select max(value) from text.`{out}/s.txt`) as w",
    "select 1 as v -- \\\n, (select max(value) from text.`{out}/s.txt`) as w",
    "select ''' as v, (select max(value) from text.`{out}/s.txt`) as w --'''",
    "select 'a\\\\' as v, (select max(value) from text.`{out}/s.txt`) as w",
    "select $$ as v, (select max(value) from text.`{out}/s.txt`) as w --$$",
    "select /*+ broadcast(text.`{out}/s.txt`) */ value as v from text.`{out}/s.txt`",
    "select * from delta.`{out}/delta` version as of 0",
    "select * from delta.`{out}/delta`@v0",
]


@pytest.mark.parametrize("body", HOSTILE)
def test_nothing_outside_is_read(walled: Desk, body: str) -> None:
    """Refused, or answered without the secret: never anything else."""
    outside = walled.folder.parent / "outside"
    before = sorted(p.name for p in outside.iterdir())
    text = body.replace("{out}", str(outside)).replace("{in}", str(walled.folder)).replace("{{", "{").replace("}}", "}")
    try:
        rows = walled.query(text, "stolen")
    except ByzerError as error:
        assert SECRET not in error.render()
    else:
        assert SECRET not in str(rows)
    assert sorted(p.name for p in outside.iterdir()) == before
    assert not Path("spark-warehouse").exists()


@pytest.mark.parametrize(
    ("fmt", "path"),
    [
        ("text", "{out}/s.txt"),
        ("json", "{in}/../outside/s.json"),
        ("csv", "{in}/link-s.csv"),
        ("parquet", "{in}/folder/s.parquet"),
        ("text", "{in}/*"),
        ("text", "{in}"),
        ("json", "file://{out}/s.json"),
    ],
)
def test_load_stays_inside(walled: Desk, fmt: str, path: str) -> None:
    path = path.replace("{out}", str(walled.folder.parent / "outside")).replace("{in}", str(walled.folder))
    with pytest.raises(AccessError):
        walled.load(fmt, path)


def test_a_delta_log_may_not_name_files_outside(walled: Desk) -> None:
    """A table inside whose log was changed to point at a file outside."""
    secret = walled.folder.parent / "outside" / "s.parquet"
    log = walled.folder / "forged" / "_delta_log" / "00000000000000000000.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for spelling in (str(secret), f"file://{secret}", "../../outside/s.parquet", "..%2F..%2Foutside%2Fs.parquet"):
        for line in lines:
            if "add" in line:
                line["add"] |= {"path": spelling, "size": secret.stat().st_size}
        log.write_text("\n".join(json.dumps(line) for line in lines))
        with pytest.raises(ByzerError) as caught:
            walled.load("delta", walled.folder / "forged", "forged", mode="path")
        assert SECRET not in caught.value.render()


@pytest.mark.parametrize("fmt", ["json", "csv", "parquet"])
def test_save_stays_inside(walled: Desk, fmt: str) -> None:
    outside = walled.folder.parent / "outside"
    for path in (outside / "new", walled.folder / ".." / "outside" / "new", walled.folder / "folder" / "new"):
        with pytest.raises(AccessError):
            walled.save("t", fmt, path, "overwrite")
    assert not (outside / "new").exists()
    with pytest.raises(AccessError):
        walled.engine.save(
            SaveTable(table="t", format="delta", path=str(outside / "new"), options=SaveOptions(mode="path"))
        )


def test_what_is_inside_can_be_read(walled: Desk) -> None:
    assert walled.query(f"select v from json.`{walled.folder}/ok.json`") == [{"v": "fine"}]
    assert walled.query("select 'text.`/etc/hostname`' as v, '--' as w, \"it's\" as x") == [
        {"v": "text.`/etc/hostname`", "w": "--", "x": "it's"}
    ]
    with pytest.raises(NotFoundError, match="table `nope` does not exist"):
        walled.query("select * from nope")
