"""Processes that are killed or run out of disk, for real: children of the test save and load until they are stopped."""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from byzer_ft.lake import is_model_table, materialize, read_version, save_model, scan_directory
from tests.lake.model_dirs import FULL, contents, make_model

MIB = 1 << 20
PRELUDE = """
import os, resource, shutil, sys
from pathlib import Path
from byzer_ft.errors import ByzerError
from byzer_ft.lake import ModelMeta, materialize, save_model
directory, uri, cache = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
def save(mode="append"):
    return save_model(directory, uri, mode, ModelMeta(kind="full"))
"""


def _child(code: str, *arguments: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _kill_within(child: subprocess.Popen[str], seconds: float) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(seconds)
    child.kill()
    child.wait(timeout=60)
    child.stdout.close()


def test_kill_9_while_saving_leaves_whole_versions(tmp_path: Path) -> None:
    kept, changing, uri = make_model(tmp_path / "kept"), make_model(tmp_path / "new"), str(tmp_path / "lake/ada/db/m")
    save_model(kept, uri, "append", FULL)
    rng = random.Random()
    code = """
print("ready", flush=True)
while True:
    (directory / "weights.bin").write_bytes(os.urandom(8 << 20))
    save()
"""
    for _ in range(4):
        before = read_version(uri).version
        _kill_within(_child(code, changing, uri, tmp_path / "unused"), rng.uniform(0.0, 0.4))
        after = read_version(uri).version
        for number in {0, before, after}:
            path = materialize(uri, number, tmp_path / "cache")
            assert number or contents(path) == contents(kept)
        saved = save_model(kept, uri, "append", FULL)
        assert saved.version == after + 1 and contents(materialize(uri, None, tmp_path / "cache")) == contents(kept)


def test_kill_9_in_a_first_save_leaves_no_table_or_a_whole_one(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", size=24 * MIB)
    rng = random.Random()
    for i in range(3):
        uri = str(tmp_path / f"lake/ada/db/m{i}")
        _kill_within(_child('print("ready", flush=True)\nsave()\n', model, uri, "-"), rng.uniform(0.0, 0.3))
        landed = is_model_table(uri)
        assert save_model(model, uri, "append", FULL).version == int(landed)
        for number in range(1 + landed):
            assert read_version(uri, number).root_hash == scan_directory(model).root_hash
        assert contents(materialize(uri, None, tmp_path / f"cache{i}")) == contents(model)


def test_kill_9_while_loading_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    model, uri, cache = make_model(tmp_path / "m", size=24 * MIB), str(tmp_path / "lake/ada/db/m"), tmp_path / "cache"
    version = save_model(model, uri, "append", FULL)
    code = """
print("ready", flush=True)
while True:
    shutil.rmtree(materialize(uri, None, cache))
"""
    rng = random.Random()
    for _ in range(4):
        _kill_within(_child(code, model, uri, cache), rng.uniform(0.0, 0.4))
        # rmtree of the child may have been cut as well: a directory with files missing is not served either.
        path = materialize(uri, None, cache)
        assert contents(path) == contents(model)
        assert [p.name for p in (cache / "models").iterdir() if p.suffix != ".lock"] == [version.root_hash]


@pytest.mark.parametrize("step", ["save", "load"])
def test_no_room_is_an_error_with_a_reason_and_leaves_nothing(tmp_path: Path, step: str) -> None:
    """A limit on the size of files stands for a full disk: the same call fails, with EFBIG instead of ENOSPC."""
    model, uri, cache = make_model(tmp_path / "m"), str(tmp_path / "lake/ada/db/m"), tmp_path / "cache"
    save_model(model, uri, "append", FULL)
    bigger = make_model(tmp_path / "bigger", size=40 * MIB)
    if step == "load":
        save_model(bigger, uri, "append", FULL)
    files, newest = sorted(Path(uri).rglob("*")), read_version(uri)
    code = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
try:
    {"save()" if step == "save" else "materialize(uri, None, cache)"}
except ByzerError as error:
    print(type(error).__name__, error.message, error.hint)
"""
    with _child(code, bigger, uri, cache) as child:
        said = child.communicate(timeout=120)[0]
    assert said.startswith("EngineError") and "too large" in said.lower() and "make room" in said
    assert sorted(Path(uri).rglob("*")) == files and read_version(uri) == newest
    assert not cache.exists() or not [p for p in (cache / "models").iterdir() if p.suffix != ".lock"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A 24 MB file system of its own, filled so that first the chunks, then only the commit, finds no room."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--"]
    mount = f"mount -t tmpfs -o size=24m tmpfs {shlex.quote(str(tmp_path))}"
    if shutil.which("unshare") is None or subprocess.run([*inside, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a file system")
    code = """
def attempt():
    before = sorted(Path(uri).glob("*.parquet"))
    try:
        return "saved", save().version
    except ByzerError as error:
        return type(error).__name__, "No space left" in error.message, sorted(Path(uri).glob("*.parquet")) == before
def fill(left):
    s = os.statvfs(cache)
    (cache / "fill").write_bytes(b"")
    (cache / "fill").write_bytes(bytes(max(0, s.f_bavail * s.f_bsize - left)))
directory.mkdir()
cache.mkdir()
def weights(mib):
    (directory / "weights.bin").write_bytes(os.urandom(mib << 20))
weights(1)
assert attempt() == ("saved", 0)
weights(12)
fill(1 << 20)
assert attempt() == ("EngineError", True, True), attempt()
(cache / "fill").unlink()
weights(1)
seen = set()
for pages in range(40):
    (cache / "fill").unlink(missing_ok=True)
    fill((1 << 20) + 4096 * pages)
    outcome = attempt()
    seen.add(outcome)
    if outcome[0] == "saved":
        break
assert seen == {("EngineError", True, True), ("saved", 1)}, seen
print("done")
"""
    places = [str(tmp_path / name) for name in ("m", "lake", "cache")]
    script = f"{mount} && exec {shlex.join([sys.executable, '-c', PRELUDE + code, *places])}"
    done = subprocess.run([*inside, "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Eight times the bytes may not cost more than a few chunks more memory, saving or loading."""
    code = """
def peak():
    # Not ru_maxrss: a child starts with that of the process which forked it, here all of pytest.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10
def round_trip(mib):
    with (directory / "weights.bin").open("wb") as stream:
        for _ in range(mib):
            stream.write(os.urandom(1 << 20))
    saved = save("overwrite")
    materialize(uri, saved.version, cache)
    return peak()
print(round_trip(16), round_trip(128))
"""
    with _child(code, make_model(tmp_path / "m"), tmp_path / "lake/ada/db/m", tmp_path / "cache") as child:
        small, large = map(int, child.communicate(timeout=200)[0].split())
    assert large < 512 and large - small < 96, (small, large)
