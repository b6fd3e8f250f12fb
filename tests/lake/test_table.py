"""A directory becomes a version of a Delta table and a handle reads it back; modes, versions, writers at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from byzer_ft.errors import ConflictError, EngineError, ModelError, NotFoundError, OptionError
from byzer_ft.intents import BaseModelRef
from byzer_ft.lake import (
    ModelMeta,
    find_version,
    is_model_table,
    list_models,
    materialize,
    read_version,
    save_model,
    scan_directory,
)
from byzer_ft.lake import table as lake_table
from byzer_ft.lake.storage import Storage
from tests.lake.model_dirs import FULL, contents, edit_manifest, flip, make_model

MIB = 1 << 20


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lake/ada/ai_model/helper")


def test_a_handle_has_everything_but_the_bytes(tmp_path: Path, uri: str) -> None:
    model = make_model(tmp_path / "m")
    base = BaseModelRef(directory="/models/base", root_hash="ab" * 32, uri="/lake/base")
    meta = ModelMeta(
        kind="adapter", family="llama2", base=base, comment="第二次", lineage={"sql": "run …", "loss": 1.5}
    )
    saved = save_model(model, uri, "errorifexists", meta)
    assert saved.version == 0 and saved.uri == uri and saved.meta == meta
    assert saved.root_hash == scan_directory(model).root_hash
    assert saved.files == scan_directory(model).files and saved.size == scan_directory(model).size
    for path in Path(uri).glob("chunks-*"):
        path.unlink()
    assert read_version(uri) == saved, "reading a handle opens no data file"


def test_an_adapter_without_its_bases_hash_is_refused() -> None:
    with pytest.raises(ModelError, match="root_hash"):
        ModelMeta(kind="adapter", base=BaseModelRef(directory="/models/base"))


def test_every_byte_comes_back_across_chunk_borders(tmp_path: Path, uri: str) -> None:
    model = tmp_path / "m"
    model.mkdir()
    rng = random.Random(3)
    for size in (0, 1, 16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 33 * MIB):
        (model / f"{size}.bin").write_bytes(rng.randbytes(size))
    saved = save_model(model, uri, "errorifexists", FULL)
    restored = materialize(uri, None, tmp_path / "cache")
    assert contents(restored) == contents(model) and saved.size == sum(f.stat().st_size for f in model.iterdir())
    groups = [pq.ParquetFile(p).metadata.row_group(i) for p in Path(uri).glob("chunks-*") for i in range(_groups(p))]
    assert all(g.num_rows == 1 for g in groups) and len(groups) == 9
    values = [g.column(g.num_columns - 1) for g in groups]
    assert {(v.compression, v.has_dictionary_page, v.is_stats_set) for v in values} == {("UNCOMPRESSED", False, False)}


def _groups(path: Path) -> int:
    return int(pq.ParquetFile(path).metadata.num_row_groups)


def test_any_delta_reader_can_put_the_files_together(tmp_path: Path, uri: str) -> None:
    model = make_model(tmp_path / "m", size=40 * MIB)
    save_model(model, uri, "errorifexists", FULL)
    (model / "weights.bin").write_bytes((model / "weights.bin").read_bytes()[:-1] + b"!")
    save_model(model, uri, "append", FULL)
    rows = DeltaTable(uri).to_pyarrow_table().to_pylist()
    assert [*rows[0]] == ["version", "path", "part", "offset", "size", "hash", "value"]
    stored = {r["hash"]: r["value"] for r in rows if r["value"] is not None}
    files: dict[str, bytearray] = {}
    for row in sorted((r for r in rows if r["version"] == 1 and r["part"] >= 0), key=lambda r: (r["path"], r["part"])):
        data = files.setdefault(row["path"], bytearray())
        assert len(data) == row["offset"] and len(stored[row["hash"]]) == row["size"]
        data += stored[row["hash"]]
    assert files == contents(model)
    (manifest,) = [r for r in rows if r["version"] == 1 and r["part"] == -1]
    assert json.loads(manifest["value"])["format_version"] == 1


def test_what_the_table_already_holds_is_not_written_again(tmp_path: Path, uri: str) -> None:
    model = make_model(tmp_path / "m", size=40 * MIB)
    save_model(model, uri, "errorifexists", FULL)
    before = _bytes_in(uri)
    for mode in ("append", "overwrite", "append"):
        save_model(model, uri, mode, FULL)
    assert _bytes_in(uri) - before < MIB
    (model / "extra.bin").write_bytes(b"new" * 1000)
    newest = save_model(model, uri, "overwrite", FULL)
    assert _bytes_in(uri) - before < MIB
    assert contents(materialize(uri, newest.version, tmp_path / "cache")) == contents(model)


def _bytes_in(uri: str) -> int:
    return sum(p.stat().st_size for p in Path(uri).glob("*.parquet"))


def test_zeros_are_stored_once(tmp_path: Path, uri: str) -> None:
    model = tmp_path / "m"
    model.mkdir()
    with (model / "sparse.bin").open("wb") as stream:
        stream.truncate(72 * MIB + 5)
    save_model(model, uri, "errorifexists", FULL)
    assert _bytes_in(uri) < 26 * MIB  # a full chunk and the shorter last one
    restored = materialize(uri, None, tmp_path / "cache")
    assert scan_directory(restored).root_hash == scan_directory(model).root_hash


def test_modes_and_versions(tmp_path: Path, uri: str) -> None:
    models = [make_model(tmp_path / f"m{i}", seed=i) for i in range(4)]
    modes = ("errorifexists", "append", "overwrite", "append")
    saved = [save_model(m, uri, mode, FULL) for m, mode in zip(models, modes, strict=True)]
    assert [s.version for s in saved] == [0, 1, 2, 3]
    for i, version in enumerate(saved):
        assert read_version(uri, i) == version
        assert contents(materialize(uri, i, tmp_path / "cache")) == contents(models[i])
    assert read_version(uri) == saved[3]
    rows = DeltaTable(uri).to_pyarrow_table(columns=["version", "part"]).to_pylist()
    assert {r["version"] for r in rows if r["part"] == -1} == {2, 3}, "overwrite hides, append keeps"
    assert save_model(make_model(tmp_path / "m9", seed=9), uri, "ignore", FULL) == saved[3]
    with pytest.raises(ConflictError, match="exists"):
        save_model(models[0], uri, "errorifexists", FULL)
    assert DeltaTable(uri).version() == 3


def test_a_version_is_found_by_its_content(tmp_path: Path, uri: str) -> None:
    first = save_model(make_model(tmp_path / "a"), uri, "errorifexists", FULL)
    save_model(make_model(tmp_path / "b", seed=1), uri, "overwrite", FULL)
    assert find_version(uri, first.root_hash) == first
    assert find_version(uri, "00" * 32) is None


def test_versions_that_do_not_exist_say_which_do(tmp_path: Path, uri: str) -> None:
    with pytest.raises(NotFoundError, match="no model table"):
        read_version(uri)
    save_model(make_model(tmp_path / "m"), uri, "ignore", FULL)
    for number in (1, 99, -1):
        with pytest.raises(NotFoundError) as error:
            read_version(uri, number)
        assert "0 to 0" in str(error.value.hint)


def test_commits_of_others_do_not_disturb_the_numbers(tmp_path: Path, uri: str) -> None:
    first = save_model(make_model(tmp_path / "a"), uri, "errorifexists", FULL)
    DeltaTable(uri).alter.set_table_properties({"delta.appendOnly": "false"})
    assert read_version(uri, 1) == read_version(uri) == first
    second = save_model(make_model(tmp_path / "b", seed=1), uri, "append", FULL)
    assert second.version == 2 == DeltaTable(uri).version()


def test_checkpoints_and_a_vacuum_keep_what_the_newest_version_needs(tmp_path: Path, uri: str) -> None:
    model, other = make_model(tmp_path / "a"), make_model(tmp_path / "b", seed=1)
    save_model(model, uri, "errorifexists", FULL)
    save_model(other, uri, "overwrite", FULL)
    save_model(model, uri, "append", FULL)
    (model / "weights.bin").write_bytes(b"changed")
    changed = save_model(model, uri, "overwrite", FULL)
    DeltaTable(uri).create_checkpoint()
    DeltaTable(uri).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert contents(materialize(uri, None, tmp_path / "cache")) == contents(model)
    with pytest.raises(ModelError, match=r"vacuumed"):
        materialize(uri, 1, tmp_path / "cache")
    assert find_version(uri, changed.root_hash) == changed
    again = save_model(other, uri, "append", FULL)
    assert again.version > changed.version and read_version(uri, changed.version) == changed
    assert contents(materialize(uri, again.version, tmp_path / "cache")) == contents(other)


def test_lineage_takes_what_metrics_hold(tmp_path: Path, uri: str) -> None:
    lineage = {"loss": float("nan"), "steps": 3, "sql": "select '中文'", "nested": {"a": [1, None]}}
    save_model(make_model(tmp_path / "m"), uri, "append", ModelMeta(kind="full", lineage=lineage))
    assert read_version(uri).meta.lineage == {**lineage, "loss": None}


@pytest.mark.parametrize("name", ["空 格 '引' \"号\"", "hash#and?mark", "100%", "[x]{y}*"])
def test_addresses_with_odd_names(tmp_path: Path, name: str) -> None:
    uri = str(tmp_path / name / "m")
    saved = save_model(make_model(tmp_path / name / "src"), uri, "errorifexists", FULL)
    assert is_model_table(uri) and read_version(uri) == saved
    again = save_model(make_model(tmp_path / name / "src", seed=1), uri, "overwrite", FULL)
    assert contents(materialize(uri, again.version, tmp_path / name / "cache")) == contents(tmp_path / name / "src")


def test_an_address_that_delta_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Delta library"):
        save_model(make_model(tmp_path / "m"), str(tmp_path / "a%20b"), "append", FULL)
    assert not is_model_table(str(tmp_path / "a\\b"))


def test_a_directory_that_cannot_be_saved_leaves_no_table(tmp_path: Path, uri: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no files"):
        save_model(tmp_path / "empty", uri, "overwrite", FULL)
    with pytest.raises(OptionError, match="inside"):
        save_model(make_model(tmp_path), uri, "overwrite", FULL)
    assert not Path(uri).exists()


def test_is_model_table(tmp_path: Path, uri: str) -> None:
    save_model(make_model(tmp_path / "m"), uri, "append", FULL)
    assert is_model_table(uri)
    ordinary, original = str(tmp_path / "ordinary"), str(tmp_path / "original")
    write_deltalake(ordinary, pa.table({"version": [1], "path": ["x"], "value": [b"y"]}))
    write_deltalake(original, pa.table({"start": [0], "offset": [3], "value": [b"tar"]}))
    garbage = tmp_path / "garbage/_delta_log"
    garbage.mkdir(parents=True)
    (garbage / "00000000000000000000.json").write_bytes(b"\x00not json")
    (tmp_path / "file").write_text("x")
    for other in (ordinary, original, str(garbage.parent), str(tmp_path / "file"), str(tmp_path), str(tmp_path / "no")):
        assert not is_model_table(other), other


def test_an_ordinary_table_is_never_overwritten_by_a_model(tmp_path: Path, uri: str) -> None:
    write_deltalake(uri, pa.table({"a": [1, 2]}))
    for mode in ("overwrite", "append", "ignore", "errorifexists"):
        with pytest.raises(ConflictError, match="ordinary table"):
            save_model(make_model(tmp_path / "m"), uri, mode, FULL)
    assert DeltaTable(uri).to_pyarrow_table().num_rows == 2


def test_a_newer_format_is_refused_as_newer(tmp_path: Path, uri: str) -> None:
    save_model(make_model(tmp_path / "m"), uri, "append", FULL)
    edit_manifest(Path(uri), lambda d: d.update(format_version=2, something="new"))
    with pytest.raises(ModelError, match="format 2; this byzer_ft reads up to 1"):
        read_version(uri)
    DeltaTable(uri).alter.set_table_description("byzer_ft model table, format 3")
    assert is_model_table(uri)
    for use in (lambda: read_version(uri), lambda: save_model(tmp_path / "m", uri, "append", FULL)):
        with pytest.raises(ModelError, match="format 3"):
            use()


def test_a_damaged_manifest_is_found_and_does_not_stop_the_next_save(tmp_path: Path, uri: str) -> None:
    model = make_model(tmp_path / "m")
    save_model(model, uri, "append", FULL)
    flip(next(Path(uri).glob("manifest-*")), b'"root_hash"')
    with pytest.raises(ModelError, match="manifest of version 0"):
        read_version(uri)
    saved = save_model(model, uri, "append", FULL)
    assert contents(materialize(uri, saved.version, tmp_path / "cache")) == contents(model)


def test_list_models(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    assert list_models(str(lake), "ada") == []
    for i, name in enumerate(("ai/b", "ai/a", "default/模型")):
        save_model(make_model(tmp_path / f"m{i}", seed=i), str(lake / "ada" / name), "append", FULL)
    save_model(make_model(tmp_path / "m9", seed=9), str(lake / "bob/ai/other"), "append", FULL)
    write_deltalake(str(lake / "ada/ai/table"), pa.table({"a": [1]}))
    assert [m.uri for m in list_models(str(lake), "ada")] == [
        str(lake / "ada" / n) for n in ("ai/a", "ai/b", "default/模型")
    ]
    flip(next((lake / "ada/ai/a").glob("manifest-*")), b'"root_hash"')
    told: list[str] = []
    assert len(list_models(str(lake), "ada", notice=told.append)) == 2 and "ai/a" in told[0]
    with pytest.raises(ModelError):
        list_models(str(lake), "ada")


# ------------------------------------------------------------------------------------------------- writers at once


def test_threads_that_save_at_once_all_land(tmp_path: Path, uri: str) -> None:
    models = [make_model(tmp_path / f"m{i}", seed=i) for i in range(4)]
    numbers: dict[int, list[int]] = {i: [] for i in range(4)}

    def save(i: int) -> None:
        for _ in range(3):
            numbers[i].append(save_model(models[i], uri, "append", FULL).version)

    threads = [threading.Thread(target=save, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for found in numbers.values() for n in found) == list(range(12)) and DeltaTable(uri).version() == 11
    for i, found in numbers.items():
        assert {read_version(uri, n).root_hash for n in found} == {scan_directory(models[i]).root_hash}


def test_processes_that_overwrite_at_once_all_land(tmp_path: Path, uri: str) -> None:
    code = (
        "import sys; from pathlib import Path; from byzer_ft.lake import *\n"
        "full = ModelMeta(kind='full')\n"
        "for _ in range(2): print(save_model(Path(sys.argv[1]), sys.argv[2], 'overwrite', full).version)"
    )
    models = [make_model(tmp_path / f"m{i}", seed=i) for i in range(3)]
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(m), uri], stdout=subprocess.PIPE, text=True) for m in models
    ]
    numbers = [[int(n) for n in child.communicate(timeout=120)[0].split()] for child in children]
    assert sorted(sum(numbers, [])) == list(range(6))
    for model, found in zip(models, numbers, strict=True):
        for n in found:
            assert contents(materialize(uri, n, tmp_path / "cache")) == contents(model)
    rows = DeltaTable(uri).to_pyarrow_table(columns=["version", "part"]).to_pylist()
    assert {r["version"] for r in rows if r["part"] == -1} == {5}


def test_only_one_of_two_first_saves_wins_errorifexists(tmp_path: Path, uri: str) -> None:
    outcomes: list[object] = []

    def save(i: int) -> None:
        try:
            outcomes.append(save_model(make_model(tmp_path / f"m{i}", seed=i), uri, "errorifexists", FULL).version)
        except ConflictError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=save, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["0"] + [str(ConflictError)] * 3
    assert len(list(Path(uri).glob("manifest-*"))) == 1, "the losers' files are removed"


def test_chunks_that_somebody_hid_meanwhile_are_named_again(tmp_path: Path, uri: str) -> None:
    """A save refers to bytes of version 0; an overwrite hides that version before the save commits."""
    model, other = make_model(tmp_path / "a"), tmp_path / "b"
    other.mkdir()
    (other / "nothing in common").write_bytes(b"other")
    save_model(model, uri, "append", FULL)
    storage = Storage(uri)
    writer = lake_table._Writer(storage, lake_table._Known(storage, DeltaTable(uri)))
    manifest = writer.finish(tuple(writer.add(f) for f in lake_table.walk(model, None)[0]), FULL)
    save_model(other, uri, "overwrite", FULL)
    assert manifest.stores[0] not in {Path(u).name for u in DeltaTable(uri).file_uris()}
    assert lake_table._commit(storage, "append", writer, manifest) == 2
    assert contents(materialize(uri, 2, tmp_path / "cache")) == contents(model)
    assert manifest.stores[0] in {Path(u).name for u in DeltaTable(uri).file_uris()}


def test_a_commit_whose_answer_was_lost_is_not_made_twice(tmp_path: Path, uri: str) -> None:
    storage = Storage(uri)
    writer = lake_table._Writer(storage, lake_table._Known(storage, None))
    files = tuple(writer.add(f) for f in lake_table.walk(make_model(tmp_path / "a"), None)[0])
    manifest = writer.finish(files, FULL)
    assert [lake_table._commit(storage, "append", writer, manifest) for _ in range(2)] == [0, 0]
    assert DeltaTable(uri).version() == 0


def test_a_table_that_cannot_be_written_is_an_engine_error(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the lake should be")
    with pytest.raises((EngineError, ModelError)) as error:
        save_model(make_model(tmp_path / "m"), str(tmp_path / "lake/ada/x"), "append", FULL)
    assert "lake" in error.value.message
