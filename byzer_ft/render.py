"""Results, progress and numbers -> text for a terminal or JSON for a program. Knows nothing of sessions or SQL."""

from __future__ import annotations

import base64
import json
import math
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CELL = 60  # terminal cells; longer values are cut with `…`


def table_text(table: pa.Table, *, max_rows: int = 50, width: int | None = None) -> str:
    """A table with aligned columns, wide (Chinese) characters counted as two cells, NULL distinct from an empty text.

    Shows `max_rows` rows and says how many there are; columns that do not fit `width` are cut, none is left out.
    """
    names = [printable(name) for name in table.column_names]
    numeric = [str(f.type).startswith(("int", "uint", "float", "double", "decimal")) for f in table.schema]
    values = [[_cell(v) for v in row] for row in _rows(table, max_rows)]
    room = _column_room([[n, *(r[i] for r in values)] for i, n in enumerate(names)], width)
    lines = ["  ".join(_fit(n, w, right) for n, w, right in zip(names, room, numeric, strict=True)).rstrip()]
    lines.append("  ".join("─" * w for w in room))
    lines += ["  ".join(_fit(v, w, r) for v, w, r in zip(row, room, numeric, strict=True)).rstrip() for row in values]
    more = table.num_rows - len(values)
    count = f"({table.num_rows} row{'' if table.num_rows == 1 else 's'}"
    lines.append(count + (f", the first {len(values)} shown)" if more > 0 else ")"))
    return "\n".join(lines)


def table_json(table: pa.Table) -> str:
    """One JSON array of objects. Dates are ISO 8601 texts, decimals texts, bytes base64; NaN and infinities null."""
    return json.dumps([_plain(row) for row in table.to_pylist(maps_as_pydicts="lossy")], ensure_ascii=False)


def progress_text(event: Mapping[str, Any]) -> str:
    """`step 12/120  loss 1.234  2,345 tokens/s  ETA 0:35` from a progress event."""
    parts = [f"step {event['step']}/{event['total_steps']}"]
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if event.get("learning_rate") is not None:
        parts.append(f"lr {event['learning_rate']:.1e}")
    if event.get("tokens_per_second"):
        parts.append(f"{event['tokens_per_second']:,.0f} tokens/s")
    if event.get("eta_seconds") is not None:
        parts.append(f"ETA {duration(event['eta_seconds'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`0:35`, `12:05`, `3:02:11`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def printable(text: str) -> str:
    """`text` with control characters (terminal escapes among them) shown as `\\x1b`, so that data cannot act."""
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable()
        else {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(c, f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}")
        for c in text
    )


def _rows(table: pa.Table, limit: int) -> list[list[Any]]:
    # By position: a result may have two columns of one name.
    columns = [column.slice(0, limit).to_pylist() for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)] if columns else []


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", timespec="seconds")
    if isinstance(value, (str, int, date, time, Decimal, timedelta)):
        return printable(str(value))
    return printable(json.dumps(_plain(value), ensure_ascii=False))


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (Decimal, timedelta)):
        return str(value)
    return value


def cells(text: str) -> int:
    """The width of a text in terminal cells."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int, right: bool) -> str:
    if cells(text) > width:
        cut = ""
        for char in text:
            if cells(cut + char) > width - 1:
                break
            cut += char
        text = cut + "…"
    pad = " " * (width - cells(text))
    return pad + text if right else text + pad


def _column_room(columns: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The width of each column: what it needs, shared out evenly where all together need too much."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    need = [min(MAX_CELL, max(1, *(cells(text) for text in column))) for column in columns]
    spare = max(len(need), width - 2 * (len(need) - 1))
    while sum(need) > spare and max(need) > 8:
        need[need.index(max(need))] -= 1
    return need


def event_text(event: Mapping[str, Any]) -> str | None:
    """One line for an event of a job, or None for those that only programs read."""
    kind = event.get("event")
    if kind == "progress":
        return progress_text(event)
    if kind in ("line", "notice"):  # a warning comes as a line too
        return str(event.get("text", ""))
    return None
