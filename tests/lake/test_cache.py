"""A version becomes a verified directory, once; damage and hostile manifests are found and nothing else is touched."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import EngineError, ModelError
from byzer_ft.lake import materialize, read_version, save_model
from byzer_ft.lake.manifest import FileEntry, hash_of_files
from tests.lake.model_dirs import FULL, contents, edit_manifest, flip, make_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m")


@pytest.fixture
def uri(tmp_path: Path, model: Path) -> str:
    return save_model(model, str(tmp_path / "lake/ada/db/m"), "errorifexists", FULL).uri


def _left(cache: Path) -> list[str]:
    """What a cache holds besides locks."""
    return [p.name for p in (cache / "models").iterdir() if p.suffix != ".lock"] if (cache / "models").exists() else []


def test_the_directory_is_kept_under_the_root_hash(tmp_path: Path, model: Path, uri: str) -> None:
    cache = tmp_path / "cache"
    path = materialize(uri, None, cache)
    assert path == cache / "models" / read_version(uri).root_hash and contents(path) == contents(model)
    inode = (path / "weights.bin").stat().st_ino
    assert materialize(uri, 0, cache) == path and (path / "weights.bin").stat().st_ino == inode
    assert stat.S_IMODE((path / "weights.bin").stat().st_mode) & 0o222 == 0
    assert _left(cache) == [path.name]


def test_a_hit_needs_no_bytes_of_the_table(tmp_path: Path, uri: str) -> None:
    path = materialize(uri, None, tmp_path / "cache")
    for data in Path(uri).glob("chunks-*"):
        data.unlink()
    assert materialize(uri, None, tmp_path / "cache") == path


@pytest.mark.parametrize("damage", ["missing", "cut", "link"])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, model: Path, uri: str, damage: str) -> None:
    path = materialize(uri, None, tmp_path / "cache")
    (path / "weights.bin").unlink()
    if damage == "cut":
        (path / "weights.bin").write_bytes(b"short")
    elif damage == "link":
        (path / "weights.bin").symlink_to(model / "weights.bin")
    assert contents(materialize(uri, None, tmp_path / "cache")) == contents(model)
    assert not (path / "weights.bin").is_symlink() and _left(tmp_path / "cache") == [path.name]


def test_a_flipped_byte_is_found_named_and_not_served(tmp_path: Path, model: Path, uri: str) -> None:
    (data,) = Path(uri).glob("chunks-*")
    flip(data, (model / "weights.bin").read_bytes())
    with pytest.raises(ModelError) as error:
        materialize(uri, None, tmp_path / "cache")
    assert "'weights.bin' at byte 0" in error.value.message and data.name in error.value.message
    assert _left(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_data_file_that_is_no_parquet_is_named(tmp_path: Path, uri: str, damage: str) -> None:
    (data,) = Path(uri).glob("chunks-*")
    whole = data.read_bytes()
    data.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": os.urandom(len(whole))}[damage])
    with pytest.raises(ModelError, match=data.name):
        materialize(uri, None, tmp_path / "cache")
    assert _left(tmp_path / "cache") == []


def test_no_byte_of_a_data_file_can_change_unseen(tmp_path: Path, model: Path, uri: str) -> None:
    """A flip anywhere, page headers and footer included: either the files are right or it is an error of ours."""
    (data,) = Path(uri).glob("chunks-*")
    whole = data.read_bytes()
    for at in range(0, len(whole), 97):
        data.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            restored = materialize(uri, None, tmp_path / f"cache{at}")
        except ModelError:
            continue
        assert contents(restored) == contents(model), at


def test_a_missing_data_file_is_named(tmp_path: Path, uri: str) -> None:
    (data,) = Path(uri).glob("chunks-*")
    data.unlink()
    with pytest.raises(ModelError, match=f"{data.name}.*does not exist"):
        materialize(uri, None, tmp_path / "cache")
    assert _left(tmp_path / "cache") == []


def _rename(to: str) -> Callable[[dict[str, Any]], None]:
    """Gives the first file another path, with a root hash that fits: only the path check can refuse it."""

    def change(document: dict[str, Any]) -> None:
        document["files"][0]["path"] = to
        entries = [FileEntry.model_construct(path=f["path"], size=f["size"], hash=f["hash"]) for f in document["files"]]
        document["root_hash"] = hash_of_files(entries)

    return change


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "..", ".", "", "a//b", "a/", "./a", "a\0b", "x" * 300])
def test_hostile_paths_are_refused_before_anything_is_written(tmp_path: Path, uri: str, path: str) -> None:
    edit_manifest(Path(uri), _rename(path))
    before = {p for p in tmp_path.rglob("*") if "lake" not in p.parts}
    with pytest.raises(ModelError, match="manifest of version 0"):
        materialize(uri, None, tmp_path / "cache")
    assert {p for p in tmp_path.rglob("*") if "lake" not in p.parts} == before


def test_an_honest_rename_would_have_been_accepted(tmp_path: Path, uri: str) -> None:
    """The counterpart: what the test above refuses is the path, not the editing."""
    edit_manifest(Path(uri), _rename("other/name.json"))
    assert (materialize(uri, None, tmp_path / "cache") / "other/name.json").is_file()


def _set(*keys: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("stores", 0, to="../../../../other.parquet"),
        _set("stores", 0, to="/etc/passwd"),
        _set("root_hash", to="../../x"),
        _set("root_hash", to="00" * 32),
        _set("files", to=[]),
        _set("files", 0, "size", to=-1),
        _set("files", 0, "chunks", 0, "store", to=9),
        _set("files", 0, "chunks", 0, "size", to=2**40),
        _set("files", 0, "chunks", 0, "row_group", to=-1),
        _set("files", 0, "chunks", to=[]),
        _set("files", 1, "path", to="config.json/below"),
        _set("format_version", to="1; drop"),
        _set("meta", to=None),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    tmp_path: Path, uri: str, change: Callable[[dict[str, Any]], None]
) -> None:
    edit_manifest(Path(uri), change)
    with pytest.raises(ModelError, match="manifest of version 0"):
        materialize(uri, None, tmp_path / "cache")


def test_one_models_bytes_under_anothers_hash_are_refused(tmp_path: Path, model: Path) -> None:
    """Right chunks in the wrong order, every chunk's hash right: the file's own hash tells."""
    (model / "big.bin").write_bytes(b"a" * (16 << 20) + b"b" * (16 << 20))
    uri = save_model(model, str(tmp_path / "lake/ada/db/big"), "append", FULL).uri

    def swap(document: dict[str, Any]) -> None:
        next(f for f in document["files"] if f["path"] == "big.bin")["chunks"].reverse()

    edit_manifest(Path(uri), swap)
    with pytest.raises(ModelError, match=r"big\.bin.*do not make the file"):
        materialize(uri, None, tmp_path / "cache")
    assert _left(tmp_path / "cache") == []


def test_many_who_want_one_model_get_one_directory(tmp_path: Path, model: Path, uri: str) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(materialize(uri, None, tmp_path / "cache"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 6 and len(set(paths)) == 1 and contents(paths[0]) == contents(model)
    assert _left(tmp_path / "cache") == [paths[0].name]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, uri: str) -> None:
    models = tmp_path / "cache/models"
    stale = models / f".{read_version(uri).root_hash}.0123"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"x")
    path = materialize(uri, None, tmp_path / "cache")
    assert _left(tmp_path / "cache") == [path.name]


def test_a_cache_that_cannot_be_made_is_an_engine_error(tmp_path: Path, uri: str) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EngineError, match="cache"):
        materialize(uri, None, tmp_path / "cache")
