"""The documents are tested: commands agree between languages, links lead somewhere, SQL blocks parse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from byzer_ft.errors import Source
from byzer_ft.sql import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _blocks(page: Path, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)


def _commands(page: Path) -> list[str]:
    return [line.split("  #")[0].rstrip() for block in _blocks(page, "sh", "python") for line in block.split("\n")]


def test_the_two_readmes_have_the_same_commands() -> None:
    assert _commands(ROOT / "README.md") == _commands(ROOT / "README.zh-CN.md") != []


def test_the_two_readmes_show_the_same_script() -> None:
    assert _blocks(ROOT / "README.md", "sql") == _blocks(ROOT / "README.zh-CN.md", "sql") != []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sql_blocks_parse(page: Path) -> None:
    for block in _blocks(page, "sql"):
        assert parse(Source(block, page.name))


@pytest.mark.parametrize("script", sorted(ROOT.glob("sql_examples/*.sql")), ids=lambda p: p.name)
def test_examples_parse(script: Path) -> None:
    assert parse(Source(script.read_text("utf-8"), script.name))
