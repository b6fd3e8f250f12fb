"""A name becomes a place below the owner's lake, or an error; never any other place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzer_ft.errors import AccessError, OptionError
from byzer_ft.lake import delta_path
from byzer_ft.settings import Settings

SETTINGS = Settings(home=Path("/h"), owner="ada")


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("ai_model.llama2_300", "ai_model/llama2_300"),
        ("helper", "default/helper"),
        ("数据库.模型-1", "数据库/模型-1"),
        ("a-b.C_9", "a-b/C_9"),
    ],
)
def test_a_name_is_a_place_in_the_owners_lake(name: str, below: str) -> None:
    assert delta_path(SETTINGS, name) == f"/h/lake/ada/{below}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a.",
        ".b",
        "a.b.c",
        "../x",
        "a/b",
        "a\\b",
        "db.x y",
        "x'",
        'x"',
        "x`",
        "x;",
        "~",
        "$x",
        "a\0",
        "x%2e",
    ]
    + ["x\n", "db._delta_log", "x" * 201, "\ud800"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(OptionError):
        delta_path(SETTINGS, name)


def test_a_path_is_told_about_mode_path() -> None:
    with pytest.raises(OptionError) as error:
        delta_path(SETTINGS, "/data/models/x")
    assert 'mode="path"' in str(error.value.hint)


def test_an_owner_is_no_path_either() -> None:
    with pytest.raises(AccessError):
        delta_path(Settings(home=Path("/h")).model_copy(update={"owner": ".."}), "m")  # past its own check


def test_an_object_store_is_a_lake_too() -> None:
    assert delta_path(Settings(lake="s3://bucket/lake/", owner="ada"), "m") == "s3://bucket/lake/ada/default/m"


@given(st.text(max_size=40))
def test_no_text_leaves_the_lake(name: str) -> None:
    try:
        path = delta_path(SETTINGS, name)
    except OptionError:
        return
    parts = path.split("/")
    assert parts[:4] == ["", "h", "lake", "ada"] and len(parts) == 6 and not {"", ".", ".."} & set(parts[4:])
