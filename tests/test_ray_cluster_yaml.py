"""`ray_cluster.yaml` against Ray's own schema, and against what our jobs need of a cluster. Starts nothing."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    import yaml

    loaded = yaml.safe_load(FILE.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_rays_own_schema_accepts_it(config: dict[str, Any]) -> None:
    import jsonschema

    spec = importlib.util.find_spec("ray")  # found, not imported: this takes no second
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_workers": "two"}, schema)


def test_every_node_has_the_resource_of_its_name(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert list(types) == ["master", "worker_1", "worker_2"]
    assert config["head_node_type"] == "master"
    for name, node in types.items():
        assert node["resources"] == {name: 1}
        assert node["min_workers"] <= node["max_workers"]
    assert sum(node["max_workers"] for node in types.values()) == config["max_workers"]


def test_the_token_reaches_every_node_and_is_asked_for(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    for where in ("head", "worker"):
        (start,) = [c for c in config[f"{where}_start_ray_commands"] if "ray start" in c]
        assert "RAY_AUTH_MODE=token" in start


def test_set_up_mounts_what_all_nodes_share_and_installs_us(config: dict[str, Any]) -> None:
    commands = "\n".join(config["setup_commands"])
    assert "mount -t nfs4" in commands
    assert "byzer-ft[all]" in commands
    assert "g++" in commands


def test_it_names_no_machine(config: dict[str, Any]) -> None:
    text = FILE.read_text("utf-8")
    assert set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text)) <= {"127.0.0.1"}
    assert config["provider"]["region"] == "<region>"
    assert sum(line.lstrip().startswith("#") for line in text.splitlines()) > 20
