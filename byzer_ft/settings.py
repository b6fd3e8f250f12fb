"""The environment and `byzer_ft.toml` -> one frozen `Settings`. Nothing else reads os.environ.

Order: environment `BYZER_FT_*`, then `byzer_ft.toml` in the working directory, then `{home}/byzer_ft.toml`,
then the defaults. Knows nothing of SQL, engines or Ray.
"""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from byzer_ft.errors import OptionError, did_you_mean

PREFIX = "BYZER_FT_"


def _paths(value: object) -> object:
    """`a:b` (separated as PATH is) or a TOML list -> a tuple of absolute paths."""
    if isinstance(value, str):
        value = [part for part in value.split(os.pathsep) if part]
    if isinstance(value, (list, tuple)):
        return tuple(Path(os.path.expanduser(str(part))).absolute() for part in value)
    return value


def _home(value: object) -> object:
    return Path(os.path.expanduser(value)).absolute() if isinstance(value, str) else value


class Settings(BaseModel):
    """What an installation is told from outside. Every field is `BYZER_FT_<NAME>` in the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Annotated[Path, BeforeValidator(_home)] = Field(
        default_factory=lambda: Path.home() / ".byzer_ft",
        description="catalog, lake, jobs, cache and files live below it",
    )
    owner: str = Field(
        default_factory=getpass.getuser,
        description="whose tables, jobs and models these are",
        pattern=r"^\w[\w.-]*$",  # it is a folder's name too: never `.` or `..`
    )
    catalog: str | None = Field(None, description="database URL; default SQLite in home")
    lake: str | None = Field(None, description="where model tables live; default {home}/lake")
    shared: str | None = Field(None, description="a mount or URL that every node sees")
    engine: str = Field("sail", description="`sail` (embedded) or `sc://host:port`", pattern=r"^(sail|sc://.+)$")
    ray_address: str | None = Field(None, description="joins a cluster that is not ours")
    allowed_roots: Annotated[tuple[Path, ...] | None, BeforeValidator(_paths)] = Field(
        None, description="nothing outside these can be read or written; unset: what the user may"
    )
    url: str | None = Field(None, description="service to talk to (clients)")
    token: str | None = Field(None, description="token for that service (clients)", repr=False)
    allow_pickle: bool = Field(False, description="administrator: pickle weights may be loaded when a statement asks")
    trust_remote_code: bool = Field(False, description="administrator: a model's own code may run when asked for")

    def for_workers(self) -> dict[str, str]:
        """Environment variables that make a process on another node allow and refuse what this one does."""
        said = {
            "HOME": str(self.home),
            "OWNER": self.owner,
            "ALLOW_PICKLE": str(self.allow_pickle).lower(),
            "TRUST_REMOTE_CODE": str(self.trust_remote_code).lower(),
        }
        if self.allowed_roots is not None:
            said["ALLOWED_ROOTS"] = os.pathsep.join(str(root) for root in self.allowed_roots)
        return {PREFIX + name: value for name, value in said.items()}

    @property
    def catalog_url(self) -> str:
        return self.catalog or f"sqlite:///{self.home / 'catalog.sqlite'}"

    @property
    def lake_root(self) -> str:
        return self.lake or str(self.home / "lake")

    @property
    def jobs_root(self) -> Path:
        """Where job directories go when a statement names no `localPathPrefix`."""
        return Path(self.shared) / "jobs" if self.shared and "://" not in self.shared else self.home / "jobs"

    @property
    def cache_root(self) -> Path:
        return self.home / "cache"


def load_settings(env: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings from `given` (Python), environment, TOML and defaults, in that order of precedence.

    Raises OptionError that names the key, the place it came from and the nearest known name.
    """
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    home = given.get("home") or env.get(PREFIX + "HOME") or str(Path.home() / ".byzer_ft")
    for path in (Path(str(home)).expanduser() / "byzer_ft.toml", Path("byzer_ft.toml")):
        if path.is_file():
            values |= _checked(_read_toml(path), str(path))
    values |= _checked({k[len(PREFIX) :].lower(): v for k, v in env.items() if k.startswith(PREFIX)}, "the environment")
    values |= {k: v for k, v in given.items() if v is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise OptionError(
            f"setting {PREFIX}{name.upper()}={str(first.get('input'))!r}: {first['msg']}",
            hint=Settings.model_fields[name].description if name in Settings.model_fields else None,
        ) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not readable TOML: {error}") from None


def _checked(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    for name in values:
        if name not in Settings.model_fields:
            raise OptionError(
                f"unknown setting {name!r} in {place}",
                hint=did_you_mean(name, Settings.model_fields) or f"settings: {', '.join(Settings.model_fields)}",
            )
    return {k: v for k, v in values.items() if v != ""}
