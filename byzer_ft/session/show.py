"""What exists -> Arrow tables for `!show` and `!desc`. Knows nothing of where the rows come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.catalog import FunctionRow, JobRow, ModelRow

_TIMES = ("created_at", "started_at", "ended_at")


def table_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> pa.Table:
    """Rows -> a table with these columns (name, Arrow type), present even when there are no rows."""
    import pyarrow as pa

    types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "time": pa.timestamp("ms", "UTC")}
    schema = pa.schema([(name, types[kind]) for name, kind in columns])
    return pa.Table.from_pylist([{n: row.get(n) for n, _ in columns} for row in rows], schema=schema)


def jobs_table(jobs: Iterable[JobRow]) -> pa.Table:
    rows = []
    for job in jobs:
        progress = job.progress or {}
        row = {name: getattr(job, name) for name in ("name", "state", "output_table", "workers", "reason", "tail")}
        row |= {name: _time(getattr(job, name)) for name in _TIMES}
        row |= {"step": progress.get("step"), "total_steps": progress.get("total_steps"), "loss": progress.get("loss")}
        rows.append(row | {"directory": job.directory})
    return table_of(
        rows,
        [
            ("name", "text"),
            ("state", "text"),
            ("step", "int"),
            ("total_steps", "int"),
            ("loss", "float"),
            ("output_table", "text"),
            ("workers", "int"),
            ("created_at", "time"),
            ("started_at", "time"),
            ("ended_at", "time"),
            ("reason", "text"),
            ("tail", "text"),
            ("directory", "text"),
        ],
    )


def models_table(models: Iterable[ModelRow]) -> pa.Table:
    rows = [
        {
            "name": m.name,
            "state": m.state,
            "kind": "adapter" if m.base else "full",
            "family": m.family,
            "place": m.uri or m.directory,
            "version": m.version,
            "base": (m.base or {}).get("directory"),
            "reason": m.reason,
            "created_at": _time(m.created_at),
        }
        for m in models
    ]
    return table_of(
        rows,
        [(n, "text") for n in ("name", "state", "kind", "family", "place")]
        + [("version", "int"), ("base", "text"), ("reason", "text"), ("created_at", "time")],
    )


def functions_table(functions: Iterable[FunctionRow]) -> pa.Table:
    rows = [
        {
            "name": f.name,
            "model": f.model,
            "application": f.application,
            "base": f.deployment.get("base", {}).get("directory"),
            "adapter": (f.function.get("adapter") or {}).get("directory"),
            "replicas": f.deployment.get("replicas"),
            "created_at": _time(f.created_at),
        }
        for f in functions
    ]
    return table_of(
        rows,
        [(n, "text") for n in ("name", "model", "application", "base", "adapter")]
        + [("replicas", "int"), ("created_at", "time")],
    )


def tables_table(tables: Mapping[str, Sequence[tuple[str, str]]], models: Iterable[str]) -> pa.Table:
    rows: list[dict[str, str | None]]
    rows = [{"table": n, "kind": "table", "columns": ", ".join(c for c, _ in cs)} for n, cs in sorted(tables.items())]
    rows += [{"table": name, "kind": "model", "columns": None} for name in models]
    return table_of(rows, [("table", "text"), ("kind", "text"), ("columns", "text")])


def columns_table(columns: Iterable[tuple[str, str]]) -> pa.Table:
    return table_of([{"column": n, "type": t} for n, t in columns], [("column", "text"), ("type", "text")])


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
