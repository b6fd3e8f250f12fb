"""A SELECT's text -> what it names: tables, files, functions. What it may not name is refused here.

This is an allow-list: a table reference is a view of the session, a CTE in scope, or a file in a format that our own
readers open. What sqlglot cannot read is not waved through unless the caller says so. Knows nothing of engines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from byzer_ft.engine import nesting
from byzer_ft.errors import AccessError, NotSupportedError, Span, SqlError

if TYPE_CHECKING:
    from sqlglot import exp

FILE_FORMATS = ("json", "csv", "text", "parquet", "delta")
TABLE_FUNCTIONS = frozenset(
    {"range", "explode", "explode_outer", "posexplode", "posexplode_outer", "inline", "inline_outer", "stack"}
    | {"json_tuple", "values"}
)
FORBIDDEN_FUNCTIONS = frozenset({"java_method", "reflect", "try_reflect", "read_files", "load_file"})
NON_DETERMINISTIC = frozenset(
    {"rand", "random", "randn", "randstr", "uniform", "uuid", "shuffle", "tablesample"}
    | {"now", "current_timestamp", "current_date", "curdate", "current_time", "localtimestamp", "localtime"}
    | {"unix_timestamp", "monotonically_increasing_id", "spark_partition_id"}
)


@dataclass(frozen=True)
class Reference:
    """One table reference: a plain name, or a file format and a path. `start`, `end`: where it stands in the text."""

    name: str
    format: str | None
    start: int
    end: int


@dataclass(frozen=True)
class Select:
    """A SELECT as read: its text without comments, its tree and its references. No tree: sqlglot could not read it."""

    text: str
    tree: exp.Expr | None
    tables: tuple[Reference, ...]
    problem: str | None = None
    deep: bool = False  # not read because it is nested deeper than sqlglot can follow

    @property
    def words(self) -> frozenset[str]:
        return frozenset(t.text.lower() for t in _tokens(self.text))


def read(body: str, span: Span | None = None) -> Select:
    """Parses and vets a SELECT. Raises SqlError, NotSupportedError or AccessError."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    nesting.check(body, span)
    try:
        text = without_comments(body)
        trees = [t for t in sqlglot.parse(text, dialect="spark", error_level=sqlglot.ErrorLevel.RAISE) if t is not None]
    except RecursionError:
        return Select(body, None, (), "it is nested too deeply", deep=True)
    except SqlglotError as error:
        return Select(body, None, (), _reason(error))
    if len(trees) != 1:
        raise SqlError(
            "a select is one query; this text holds " + (f"{len(trees)} statements" if trees else "none"),
            hint="end each statement with `;` outside the query",
            span=span,
        )
    tree = trees[0]
    _vet(tree, span)
    return Select(text, tree, tuple(_table_references(tree, text, span)))


def references(body: str) -> list[str]:
    """The plain table names that a SELECT reads, each once, CTEs left out; empty when it cannot be read."""
    try:
        select = read(body)
    except (SqlError, NotSupportedError, AccessError):
        return []
    return list(dict.fromkeys(r.name for r in select.tables if r.format is None))


def may_name_files(text: str) -> bool:
    """Whether a text that could not be read may name a file: said too often rather than too seldom."""
    return re.search(rf"\b({'|'.join(FILE_FORMATS)})`?\s*\.", text, re.IGNORECASE) is not None


def without_comments(body: str) -> str:
    """`body` with comments blanked out, every other character at its place.

    Two parsers may disagree on where a comment ends; what is not there they cannot disagree on.
    """
    out = [" " if c != "\n" else c for c in body]
    for token in _tokens(body):
        out[token.start : token.end + 1] = body[token.start : token.end + 1]
    return "".join(out).rstrip()


def non_deterministic(select: Select) -> list[str]:
    """The words of a query that make it give other rows each time it runs."""
    return sorted(select.words & NON_DETERMINISTIC)


def _tokens(text: str) -> list[Any]:
    from sqlglot.dialects import Spark

    return list(Spark().tokenize(text))


def _reason(error: Exception) -> str:
    details = getattr(error, "errors", None)
    if details:
        first = details[0]
        return f"{first['description'].rstrip('.')} near `{first['highlight']}`"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _vet(tree: exp.Expr, span: Span | None) -> None:
    """Refuses what is not a query, and the functions and clauses that reach out of the engine."""
    from sqlglot import exp

    if not isinstance(tree, exp.Query | exp.Values):
        raise NotSupportedError(
            f"{tree.key} is not a query",
            hint="select … as t; load … as t; save … as format.`path`",
            span=span,
        )
    for node in tree.walk():
        if isinstance(node, exp.Into | exp.Command | exp.Create | exp.Insert | exp.Drop):
            raise NotSupportedError(f"{node.key} inside a select is not supported", span=span)
        if isinstance(node, exp.QueryTransform):
            raise AccessError("select transform … using runs a program on the server and is refused", span=span)
        name = _function_name(node)
        if name in FORBIDDEN_FUNCTIONS:
            raise AccessError(f"function {name} reaches out of the engine and is refused", span=span)


def _function_name(node: exp.Expr) -> str | None:
    from sqlglot import exp

    if isinstance(node, exp.Anonymous):
        return node.name.lower()
    return node.sql_name().lower() if isinstance(node, exp.Func) else None


def _table_references(tree: exp.Expr, text: str, span: Span | None) -> Iterator[Reference]:
    from sqlglot import exp

    for table in tree.find_all(exp.Table):
        if table.find_ancestor(exp.Hint):
            continue
        if not isinstance(table.this, exp.Identifier):
            name = _function_name(table.this) or table.this.sql("spark")
            if name not in TABLE_FUNCTIONS:
                raise AccessError(
                    f"table function {name} is not allowed", hint=", ".join(sorted(TABLE_FUNCTIONS)), span=span
                )
            continue
        if table.args.get("version") or table.args.get("when"):
            raise NotSupportedError(
                "time travel inside a select is not supported",
                hint='load delta.`db.t` where versionAsOf="1" as t1; then select from t1',
                span=span,
            )
        if table.catalog:
            raise AccessError(f"`{table.sql('spark')}` is neither a table of this session nor a file", span=span)
        first = table.args.get("db") or table.this
        start, end = first.meta["start"], table.this.meta["end"] + 1
        if not table.db:
            if not in_scope(table):
                yield Reference(table.name, None, *_widened(text, start, end))
            continue
        if table.db.lower() not in FILE_FORMATS:
            raise AccessError(
                f"`{table.db}.{table.name}` is neither a table of this session nor a file that may be read",
                hint=f"files inside a select: {', '.join(f + '.`path`' for f in FILE_FORMATS)}",
                span=span,
            )
        yield Reference(table.name, table.db.lower(), *_widened(text, start, end))


def _widened(text: str, start: int, end: int) -> tuple[int, int]:
    """sqlglot counts back-quotes in or out, depending on doubled ones inside; here they are always in."""
    while start > 0 and text[start - 1] == "`":
        start -= 1
    while end < len(text) and text[end] == "`":
        end += 1
    return start, end


def in_scope(table: exp.Expr) -> bool:
    """Whether a name means a CTE: one of an enclosing query, defined before the place where it is used."""
    from sqlglot import exp

    name = table.name.lower()
    child: exp.Expr = table
    node = table.parent
    while node is not None:
        clause = node.args.get("with_") or node.args.get("with")
        if isinstance(clause, exp.With) and clause is not child:
            if any(cte.alias.lower() == name for cte in clause.expressions):
                return True
        elif isinstance(node, exp.With):
            for cte in node.expressions:
                if cte is child:
                    if node.args.get("recursive") and cte.alias.lower() == name:
                        return True
                    break
                if cte.alias.lower() == name:
                    return True
        child, node = node, node.parent
    return False


def replaced(text: str, references: tuple[Reference, ...], spelled: Callable[[Reference], str]) -> str:
    """`text` with every reference written as `spelled` says, the rest as it was."""
    out, position = [], 0
    for reference in sorted(references, key=lambda r: r.start):
        out += [text[position : reference.start], spelled(reference)]
        position = reference.end
    return "".join([*out, text[position:]])
