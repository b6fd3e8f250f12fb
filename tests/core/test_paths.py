from __future__ import annotations

from pathlib import Path

import pytest

from byzer_ft.errors import AccessError
from byzer_ft.paths import PathGuard


@pytest.fixture
def guard(tmp_path: Path) -> PathGuard:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "inside").mkdir()
    return PathGuard([tmp_path / "in"])


def test_what_is_below_a_root_is_resolved(guard: PathGuard, tmp_path: Path) -> None:
    assert guard.resolve(f"{tmp_path}/in/a/../b.json") == f"{tmp_path}/in/b.json"
    assert guard.resolve(f"file://{tmp_path}/in/a%20b.json") == f"{tmp_path}/in/a b.json"
    assert guard.resolve(str(tmp_path / "in")) == str(tmp_path / "in")


@pytest.mark.parametrize(
    "path",
    [
        "{t}/out/secret",
        "{t}/in/../out/secret",
        "{t}/in/link/secret",
        "{t}/inside/x",  # a name that begins like the root's
        "file://{t}/out/secret",
        "file://{t}/in/%2e%2e/out/secret",
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "s3://bucket/x",
        "../../../../etc/passwd",
    ],
)
def test_what_is_outside_is_refused(guard: PathGuard, tmp_path: Path, path: str) -> None:
    with pytest.raises(AccessError):
        guard.resolve(path.format(t=tmp_path))


@pytest.mark.parametrize("path", ["http://host/x", "hf://data/x", "ftp://x/y", "a\0b"])
def test_unknown_schemes_and_nul_are_refused_without_roots_too(path: str) -> None:
    with pytest.raises(AccessError):
        PathGuard(None).resolve(path)
