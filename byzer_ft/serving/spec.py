"""What a deployment and a function are, as frozen types that travel to replicas as JSON.

A deployment is one base model with the settings of its engine: it becomes one Ray Serve application, whose name is
derived from both, so that asking twice finds the same one. A function is a catalog row: application, adapter and
default parameters. Knows nothing of Ray, torch, Delta or SQL.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from byzer_ft.intents import BaseModelRef, Frozen
from byzer_ft.serving.protocol import check_defaults

# Part of every application's version: a newer replica program replaces a running one at the next deploy.
REPLICA_VERSION = "1"


class AdapterRef(Frozen):
    """A LoRA adapter: its directory on the node, or its lake address where there is no such directory; and its hash.

    Another version is another `AdapterRef` (another `root_hash`). Without a hash the adapter is known by its
    directory and the size and time of its weights, so that a directory trained again is loaded again.
    """

    directory: str | None = None
    root_hash: str | None = None
    uri: str | None = None
    version: int | None = None


class DeploymentSpec(Frozen):
    """A base model and how it is served."""

    owner: str
    base: BaseModelRef
    backend: Literal["transformers"] = "transformers"
    quantization: Literal["none", "4bit", "8bit"] = "none"
    replicas: int = Field(1, ge=1, le=1000)
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of one replica; 0 is a CPU replica, unset is 1 in a cluster that has GPUs"
    )
    num_cpus: float | None = Field(None, gt=0, description="CPUs of one replica; by default 0.5 without GPU, 1 with")
    custom: dict[str, float] = {}
    family: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def cpus(self) -> float:
        return self.num_cpus if self.num_cpus is not None else (1.0 if self.num_gpus else 0.5)

    @property
    def settings_key(self) -> str:
        """A digest of base and engine settings: equal keys may share an application. Replicas are not part of it."""
        parts = self.model_dump(exclude={"owner", "replicas", "base"})
        parts["base"] = base_key(self.base)
        parts |= {"num_cpus": float(self.cpus), "num_gpus": float(self.num_gpus or 0)}
        parts["custom"] = {name: float(amount) for name, amount in self.custom.items() if amount > 0}
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def application(self) -> str:
        """`byzer_ft.{owner}.{hash of base and engine settings}`"""
        return f"byzer_ft.{self.owner}.{self.settings_key[:12]}"

    def resources(self) -> dict[str, float]:
        """What one replica takes from its node."""
        asked = {"CPU": self.cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})
        return asked | {name: amount for name, amount in self.custom.items() if amount > 0}


class FunctionSpec(Frozen):
    """A model as a SQL function. `defaults` are generation parameters and `system_msg`, under a request's keys."""

    name: str
    adapter: AdapterRef | None = None
    defaults: dict[str, Any] = {}

    @field_validator("defaults")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_defaults(value)


def base_key(base: BaseModelRef) -> str:
    """The content hash of a base; without one, a digest of its path and of its files' sizes and times."""
    if base.root_hash:
        return base.root_hash
    return files_key(Path(base.directory)) if base.directory else f"uri:{base.uri}"


def files_key(directory: Path) -> str:
    """Names a directory by its path and its files' sizes and times: cheap, and different after a new training."""
    digest = hashlib.blake2b(os.path.realpath(directory).encode(), digest_size=16)
    if directory.is_dir():
        for file in sorted(directory.iterdir()):
            if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".bin") and file.is_file():
                stat = file.stat()
                digest.update(f"\0{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return "dir:" + digest.hexdigest()
