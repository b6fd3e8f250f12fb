"""A delta name or path -> its address, its version, and the check that its files may be read.

Knows nothing of sessions, queries or models.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from byzer_ft.engine.files import nearest
from byzer_ft.errors import AccessError, DataError, NotFoundError, OptionError, Span, listing
from byzer_ft.paths import PathGuard

if TYPE_CHECKING:
    from byzer_ft.intents import LoadOptions
    from byzer_ft.settings import Settings

_NAME = re.compile(r"^[\w-]+$")
# How a table that holds the versions of a model is known; it is written by another room.
_MODEL_COLUMNS = frozenset({"version", "path", "part", "offset", "size", "hash", "value"})
_MODEL_DESCRIPTION = "byzer_ft model table"


def address(
    settings: Settings, guard: PathGuard, name: str, by_path: bool, span: Span | None, *, write: bool = False
) -> str:
    """`db.table` below the owner's lake, or with `mode="path"` the path itself, resolved."""
    if by_path:
        if re.search(r"[*?\[\]{}%#|<>\"^]", name):
            raise OptionError(f"delta path {name!r} has a character that delta cannot store", hint="rename the folder")
        return guard.resolve(name, what="delta table", write=write)
    database, dot, table = unicodedata.normalize("NFC", name).partition(".")
    if not dot:
        database, table = "default", name
    if not _NAME.match(database) or not _NAME.match(table):
        raise OptionError(
            f"delta name {name!r} is not of the form db.table", hint='for a path add where mode="path"', span=span
        )
    return f"{settings.lake_root.rstrip('/')}/{settings.owner}/{database}/{table}"


def open_version(uri: str, options: LoadOptions, settings: Settings, guard: PathGuard, shown: str) -> tuple[Any, int]:
    """(the table at the wanted version, that version). Every data file is checked: a log may name any path."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    if not _is_delta(uri):
        raise NotFoundError(f"no delta table `{shown}`", hint=_known(uri, settings, guard))
    try:
        table = DeltaTable(uri)
        latest = table.version()
        if options.version_as_of is not None:
            if options.version_as_of > latest:
                raise NotFoundError(
                    f"delta table `{shown}` has no version {options.version_as_of}", hint=f"versions 0 to {latest}"
                )
            table.load_as_version(options.version_as_of)
        elif options.timestamp_as_of is not None:
            table.load_as_version(_instant(options.timestamp_as_of))
    except TableNotFoundError:
        raise NotFoundError(f"no delta table `{shown}`", hint=_known(uri, settings, guard)) from None
    except DeltaError as error:
        raise DataError(f"delta table `{shown}` cannot be opened: {str(error).splitlines()[0]}") from None
    _check_files(table, uri, settings, guard)
    return table, table.version()


def holds_models(uri: str) -> bool:
    """Whether the delta table at `uri` holds a model rather than rows of a user."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(uri)
        metadata = table.metadata()
        columns = {f.name for f in table.schema().fields}
    except DeltaError:
        return False  # the save itself will say why it cannot be opened
    described = (metadata.description or "").startswith(_MODEL_DESCRIPTION)
    return described or (columns >= _MODEL_COLUMNS and metadata.partition_columns == ["version"])


def _check_files(table: Any, uri: str, settings: Settings, guard: PathGuard) -> None:
    if "://" in uri:
        return
    home = Path(uri).resolve()
    for file in table.file_uris():
        # Written as a URL or as it is, depending on who wrote the log: whichever it is must be allowed.
        spellings = [Path(s).resolve() for s in dict.fromkeys([unquote(file.removeprefix("file://")), file])]
        for real in spellings:
            if home not in real.parents:
                guard.resolve(str(real), what="data file of the delta table")
        if not any(real.is_file() for real in spellings):
            raise DataError(
                f"data file {spellings[0]} of the delta table is missing",
                hint="load an earlier version with versionAsOf",
            )


def _is_delta(uri: str) -> bool:
    if "://" in uri:
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(uri))
    return (Path(uri) / "_delta_log").is_dir()


def _known(uri: str, settings: Settings, guard: PathGuard) -> str:
    """The tables there are, for a message."""
    lake = f"{settings.lake_root.rstrip('/')}/{settings.owner}"
    if "://" in uri:
        return "look at the address"
    if not uri.startswith(lake + "/"):
        try:
            return nearest(uri, guard)
        except AccessError:
            return "look at the path"
    tables = [f"{p.parent.parent.name}.{p.parent.name}" for p in Path(lake).glob("*/*/_delta_log")]
    return f"tables: {listing(tables)}"


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise OptionError(
            f"timestampAsOf={text!r} is not a time", hint="for example 2024-05-01 or 2024-05-01 13:00:00"
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
