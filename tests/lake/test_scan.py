"""What a directory holds: hashes, links, odd files, and changes behind the reader's back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from byzer_ft.errors import AccessError, ModelError, NotFoundError
from byzer_ft.lake import root_hash, scan_directory
from byzer_ft.lake.scan import read_blocks, unchanged, walk
from byzer_ft.paths import PathGuard
from tests.lake.model_dirs import contents, make_model


def test_every_file_has_its_size_and_hash(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    manifest = scan_directory(model)
    assert {f.path: (f.size, f.hash) for f in manifest.files} == {
        name: (len(data), blake3(data).hexdigest()) for name, data in contents(model).items()
    }
    assert [f.path for f in manifest.files] == sorted(f.path for f in manifest.files)
    assert manifest.size == sum(map(len, contents(model).values()))


def test_the_root_hash_is_the_content_not_the_place(tmp_path: Path) -> None:
    first = scan_directory(make_model(tmp_path / "a"))
    assert scan_directory(make_model(tmp_path / "b")).root_hash == first.root_hash
    (tmp_path / "b/config.json").rename(tmp_path / "b/config2.json")
    assert scan_directory(tmp_path / "b").root_hash != first.root_hash
    assert scan_directory(make_model(tmp_path / "c", seed=1)).root_hash != first.root_hash


def test_repositories_and_caches_are_left_out_and_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    before = scan_directory(model).root_hash
    for name in (".git/objects/x", ".cache/huggingface/y", "sub/__pycache__/z.pyc"):
        (model / name).parent.mkdir(parents=True)
        (model / name).write_text("x")
    after = scan_directory(model)
    assert after.root_hash == before and after.skipped == (".cache/", ".git/", "sub/__pycache__/")


def test_links_inside_are_files(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "link.bin").symlink_to("weights.bin")
    files = {f.path: f.hash for f in scan_directory(model).files}
    assert files["link.bin"] == files["weights.bin"]


def test_links_that_leave_need_a_guard_that_allows_their_target(tmp_path: Path) -> None:
    model, blobs, secret = make_model(tmp_path / "hub/snapshots/m"), tmp_path / "hub/blobs", tmp_path / "secret"
    blobs.mkdir()
    (blobs / "b1").write_bytes(b"blob")
    secret.write_bytes(b"secret")
    (model / "linked.bin").symlink_to("../../blobs/b1")
    with pytest.raises(AccessError, match=r"linked\.bin"):
        scan_directory(model)
    guard = PathGuard([tmp_path / "hub"])
    assert blake3(b"blob").hexdigest() in {f.hash for f in scan_directory(model, guard=guard).files}
    (model / "evil.bin").symlink_to(secret)
    with pytest.raises(AccessError, match=r"evil\.bin"):
        scan_directory(model, guard=guard)


@pytest.mark.parametrize("kind", ["dangling", "loop", "directory", "fifo"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "m")
    odd = model / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"dangling": "nothing", "loop": "odd", "directory": "sub"}[kind])
    with pytest.raises(ModelError, match="odd"):
        scan_directory(model)


def test_a_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    Path(os.fsdecode(os.fsencode(model) + b"/\xff\xfe.bin")).write_bytes(b"x")
    with pytest.raises(ModelError, match="Unicode"):
        scan_directory(model)


def test_nothing_to_scan(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        scan_directory(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="is a file"):
        scan_directory(tmp_path / "file")
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(ModelError, match="holds no files"):
        scan_directory(tmp_path / "empty")


@pytest.mark.parametrize("how", ["grown", "cut", "replaced", "touched", "removed", "turned into a link"])
def test_a_file_that_changes_between_walk_and_read_is_found(tmp_path: Path, how: str) -> None:
    model = make_model(tmp_path / "m")
    found, _ = walk(model, None)
    path = model / "weights.bin"
    data = path.read_bytes()
    if how in ("replaced", "removed", "turned into a link"):
        path.unlink()
    if how == "replaced":
        path.write_bytes(data)
    elif how == "turned into a link":
        path.symlink_to("config.json")
    elif how == "touched":
        os.utime(path, (1, 1))
    elif how != "removed":
        path.write_bytes(data + b"x" if how == "grown" else data[:-1])
    with pytest.raises(ModelError, match=r"changed while it was read: 'weights\.bin'"):
        b"".join(read_blocks(next(f for f in found if f.path == "weights.bin")))


@pytest.mark.parametrize("how", ["cut", "grown", "rewritten"])
def test_a_file_that_changes_in_the_middle_of_reading_is_found(tmp_path: Path, how: str) -> None:
    model = make_model(tmp_path / "m")
    (file,) = [f for f in walk(model, None)[0] if f.path == "weights.bin"]
    blocks = read_blocks(file, 1000)
    next(blocks)
    if how == "rewritten":
        with (model / "weights.bin").open("r+b") as stream:
            stream.write(b"x" * 3000)
        os.utime(model / "weights.bin", (1, 1))  # the clock's tick is coarser than this test
    else:
        os.truncate(model / "weights.bin", 1500 if how == "cut" else 4500)
    with pytest.raises(ModelError, match="changed while it was read"):
        list(blocks)


def test_files_that_come_and_go_are_found(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    found, _ = walk(model, None)
    unchanged(model, None, found)
    (model / "new.bin").write_text("x")
    with pytest.raises(ModelError, match=r"new\.bin"):
        unchanged(model, None, found)


def _age(directory: Path) -> None:
    for path in directory.rglob("*"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def test_a_cached_root_hash_is_the_same_hash(tmp_path: Path) -> None:
    model, cache = make_model(tmp_path / "m"), tmp_path / "cache"
    plain = scan_directory(model).root_hash
    _age(model)
    assert [root_hash(model, cache) for _ in range(3)] == [plain] * 3
    (model / "config.json").write_text("{}")
    assert root_hash(model, cache) == scan_directory(model).root_hash != plain
    (model / "weights.bin").unlink()
    assert root_hash(model, cache) == scan_directory(model).root_hash


def test_settled_files_are_not_read_again_and_fresh_ones_are(tmp_path: Path) -> None:
    """The record is poisoned with a false hash: only an unread file can still show it."""
    model, cache = make_model(tmp_path / "m"), tmp_path / "cache"
    root_hash(model, cache)
    (record,) = (cache / "hashes").glob("*.json")
    assert json.loads(record.read_text())["files"] == {}, "files written a moment ago may change within one clock tick"
    _age(model)
    true = root_hash(model, cache)
    document = json.loads(record.read_text())
    document["files"]["weights.bin"][1] = "0" * 64
    record.write_text(json.dumps(document))
    assert root_hash(model, cache) != true
    record.write_text("{not json")
    assert root_hash(model, cache) == true


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (tmp_path / "cache").write_text("a file where the cache should be")
    assert root_hash(model, tmp_path / "cache") == scan_directory(model).root_hash
