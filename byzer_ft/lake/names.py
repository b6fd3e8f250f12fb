"""`db.model` as a user wrote it -> where its table lives: {lake}/{owner}/{db}/{model}. Touches no storage."""

from __future__ import annotations

import unicodedata

from byzer_ft.errors import AccessError, OptionError
from byzer_ft.settings import Settings

DEFAULT_DB = "default"
_LONGEST = 200  # bytes: file systems allow 255 a component, and data files add nothing to it


def delta_path(settings: Settings, name: str) -> str:
    """The address of the Delta table `name` (`db.model`, or `model` in the database `default`) of the settings' owner.

    Letters of any script, digits, `_` and `-` make a name. Raises OptionError for anything else, so that a name can
    never be a path.
    """
    if settings.owner in (".", ".."):  # the settings' pattern allows dots inside an owner's name
        raise AccessError(f"owner {settings.owner!r} is not a name", hint="set BYZER_FT_OWNER to letters and digits")
    parts = unicodedata.normalize("NFC", name).split(".")
    if len(parts) > 2:
        raise OptionError(f"table name {name!r} has {len(parts)} parts", hint="write `db.model` or `model`")
    db, model = parts if len(parts) == 2 else (DEFAULT_DB, parts[0])
    for part in (db, model):
        _check(part, name)
    return "/".join((settings.lake_root.rstrip("/"), settings.owner, db, model))


def _check(part: str, name: str) -> None:
    if not part:
        raise OptionError(f"table name {name!r} has an empty part", hint="write `db.model` or `model`")
    bad = sorted({c for c in part if not (c.isalnum() or c in "_-")})
    if bad:
        shown = " ".join(repr(c) for c in bad[:5])
        hint = "names are letters, digits, `_` and `-`"
        if {"/", "\\"} & set(bad):
            hint += '; a path is loaded and saved with where mode="path"'
        raise OptionError(f"table name {name!r} contains {shown}", hint=hint)
    if part.lower() == "_delta_log":
        raise OptionError(
            f"table name {name!r} uses {part!r}, which Delta keeps for itself", hint="choose another name"
        )
    if len(part.encode()) > _LONGEST:
        raise OptionError(f"table name {name[:40]!r}… is longer than {_LONGEST} bytes", hint="choose a shorter name")
