"""With BYZER_FT_ALLOWED_ROOTS set, no statement reads or writes a path outside them, however it is spelled.

What a name means (`delta.`db.t``, a job without localPathPrefix) is kept by the house in its home, which need not be
inside. The engine's own list of hostile queries is in tests/engine/test_hostile.py; here whole scripts are tried.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byzer_ft.errors import AccessError, ByzerError, NotSupportedError, ScriptError
from tests.bad_input.conftest import Desk
from tests.session.test_cli import byzer_ft
from tests.test_modeldir import make, safetensors

SECRET = "the-secret-of-the-house"
TRAIN = 'run command as LLM.`` where pretrainedModelType="sft/auto" and inputTable="sft_rows" and '
INFER = 'run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto" and udfName="f" and '


@pytest.fixture(scope="module")
def walled(make_desk: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A session that may touch `inside` only. `outside` holds a secret in every form; links inside lead to it."""
    from deltalake import write_deltalake

    base = tmp_path_factory.mktemp("walled")
    inside, outside = base / "inside", base / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "s.txt").write_text(SECRET + "\n")
    (outside / "s.json").write_text(json.dumps({"v": SECRET}))
    (outside / "s.csv").write_text(f"v\n{SECRET}\n")
    (outside / "s.sql").write_text(f"select '{SECRET}' as v as stolen;")
    pq.write_table(pa.table({"v": [SECRET]}), outside / "s.parquet")
    write_deltalake(str(outside / "delta"), pa.table({"v": [SECRET]}))
    make(outside / "model", **{"notes.txt": SECRET.encode()})
    (inside / "ok.json").write_text('{"v": "fine"}')
    make(inside / "model")
    (inside / "half").mkdir()
    (inside / "half" / "config.json").symlink_to(outside / "model" / "config.json")
    (inside / "half" / "model.safetensors").write_bytes(safetensors())
    (inside / "nested").mkdir()
    for name in ("config.json", "model.safetensors"):
        (inside / "nested" / name).write_bytes((inside / "model" / name).read_bytes())
    (inside / "nested" / "sub").mkdir()
    (inside / "nested" / "sub" / "notes.txt").symlink_to(outside / "s.txt")
    for name in ("s.txt", "s.json", "s.parquet", "delta", "model"):
        (inside / f"link-{name}").symlink_to(outside / name)
    (inside / "folder").symlink_to(outside)
    desk = make_desk(allowed_roots=(inside,))
    desk.folder = inside
    desk.session.sql("select 'q' as instruction, 'a' as output as sft_rows; select 'mine' as v as t;")
    return desk


@pytest.fixture
def outside(walled: Desk) -> Iterator[Path]:
    """The folder outside, which is the same, byte for byte, after every test."""
    folder = walled.folder.parent / "outside"

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before, names = content(), sorted(p.name for p in walled.folder.parent.iterdir())
    yield folder
    assert content() == before and sorted(p.name for p in walled.folder.parent.iterdir()) == names


HOSTILE = {
    "load": [
        "load text.`{out}/s.txt` as x;",
        "load json.`{in}/../outside/s.json` as x;",
        "load json.`{in}/link-s.json` as x;",
        "load csv.`{in}/folder/s.csv` as x;",
        "load parquet.`{in}/link-s.parquet` as x;",
        "load text.`file://{out}/s.txt` as x;",
        "load text.`FILE://localhost{out}/s.txt` as x;",
        "load text.`file:///{in}/%2e%2e/outside/s.txt` as x;",
        "load text.`{in}/*` as x;",
        "load text.`{in}/ok.json,{out}/s.txt` as x;",
        "load text.`~/.profile` as x;",
        "load text.`/proc/self/environ` as x;",
        "load json.`s3://bucket/s.json` as x;",
        'load delta.`{out}/delta` where mode="path" as x;',
        'load delta.`{in}/link-delta` where mode="path" as x;',
        "load delta.`../outside.delta` as x;",
        "load delta.`..` as x;",
    ],
    "variables": [
        "set p='{out}/s.txt'; load text.`${p}` as x;",
        "set d='{in}/..'; set f='outside/s.json'; load json.`${d}/${f}` as x;",
        "set p='{out}/s.txt'; select * from text.`${p}` as x;",
        "set q='text.`{out}/s.txt`'; select * from ${q} as x;",
        "set v=`select max(value) from text.``{out}/s.txt``` where type='sql'; select '${v}' as v as x;",
        "set p=`select '{out}/s.txt'` where type='sql'; load text.`${p}` as x;",
        "set v='cat {out}/s.txt' where type='shell';",
    ],
    "select": [
        "select * from parquet.`{out}/s.parquet` as x;",
        "select * from text.`/etc/passwd` as x;",
        "select * from parquet.`/etc/../{out}/s.parquet` as x;",
        "select * from (with c as (select * from text.`{out}/s.txt`) select * from c) as x;",
        "select * from t where v in (select value from text.`{out}/s.txt`) as x;",
        "select (select max(value) from text.`{in}/link-s.txt`) as v as x;",
        "select v from t union all select value from text.`{out}/s.txt` as x;",
        "select * from delta.`{out}/delta` as x;",
        "select * from delta.`{out}/delta` version as of 0 as x;",
        "select * from binaryFile.`{out}/s.txt` as x;",
        "select * from read_files('{out}/s.txt') as x;",
        "select transform(v) using 'cat {out}/s.txt' as (v) from t as x;",
        "select java_method('java.nio.file.Files', 'readString', '{out}/s.txt') as v as x;",
    ],
    "other statements": [
        "create table x using csv location '{out}';",
        "create view x as select * from text.`{out}/s.txt`;",
        "insert overwrite directory '{out}/new' using csv select 1 as v;",
        "insert into t select value from text.`{out}/s.txt`;",
        "drop table t;",
        "include local.`{out}/s.sql`;",
        "include lib.`{out}/s.sql`;",
        "!fs -cat {out}/s.txt;",
        "!fs -cp {out}/s.txt {in}/stolen.txt;",
        "!python run '{out}/s.sql';",
        "!desc text.`{out}/s.txt`;",
        "connect jdbc where url='jdbc:sqlite:{out}/s.db' as db;",
        "register LLM.`{out}/model` as f;",
    ],
    "save": [
        "save overwrite t as json.`{out}/new`;",
        "save append t as csv.`{in}/../outside/new`;",
        "save t as parquet.`{in}/folder/new`;",
        "save overwrite t as json.`{in}/link-s.json`;",
        "save overwrite t as json.`file://{out}/new`;",
        'save overwrite t as delta.`{out}/new` where mode="path";',
        'save append t as delta.`{in}/link-delta` where mode="path";',
        "save overwrite t as delta.`../../outside`;",
        "save overwrite t as delta.`db.../outside`;",
        "save overwrite t as json.`s3://bucket/new`;",
        "save overwrite t as json.`{in}`;",
        "set p='{out}/new'; save overwrite t as json.`${p}`;",
    ],
    "models": [
        "load model.`{out}/model` as m;",
        "load model.`{in}/link-model` as m;",
        "load model.`{in}/folder/model` as m;",
        "load model.`{in}/half` as m;",
        "load model.`file://{out}/model` as m;",
        TRAIN + 'localModelDir="{out}/model";',
        TRAIN + 'localModelDir="{in}/half";',
        TRAIN + 'localModelDir="{in}/model" and localPathPrefix="{out}/jobs";',
        TRAIN + 'localModelDir="{in}/model" and localPathPrefix="{in}/folder/jobs";',
        TRAIN + 'localModelDir="{in}/model" and localPathPrefix="{in}/../outside/jobs";',
        TRAIN + 'localModelDir="{in}/model" and localPathPrefix="s3://bucket/jobs";',
        TRAIN + 'localModelDir="{in}/model" and name="../../outside/job";',
        INFER + 'localModelDir="{out}/model";',
        INFER + 'localModelDir="{in}/link-model";',
        "load model.`{in}/nested` as m; save overwrite m as delta.`ai_model.stolen`;",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "script", [pytest.param(s, id=f"{k}-{i}") for k, v in HOSTILE.items() for i, s in enumerate(v)]
)
def test_nothing_outside_is_read_or_written(walled: Desk, outside: Path, script: str) -> None:
    text = script.replace("{out}", str(outside)).replace("{in}", str(walled.folder))
    with pytest.raises(ByzerError) as caught:
        for result in walled.session.run(text, "hostile.sql"):
            assert not result.has_table or SECRET not in str(result.rows())
    error = caught.value
    # `!desc text.`…`` names a table that there is not: it reads no files.
    assert isinstance(error, AccessError | ScriptError) or text.startswith("!desc"), error.render()
    assert error.span is not None and SECRET not in error.render()
    for row in walled.rows("!show tables;"):
        if row["kind"] == "table":
            assert SECRET not in str(walled.rows(f"select * from `{row['table']}` as looked_at;"))
    assert walled.rows("!show jobs;") == [] and not list(walled.home.rglob("*stolen*"))
    assert not any("Ray" in notice for notice in walled.notices)


def test_a_refusal_names_the_path_and_the_roots(walled: Desk, outside: Path) -> None:
    with pytest.raises(AccessError) as caught:
        walled.session.sql(f"select 1 as a as u;\nload text.`{outside}/s.txt` as x;", "my.sql")
    assert f"'{outside}/s.txt' is outside the allowed roots" in caught.value.message
    assert f"BYZER_FT_ALLOWED_ROOTS allows: {walled.folder}" in str(caught.value.hint)
    assert caught.value.span is not None and caught.value.span.where() == "my.sql:2:1"


def test_what_is_inside_works_and_so_do_names(walled: Desk) -> None:
    """The home of this session is outside its roots; tables and models by name are in it all the same."""
    inside = walled.folder
    assert not walled.home.is_relative_to(inside)
    rows = walled.rows(
        f"load json.`{inside}/ok.json` as ok; save overwrite ok as json.`{inside}/deep/copy`;"
        f"load json.`{inside}/deep/copy` as copied;"
        "save overwrite ok as delta.`shop.ok`; load delta.`shop.ok` as named;"
        "select n.v, c.v as w from named n join copied c on n.v = c.v as out;"
    )
    assert rows == [{"v": "fine", "w": "fine"}]
    stored = walled.rows(
        f"load model.`{inside}/model` as m; save overwrite m as delta.`ai_model.m`; load delta.`ai_model.m` as again;"
    )
    lake = walled.home / "lake" / walled.session.settings.owner
    assert stored[0]["kind"] == "full" and stored[0]["place"] == str(lake / "ai_model" / "m")


def test_the_environment_variable_does_it(walled: Desk, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an administrator sets it, in a process of its own."""
    monkeypatch.setenv("BYZER_FT_HOME", str(walled.home))
    monkeypatch.setenv("BYZER_FT_ALLOWED_ROOTS", f"{walled.folder}:{walled.folder}/more")
    done = byzer_ft("run", "-", stdin=f"load text.`{outside}/s.txt` as t;")
    assert done.returncode == 1 and SECRET not in done.stdout + done.stderr
    assert "<stdin>:1:1: error: text path" in done.stderr and "is outside the allowed roots" in done.stderr
    done = byzer_ft("run", "-", "--format", "json", stdin=f"load json.`{walled.folder}/ok.json` as t;")
    assert json.loads(done.stdout) == [{"v": "fine"}], done.stderr


def test_without_roots_the_package_itself_is_not_written_to(desk: Desk, request: pytest.FixtureRequest) -> None:
    import byzer_ft as package

    assets = Path(package.__file__).parent / "assets"
    before = sorted(assets.rglob("*"))
    request.addfinalizer(lambda: [shutil.rmtree(p, ignore_errors=True) for p in set(assets.rglob("*")) - set(before)])
    desk.session.sql("select 'q' as instruction, 'a' as output as sft_rows;")
    model = make(desk.folder / "m")
    for script in (
        f"save overwrite sft_rows as json.`{assets}/data/new`;",
        f'save overwrite sft_rows as delta.`{assets}/new` where mode="path";',
        TRAIN + f'localModelDir="{model}" and localPathPrefix="{assets}/jobs";',
    ):
        desk.refused(script, AccessError, "belongs to byzer_ft itself", "write somewhere else")
    assert sorted(assets.rglob("*")) == before


def test_a_job_cannot_write_to_an_object_store_yet(desk: Desk) -> None:
    desk.session.sql("select 'q' as instruction, 'a' as output as sft_rows;")
    model = make(desk.folder / "m2")
    script = TRAIN + f'localModelDir="{model}" and localPathPrefix="s3://bucket/jobs";'
    desk.refused(script, NotSupportedError, "s3://bucket/jobs", "object store", "local directory")
