from __future__ import annotations

import os
from pathlib import Path

import pytest

from byzer_ft.errors import OptionError
from byzer_ft.settings import Settings, load_settings


def test_environment_wins_over_toml_and_python_over_both(home: Path) -> None:
    (home / "byzer_ft.toml").write_text('owner = "toml"\nengine = "sc://a:1"\n')
    env = {"BYZER_FT_HOME": str(home), "BYZER_FT_OWNER": "env"}
    loaded = load_settings(env)
    assert (loaded.owner, loaded.engine) == ("env", "sc://a:1")
    assert load_settings(env, owner="python").owner == "python"


def test_an_unknown_setting_is_refused_with_a_suggestion(home: Path) -> None:
    with pytest.raises(OptionError, match="unknown setting 'onwer'") as caught:
        load_settings({"BYZER_FT_HOME": str(home), "BYZER_FT_ONWER": "x"})
    assert caught.value.hint == "did you mean `owner`?"


def test_a_bad_value_is_named(home: Path) -> None:
    with pytest.raises(OptionError, match="BYZER_FT_ENGINE='oracle'"):
        load_settings({"BYZER_FT_HOME": str(home), "BYZER_FT_ENGINE": "oracle"})


def test_roots_are_separated_as_path_is(home: Path) -> None:
    loaded = load_settings({"BYZER_FT_HOME": str(home), "BYZER_FT_ALLOWED_ROOTS": f"/a{os.pathsep}/b/c"})
    assert loaded.allowed_roots == (Path("/a"), Path("/b/c"))


def test_broken_toml_is_said_so(home: Path) -> None:
    (home / "byzer_ft.toml").write_text("owner = ")
    with pytest.raises(OptionError, match="not readable TOML"):
        load_settings({"BYZER_FT_HOME": str(home)})


def test_the_token_is_never_shown(home: Path) -> None:
    assert "hunter2" not in repr(load_settings({"BYZER_FT_HOME": str(home), "BYZER_FT_TOKEN": "hunter2"}))


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    assert [name for name in Settings.model_fields if f"`BYZER_FT_{name.upper()}`" not in page] == []
