"""Files in json, csv, text or parquet -> Parquet that the SQL engine can be trusted with, schema from all rows.

The engine's own readers drop what they do not expect; these refuse it, with file and line, or count it aloud. What a
path means and how its bytes become text is `files`' business. Knows nothing of sessions, views or engines.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from byzer_ft.engine.files import InputFile, Notice, plain_utf8
from byzer_ft.errors import DataError, EngineError, OptionError
from byzer_ft.intents import LoadOptions

if TYPE_CHECKING:
    import duckdb

# A JSON value's shape: the name of a DuckDB type, {key: shape} or [shape].
Shape: TypeAlias = "str | dict[str, Shape] | list[Shape]"

MEBI = 1 << 20
OBJECT_LIMITS = (16 * MEBI, 256 * MEBI, 2048 * MEBI)  # bytes of one JSON value; the next is tried
FILE = "__byzer_ft_file"
NUMBERS = {"UBIGINT", "BIGINT", "HUGEINT", "DOUBLE"}
BIG_INTEGER = r"[0-9]{19}"
TEXT_BATCH = 8 * MEBI


def read_to_parquet(
    fmt: str, inputs: Sequence[InputFile], options: LoadOptions, out: Path, notice: Notice, running: list[Any]
) -> list[Path]:
    """Writes the rows of `inputs` as Parquet below `out` and returns the files, in the order of the rows.

    `running` holds the reader's connection while it works, so that another thread may interrupt it.
    """
    readers = {"json": _json, "csv": _csv, "text": _text, "parquet": _parquet}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="reading-") as temporary:
        job = _Job(inputs, options, out, Path(temporary), notice, running)
        try:
            return readers[fmt](job)
        except OSError as error:
            raise EngineError(
                f"reading {job.shown} failed: {error.strerror or error}",
                hint="free some disk space, or set BYZER_FT_HOME to a larger disk" if error.errno == 28 else None,
            ) from None
        finally:
            job.close()


@dataclass
class _Job:
    """One load: what it reads, where it writes and the connection that does it."""

    inputs: Sequence[InputFile]
    options: LoadOptions
    out: Path
    work: Path
    notice: Notice
    running: list[Any]
    _connection: duckdb.DuckDBPyConnection | None = None
    plain: dict[str, InputFile] = field(default_factory=dict)  # readable path -> the file the user meant

    @property
    def shown(self) -> str:
        first = self.inputs[0].path
        return first if len(self.inputs) == 1 else f"{first} and {len(self.inputs) - 1} more"

    @property
    def db(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            import duckdb

            self._connection = duckdb.connect(
                config={
                    "threads": 2,
                    "temp_directory": str(self.work / "spill"),
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                }
            )
            self.running.append(self._connection)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self.running.remove(self._connection)
            self._connection.close()

    def open_text(self) -> list[str]:
        """All inputs as plain UTF-8 files."""
        for source in self.inputs:
            readable = plain_utf8(source.path, self.options.encoding, self.work, self.notice)
            self.plain[readable] = source
        return list(self.plain)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.db.execute(sql).fetchall()

    def write(self, select: str) -> list[Path]:
        """Runs `select` into one Parquet file, joined with the folders' `key=value` columns."""
        target = self.out / "part-00000.parquet"
        self.db.execute(f"copy ({select}) to {_text_literal(str(target))} (format parquet, compression zstd)")
        return [target]

    def partition_columns(self) -> tuple[str, str]:
        """(`, "k"…` for the select list, `join …`) that add partition columns by file; empty without partitions."""
        keys = list(dict.fromkeys(k for source in self.plain.values() for k, _ in source.partitions))
        if not keys:
            return "", ""
        table = []
        for readable, source in self.plain.items():
            values = dict(source.partitions)
            table.append((readable, *(values.get(k) for k in keys)))
        casts = []
        for i, key in enumerate(keys, 1):
            whole = all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", row[i] or "0") for row in table)
            casts.append(f"m.k{i}{'::bigint' if whole else ''} as {_name(key)}")
        rows = ", ".join("(" + ", ".join("null" if v is None else _text_literal(v) for v in row) + ")" for row in table)
        columns = ", ".join(f"k{i}" for i in range(1, len(keys) + 1))
        return ", " + ", ".join(casts), f"join (values {rows}) m(file, {columns}) on r.{_name(FILE)} = m.file"


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list_literal(items: Iterable[str]) -> str:
    return "[" + ", ".join(_text_literal(i) for i in items) + "]"


# ---------------------------------------------------------------------------------------------------------- json


@dataclass(frozen=True)
class _Survey:
    """What one pass over all JSON values found."""

    rows: int
    malformed: int
    not_objects: int
    big_integers: bool
    shape: Shape


def _json(job: _Job) -> list[Path]:
    """Pass one: every value's shape. Pass two: read with exactly those columns."""
    styles = {path: _json_style(path) for path in job.open_text()}
    survey = _survey(job, styles)
    if survey.malformed or survey.not_objects:
        _report_malformed(job, styles, survey)
    if not isinstance(survey.shape, dict) or not survey.shape:
        empty = survey.rows - survey.malformed == 0
        raise DataError(
            f"{job.shown} is empty: there are no rows and so no columns" if empty else f"{job.shown}: no row has a key",
            hint="a JSON file holds one object a line, or one array of objects",
        )
    types = _column_types(job, styles, survey)
    names = _distinct_names(list(types), job.notice)
    exact = names == list(types) and len(set(styles.values())) == 1 and not (survey.malformed or survey.not_objects)
    if exact:
        columns = "{" + ", ".join(f"{_text_literal(k)}: {_text_literal(_sql_type(t))}" for k, t in types.items()) + "}"
        try:
            return _read_json(job, styles, columns, names)
        except Exception as error:
            if "duplicate key" not in str(error):
                raise _json_failure(job, styles, error) from None
            job.notice(f"{job.shown}: some objects repeat a key; the first value is kept")
    return _extract_json(job, styles, types, names)


def _json_style(path: str) -> str:
    """How a file's objects follow each other: lines, one array, or spread over lines."""
    with Path(path).open("rb") as stream:
        first = b""
        for line in stream:
            first = line.strip()
            if first:
                break
    if first.startswith(b"["):
        return "array"
    try:
        json.loads(first or b"{}")
    except (ValueError, RecursionError):
        return "unstructured" if first.startswith(b"{") and not _is_lines(path) else "newline_delimited"
    return "newline_delimited"


def _is_lines(path: str) -> bool:
    """Whether most of the first lines are whole objects, so that a bad first line is one bad line."""
    with Path(path).open("rb") as stream:
        lines = [line for line in itertools.islice((raw.strip() for raw in stream), 20) if line]
    whole = sum(line.startswith(b"{") and line.endswith(b"}") for line in lines)
    return whole * 2 > len(lines)


def _values(styles: dict[str, str], limit: int, ignore: bool) -> str:
    """A relation of (json, file) over all inputs."""
    groups = [(style, [p for p, _ in group]) for style, group in itertools.groupby(styles.items(), key=lambda i: i[1])]
    return " union all ".join(
        f"select json, filename as {_name(FILE)} from read_json_objects({_list_literal(paths)}, format='{style}', "
        f"maximum_object_size={limit}, filename=true, hive_partitioning=false"
        f"{', ignore_errors=true' if ignore and style == 'newline_delimited' else ''})"
        for style, paths in groups
    )


def _survey(job: _Job, styles: dict[str, str]) -> _Survey:
    """One streaming pass: the distinct structures of all values, in the order of first sight."""
    ignore = job.options.mode in ("dropmalformed", "permissive")
    for limit in OBJECT_LIMITS:
        sql = (
            "select s, count(*), bool_or(big), min(n) from (select json_structure(json)::varchar as s, "
            f"regexp_matches(json::varchar, '{BIG_INTEGER}') as big, row_number() over () as n "
            f"from ({_values(styles, limit, ignore)})) group by s order by min(n)"
        )
        try:
            found = job.rows(sql)
        except Exception as error:
            if "maximum_object_size" in str(error) and limit != OBJECT_LIMITS[-1]:
                continue
            raise _json_failure(job, styles, error) from None
        return _summary(found)
    raise AssertionError("unreachable")


def _summary(found: list[tuple[Any, ...]]) -> _Survey:
    rows = malformed = others = 0
    big = False
    merged: Shape = {}
    for text, count, has_big, _ in found:
        rows += count
        shape = None if text is None else _shape(json.loads(text))
        if shape is None:
            malformed += count
        elif not isinstance(shape, dict):
            others += count
        else:
            big = big or bool(has_big)
            merged = _merge(merged, shape)
    return _Survey(rows, malformed, others, big, merged)


def _shape(structure: Any, in_list: bool = False) -> Shape:
    """DuckDB's structure of one value; it calls `{}` JSON, and a list of several types a list of JSON."""
    if isinstance(structure, dict):
        return {key: _shape(inner) for key, inner in structure.items()}
    if isinstance(structure, list):
        return [_shape(structure[0], in_list=True) if structure else "NULL"]
    return {} if structure == "JSON" and not in_list else str(structure)


def _merge(one: Shape, other: Shape) -> Any:
    """The shape that holds values of both."""
    if one == other or other == "NULL":
        return one
    if one == "NULL":
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {k: _merge(one.get(k, "NULL"), other.get(k, "NULL")) for k in dict.fromkeys([*one, *other])}
    if isinstance(one, list) and isinstance(other, list):
        return [_merge(one[0], other[0])]
    if isinstance(one, str) and isinstance(other, str) and {one, other} <= NUMBERS:
        return "DOUBLE" if "DOUBLE" in (one, other) else "BIGINT"
    return "JSON"


def _report_malformed(job: _Job, styles: dict[str, str], survey: _Survey) -> None:
    if job.options.mode in ("dropmalformed", "permissive"):
        job.notice(f"{job.shown}: {survey.malformed + survey.not_objects} malformed rows were dropped")
        return
    raise _json_failure(job, styles, None)


def _json_failure(job: _Job, styles: dict[str, str], error: Exception | None) -> DataError:
    """The first malformed line of all files, found by reading them again one by one."""
    hint = 'mend the file, or add where mode="dropmalformed" to go on without such rows'
    for path, style in styles.items():
        shown = job.plain[path].path
        if style != "newline_delimited":
            found = _broken_document(path, style)
            if found:
                return DataError(f"{shown}, line {found[0]}: malformed JSON: {found[1]}", hint="mend the file")
            continue
        with Path(path).open("rb") as stream:
            for number, line in enumerate(stream, 1):
                problem = _broken_line(line)
                if problem:
                    return DataError(f"{shown}, line {number}: malformed JSON: {problem}", hint=hint)
    return DataError(f"{job.shown}: {str(error).splitlines()[0] if error else 'malformed JSON'}", hint=hint)


def _broken_line(line: bytes) -> str | None:
    if not line.strip():
        return None
    try:
        value = json.loads(line, parse_int=str)
    except RecursionError:
        return "nested too deep"
    except ValueError as error:
        return f"{getattr(error, 'msg', error)} (column {getattr(error, 'colno', 1)})"
    return None if isinstance(value, dict) else f"a row must be an object {{…}}, not {_kind(value)}"


def _broken_document(path: str, style: str) -> tuple[int, str] | None:
    text = Path(path).read_text("utf-8")
    decoder = json.JSONDecoder(parse_int=str)
    position = 0
    while True:
        position = len(text) - len(text[position:].lstrip())
        if position >= len(text):
            return None
        try:
            value, end = decoder.raw_decode(text, position)
        except RecursionError:
            return 1, "nested too deep"
        except ValueError as error:
            at = getattr(error, "pos", position)
            return text.count("\n", 0, at) + 1, str(getattr(error, "msg", error))
        items = value if style == "array" and isinstance(value, list) else [value]
        wrong = next((i for i in items if not isinstance(i, dict)), None) if items else None
        if any(not isinstance(i, dict) for i in items):
            return text.count("\n", 0, position) + 1, f"a row must be an object {{…}}, not {_kind(wrong)}"
        position = end


def _kind(value: object) -> str:
    names = {str: "a string or number", list: "an array", bool: "a boolean", float: "a number", type(None): "null"}
    return names.get(type(value), "an object")


def _column_types(job: _Job, styles: dict[str, str], survey: _Survey) -> dict[str, Shape]:
    """Every key's final type, in the order of first sight; what is decided for the user is announced."""
    assert isinstance(survey.shape, dict)
    decided: dict[tuple[str, ...], str] = {}
    if survey.big_integers:
        decided = _big_integers(styles, survey.shape, job.notice)
    return {key: _settle(shape, (key,), decided, job.notice) for key, shape in survey.shape.items()}


def _settle(shape: Shape, path: tuple[str, ...], decided: dict[tuple[str, ...], str], notice: Notice) -> Shape:
    shown = ".".join(path)
    if isinstance(shape, list):
        return [_settle(shape[0] if shape else "NULL", (*path, "[]"), decided, notice)]
    if isinstance(shape, dict):
        if not shape:
            return "VARCHAR"
        if len({k.lower() for k in shape}) < len(shape) or "" in shape:
            notice(f"column `{shown}`: keys that differ only in case (or an empty key): read as JSON text")
            return "VARCHAR"
        return {k: _settle(s, (*path, k), decided, notice) for k, s in shape.items()}
    if path in decided:
        return decided[path]
    if shape == "JSON":
        notice(f"column `{shown}`: no one type fits all rows: read as string")
        return "VARCHAR"
    # DuckDB sees no dates in a structure, so that text that looks like one stays text, as in Spark
    return {"UBIGINT": "BIGINT", "HUGEINT": "DOUBLE", "NULL": "VARCHAR"}.get(shape, shape)


def _big_integers(styles: dict[str, str], shape: Shape, notice: Notice) -> dict[tuple[str, ...], str]:
    """Types of the numbers that need more than 64 bits: digits are never lost silently. Rare, so it may be slow."""
    kinds: dict[tuple[str, ...], set[str]] = {}

    def visit(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, (*path, key))
        elif isinstance(value, list):
            for inner in value:
                visit(inner, (*path, "[]"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            kinds.setdefault(path, set()).add(_number_kind(value))

    for value in _parsed(styles):
        visit(value, ())
    decided: dict[tuple[str, ...], str] = {}
    for path, seen in kinds.items():
        leaf = _leaf(shape, path)
        if leaf not in ("UBIGINT", "HUGEINT", "DOUBLE", "BIGINT") or not seen & {"big", "huge"}:
            continue
        decided[path] = "VARCHAR" if seen & {"float", "huge"} else "DECIMAL(38,0)"
        kept = "string" if decided[path] == "VARCHAR" else "decimal(38,0)"
        notice(f"column `{'.'.join(path)}`: integers over 64 bits: read as {kept}, so that no digit is lost")
    return decided


def _number_kind(value: int | float) -> str:
    if isinstance(value, float):
        return "float"
    if -(2**63) <= value < 2**63:
        return "int"
    return "big" if abs(value) < 10**38 else "huge"


def _leaf(shape: Shape, path: tuple[str, ...]) -> Shape | None:
    for part in path:
        if part == "[]" and isinstance(shape, list):
            shape = shape[0]
        elif isinstance(shape, dict) and part in shape:
            shape = shape[part]
        else:
            return None
    return shape


def _parsed(styles: dict[str, str]) -> Iterator[Any]:
    for path, style in styles.items():
        if style == "newline_delimited":
            with Path(path).open("rb") as stream:
                for line in stream:
                    try:
                        yield json.loads(line, parse_int=_integer, object_pairs_hook=_first)
                    except ValueError:
                        continue
        else:
            text, position = Path(path).read_text("utf-8"), 0
            decoder = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_first)
            while text[position:].strip():
                position = len(text) - len(text[position:].lstrip())
                value, position = decoder.raw_decode(text, position)
                yield from value if isinstance(value, list) else [value]


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a repeated key the first value, as everywhere here."""
    return dict(reversed(pairs))


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < 60 else 10**60  # Python refuses to convert very long ones


def _sql_type(shape: Shape) -> str:
    if isinstance(shape, list):
        return _sql_type(shape[0]) + "[]"
    if isinstance(shape, dict):
        return "STRUCT(" + ", ".join(f"{_name(k)} {_sql_type(s)}" for k, s in shape.items()) + ")"
    return shape


def _distinct_names(keys: list[str], notice: Notice) -> list[str]:
    """Column names that differ in more than case; Spark SQL could not tell such columns apart."""
    taken: set[str] = set()
    names = []
    for key in keys:
        base = key or "_empty"
        name = next(n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1))) if _free(n, taken))
        taken.add(name.lower())
        if name != key:
            notice(f"column `{key}` is named `{name}`: SQL does not tell names apart that differ in case or are empty")
        names.append(name)
    return names


def _free(name: str, taken: set[str]) -> bool:
    return name.lower() not in taken


def _read_json(job: _Job, styles: dict[str, str], columns: str, names: list[str]) -> list[Path]:
    style = next(iter(styles.values()))
    extra, join = job.partition_columns()
    own = _without_partitions(job, names)
    for limit in OBJECT_LIMITS:
        source = (
            f"read_json({_list_literal(styles)}, format='{style}', columns={columns}, maximum_object_size={limit}, "
            f"filename={_text_literal(FILE)}, hive_partitioning=false)"
        )
        try:
            return job.write(f"select {', '.join('r.' + _name(n) for n in own)}{extra} from {source} r {join}")
        except Exception as error:
            if "maximum_object_size" not in str(error) or limit == OBJECT_LIMITS[-1]:
                raise
    raise AssertionError("unreachable")


def _without_partitions(job: _Job, names: list[str]) -> list[str]:
    """A folder's `key=value` wins over a column of that name in its files, as in Spark."""
    keys = {k.lower() for source in job.plain.values() for k, _ in source.partitions}
    return [n for n in names if n.lower() not in keys]


def _extract_json(job: _Job, styles: dict[str, str], types: dict[str, Shape], names: list[str]) -> list[Path]:
    """Column by column: for rows among malformed ones, repeated keys, and keys that differ only in case."""
    own = set(_without_partitions(job, names))
    fields = []
    for (key, shape), name in zip(types.items(), names, strict=True):
        if name not in own:
            continue
        pointer = _text_literal("/" + key.replace("~", "~0").replace("/", "~1"))
        if shape == "VARCHAR":
            value = f"json_extract_string(r.json, {pointer})"
        else:
            value = f"json_transform(json_extract(r.json, {pointer}), {_text_literal(_json_type(shape))})"
        fields.append(f"{value} as {_name(name)}")
    extra, join = job.partition_columns()
    ignore = job.options.mode in ("dropmalformed", "permissive")
    where = "where r.json is not null and json_type(r.json) = 'OBJECT'"
    for limit in OBJECT_LIMITS:
        try:
            source = _values(styles, limit, ignore)
            return job.write(f"select {', '.join(fields)}{extra} from ({source}) r {join} {where}")
        except Exception as error:
            if "maximum_object_size" not in str(error) or limit == OBJECT_LIMITS[-1]:
                raise _json_failure(job, styles, error) from None
    raise AssertionError("unreachable")


def _json_type(shape: Shape) -> str:
    return json.dumps(shape, ensure_ascii=False)


# ----------------------------------------------------------------------------------------------------------- csv


def _csv(job: _Job) -> list[Path]:
    """Read as text with the header's columns, then give each column the narrowest type that fits all its rows."""
    sep, quote, escape = _csv_dialect(job.options)
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in job.open_text():
        groups.setdefault(_csv_header(job, path, sep, quote, escape), []).append(path)
    columns = [name for header in groups for name in header]
    if not columns:
        raise DataError(f"{job.shown} is empty: there is no header line and so no columns")
    names = list(dict.fromkeys(columns))
    _csv_read(job, groups, sep, quote, escape)
    types = _csv_types(job, names) if job.options.infer_schema else dict.fromkeys(names, "VARCHAR")
    extra, join = job.partition_columns()
    own = _without_partitions(job, names)
    fields = ", ".join(f"cast(r.{_name(n)} as {types[n]}) as {_name(n)}" for n in own)
    return job.write(f"select {fields}{extra} from raw r {join}")


def _csv_read(job: _Job, groups: dict[tuple[str, ...], list[str]], sep: str, quote: str, escape: str) -> None:
    """Reads with the escape that was given; without one with doubled quotes, then with Spark's backslash."""
    try:
        _csv_rows(job, groups, sep, quote, escape)
    except Exception as error:
        failure = _csv_failure(job, error)
        if job.options.escape is not None or not quote:
            raise failure from None
        try:
            _csv_rows(job, groups, sep, quote, "\\")
        except Exception:  # the second attempt is a guess: what the person hears of is the first
            raise failure from None
        job.notice(f'{job.shown}: quotes inside values are escaped with \\: read with escape="\\"')


def _csv_dialect(options: LoadOptions) -> tuple[str, str, str]:
    sep = {"\\t": "\t", "tab": "\t"}.get(options.sep or ",", options.sep or ",")
    quote = '"' if options.quote is None else options.quote
    escape = quote if options.escape is None else {"\\\\": "\\"}.get(options.escape, options.escape)
    if len(sep.encode()) > 4 or "\n" in sep:
        raise OptionError(f"sep={sep!r} is too long", hint='one to four characters, "\\t" for a tab')
    for name, value in (("quote", quote), ("escape", escape)):
        if len(value) > 1:
            raise OptionError(f"{name}={value!r} must be one character, or empty for none")
    return sep, quote, escape


def _csv_header(job: _Job, path: str, sep: str, quote: str, escape: str) -> tuple[str, ...]:
    """The column names of one file: its first record, or `_c0`, `_c1`, … as Spark names them."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        filled = (line for line in stream if line.strip("\r\n"))
        if len(sep) == 1:
            quoting: Any = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
            reader = csv.reader(filled, delimiter=sep, quotechar=quote or None, quoting=quoting)
            try:
                record = next(reader, [])
            except csv.Error as error:
                raise DataError(f"{job.plain[path].path}, line 1: the header cannot be read: {error}") from None
        else:
            record = next(filled, "").rstrip("\r\n").split(sep)
    if not job.options.header:
        return tuple(f"_c{i}" for i in range(len(record)))
    filled_names = [name.strip() or f"_c{i}" for i, name in enumerate(record)]
    return tuple(_distinct_names(filled_names, job.notice))


def _csv_rows(job: _Job, groups: dict[tuple[str, ...], list[str]], sep: str, quote: str, escape: str) -> None:
    """All records as text, in a table on disk or in memory; malformed ones counted or refused."""
    tolerant = job.options.mode in ("dropmalformed", "permissive")
    job.db.execute("drop table if exists raw")
    job.db.execute("drop table if exists reject_errors")
    job.db.execute("drop table if exists reject_scans")
    selects = []
    for header, paths in groups.items():
        if not header:
            continue
        columns = "{" + ", ".join(f"{_text_literal(n)}: 'VARCHAR'" for n in header) + "}"
        selects.append(
            f"select * from read_csv({_list_literal(paths)}, auto_detect=false, columns={columns}, "
            f"header={str(job.options.header).lower()}, sep={_text_literal(sep)}, quote={_text_literal(quote)}, "
            f"escape={_text_literal(escape)}, nullstr='', comment='', strict_mode=true, max_line_size={64 * MEBI}, "
            f"filename={_text_literal(FILE)}, hive_partitioning=false"
            f"{', store_rejects=true' if tolerant else ''})"
        )
    job.db.execute(f"create temp table raw as {' union all by name '.join(selects)}")
    if tolerant:
        dropped = job.rows("select count(distinct (scan_id, file_id, line)) from reject_errors")[0][0]
        if dropped:
            job.notice(f"{job.shown}: {dropped} malformed rows were dropped")


def _csv_failure(job: _Job, error: Exception) -> DataError:
    text = str(error)
    line = re.search(r"on Line: (\d+)", text)
    file = next((source.path for path, source in job.plain.items() if path in text), job.shown)
    reason = re.search(r"(Expected Number of Columns: \d+ Found: \d+|[Vv]alue with[^\n]*)", text)
    where = f"{file}, line {line[1]}" if line else file
    return DataError(
        f"{where}: malformed CSV: {reason[1] if reason else text.splitlines()[0]}",
        hint='check sep, quote, escape and header, or add where mode="dropmalformed" to go on without such rows',
    )


def _csv_types(job: _Job, names: list[str]) -> dict[str, str]:
    """boolean, bigint, double or string, by all rows. Leading zeros and dates stay text; no digit is lost."""
    number = "[+-]?(0|[1-9][0-9]{0,14})?([.][0-9]*)?([eE][+-]?[0-9]+)?"
    tests = []
    for name in names:
        column = f"trim({_name(name)})"
        tests += [
            f"count({_name(name)})",
            f"count(*) filter (lower({column}) in ('true', 'false'))",
            f"count(*) filter (regexp_full_match({column}, '[+-]?(0|[1-9][0-9]*)') and "
            f"try_cast({column} as bigint) is not null)",
            f"count(*) filter (regexp_full_match({column}, '{number}') and try_cast({column} as double) is not null)",
        ]
    found = iter(job.rows(f"select {', '.join(tests)} from raw")[0])
    types = {}
    for name in names:
        filled, booleans, integers, numbers = itertools.islice(found, 4)
        fits = [t for t, n in (("BOOLEAN", booleans), ("BIGINT", integers), ("DOUBLE", numbers)) if n == filled]
        types[name] = fits[0] if filled and fits else "VARCHAR"
    return types


# ---------------------------------------------------------------------------------------------------------- text


def _text(job: _Job) -> list[Path]:
    """Columns (file, value): a row a line, or a row a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("file", pa.string()), ("value", pa.string())])
    target = job.out / "part-00000.parquet"
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for path in job.open_text():
            shown = job.plain[path].path
            for values in _text_batches(path, job.options.wholetext):
                files = pa.array([shown] * len(values), pa.string())
                writer.write_batch(pa.record_batch([files, pa.array(values, pa.string())], schema=schema))
    return [target]


def _text_batches(path: str, whole: bool) -> Iterator[list[str]]:
    with Path(path).open(encoding="utf-8", newline="" if whole else None) as stream:
        if whole:
            yield [stream.read()]
            return
        while lines := stream.readlines(TEXT_BATCH):
            yield [line[:-1] if line.endswith("\n") else line for line in lines]


# ------------------------------------------------------------------------------------------------------- parquet


def _parquet(job: _Job) -> list[Path]:
    """Files of one schema are read in place, through links; differing schemas or `key=value` folders are copied."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = []
    for source in job.inputs:
        try:
            schemas.append(pq.read_schema(source.path).remove_metadata())
        except pa.ArrowInvalid as error:
            raise DataError(f"{source.path} is not a Parquet file: {error}") from None
    if not any(source.partitions for source in job.inputs) and all(s.equals(schemas[0]) for s in schemas):
        links = [job.out / f"part-{i:05d}.parquet" for i in range(len(job.inputs))]
        for link, source in zip(links, job.inputs, strict=True):
            link.symlink_to(source.path)
        return links
    if not all(s.equals(schemas[0]) for s in schemas):
        job.notice(f"{job.shown}: the files' columns differ: they are joined by name, missing values are NULL")
    return _parquet_copy(job)


def _parquet_copy(job: _Job) -> list[Path]:
    for i, source in enumerate(job.inputs):
        link = job.work / f"in-{i}.parquet"
        link.symlink_to(source.path)
        job.plain[str(link)] = source
    extra, join = job.partition_columns()
    source_sql = (
        f"read_parquet({_list_literal(job.plain)}, union_by_name=true, hive_partitioning=false, "
        f"filename={_text_literal(FILE)})"
    )
    try:
        names = [row[0] for row in job.rows(f"describe select * from {source_sql}") if row[0] != FILE]
        own = _without_partitions(job, names)
        return job.write(f"select {', '.join('r.' + _name(n) for n in own)}{extra} from {source_sql} r {join}")
    except Exception as error:
        raise DataError(
            f"{job.shown}: the Parquet files do not fit together: {str(error).splitlines()[0]}",
            hint="load them one by one and bring them together with select … union all",
        ) from None
