"""A Spark Connect server (embedded Sail, or one that is given) <-> record batches, and its errors as ours.

All knowledge of pyspark and pysail stands here. Knows nothing of the user's table names, files or models.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from byzer_ft.errors import (
    ByzerError,
    Cancelled,
    EngineError,
    NotFoundError,
    NotSupportedError,
    ResourceError,
    ScriptError,
    SqlError,
)

if TYPE_CHECKING:
    import pyarrow as pa

# Read by Sail when it starts. An idle session would be dropped with its views after 900 s. One partition keeps the
# order of rows through scans and filters, which people who look at their data expect. Its parser and planner recurse:
# with the stacks of 2 MiB that it takes by default, a thousand terms end the process. Unused stack costs no memory.
SAIL = {
    "SAIL_SPARK__SESSION_TIMEOUT_SECS": str(10 * 365 * 24 * 3600),
    "SAIL_EXECUTION__DEFAULT_PARALLELISM": "1",
    "SAIL_RUNTIME__STACK_SIZE": str(256 << 20),
    "RUST_LOG": "off",
}
NOTICE_LIMIT = 300
INTERRUPT_SECONDS = 3.0
CONNECT_SECONDS = 5.0
CONNECT_PORT = 15002  # of a Spark Connect server, where its address names none


class Spark:
    """One session on one server. Starts the embedded server, and stops it at the end."""

    def __init__(self, engine: str) -> None:
        self._server: Any = None
        self._interrupted = threading.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # pyspark about pandas 3
            warnings.simplefilter("ignore", DeprecationWarning)
            _prepare_pyspark()
            given = engine.startswith("sc://")
            if given:
                _check_listening(engine)  # pyspark would try again for minutes without a word
            self._url = engine if given else self._start()
            url = self._url
            try:
                self.session: Any = self._connect(url)
            except Exception as error:
                self.stop()
                raise _no_server(url, _first_line(error)) from None

    @staticmethod
    def _connect(url: str) -> Any:
        from pyspark.sql.connect.session import SparkSession

        return SparkSession.builder.remote(url).create()

    def _start(self) -> str:
        for key, value in SAIL.items():
            os.environ.setdefault(key, value)
        from pysail.spark import SparkConnectServer

        self._server = SparkConnectServer("127.0.0.1", 0)
        self._server.start(background=True)
        host, port = self._server.listening_address
        return f"sc://{host}:{port}"

    def frame(self, sql: str) -> Any:
        """The analysed, not yet computed result of a query. Raises our errors."""
        with self._errors():
            frame = self.session.sql(sql)
            _ = frame.schema  # analyses now, so that a wrong column is an error of this statement
            return frame

    def parquet(self, paths: list[str]) -> Any:
        with self._errors():
            return self.session.read.parquet(*paths)

    def delta(self, uri: str, version: int) -> Any:
        with self._errors():
            return self.session.read.format("delta").option("versionAsOf", str(version)).load(uri)

    def create_view(self, frame: Any, name: str) -> None:
        with self._errors():
            frame.createOrReplaceTempView(name)

    def drop_view(self, name: str) -> None:
        with self._errors():
            self.session.catalog.dropTempView(name)

    def columns(self, frame: Any) -> list[tuple[str, str]]:
        with self._errors():
            return [(f.name, f.dataType.simpleString()) for f in frame.schema.fields]

    def batches(self, frame: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The rows of `frame` as they arrive, in plain Arrow types. The schema comes first, also of no rows."""
        import itertools

        stream = self._tables(frame)
        first = next(stream, None)
        if first is None:
            from pyspark.sql.pandas.types import to_arrow_schema

            with self._errors():
                return plain_schema(to_arrow_schema(frame.schema)), iter(())
        schema = plain_schema(first.schema)

        def batches() -> Iterator[pa.RecordBatch]:
            for table in itertools.chain([first], stream):
                yield from plain_table(table, schema).to_batches()

        return schema, batches()

    def _tables(self, frame: Any) -> Iterator[pa.Table]:
        import pyarrow as pa

        client = self.session.client
        with self._errors():
            for item in client.to_table_as_iterator(frame._plan.to_proto(client), frame._plan.observations):
                if isinstance(item, pa.Table):
                    yield item

    def interrupt(self) -> None:
        """Asks the server to stop what runs. One that is too busy to listen is no longer waited for."""
        self._interrupted.set()
        session = self.session
        asking = threading.Thread(target=_quietly, args=(session.interruptAll,), daemon=True)
        asking.start()
        asking.join(INTERRUPT_SECONDS)
        if asking.is_alive():
            mark = "&" if "/;" in self._url else "/;"
            self.session = self._connect(f"{self._url}{mark}session_id={session.session_id}".replace("&", ";"))
            session.client._channel.close()

    def stop(self) -> None:
        session = getattr(self, "session", None)
        if session is not None:
            with contextlib.suppress(Exception):  # a server that has gone holds nothing that must be released
                session.client.close()
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _errors(self) -> _Errors:
        return _Errors(self._interrupted)


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        call()


def _check_listening(url: str) -> None:
    address = urlsplit(url)
    try:
        host, port = address.hostname, address.port or CONNECT_PORT
        if not host:
            raise ValueError("the address names no host")
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except TimeoutError:
        raise _no_server(url, f"no connection within {CONNECT_SECONDS:g} seconds") from None
    except (OSError, ValueError) as error:
        raise _no_server(url, getattr(error, "strerror", None) or str(error)) from None


def _no_server(url: str, reason: str) -> ResourceError:
    shown = re.sub(r"//[^/]*@", "//", url.partition("/;")[0])  # the rest may hold a password or a token
    return ResourceError(
        f"no Spark Connect server answers at {shown}: {reason}",
        hint="start it, correct BYZER_FT_ENGINE (sc://host:port), or unset it for the embedded engine",
    )


def _prepare_pyspark() -> None:
    """What pyspark and its gRPC read when they are imported."""
    # gRPC's fork handlers abort one child in seven while a channel is open: Ray's processes, forked, would never start.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # pyspark ends the process when it finds no Spark beside the program, even where it needs none.
    found = importlib.util.find_spec("pyspark")
    if found is not None and found.submodule_search_locations:
        os.environ.setdefault("SPARK_HOME", list(found.submodule_search_locations)[0])


class _Errors:
    """Turns what pyspark raises into our errors; an interrupted call into Cancelled."""

    def __init__(self, interrupted: threading.Event) -> None:
        self._interrupted = interrupted

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ByzerError) or not isinstance(error, Exception):
            return
        if isinstance(error, (StopIteration, OSError)):
            return
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise Cancelled("the query was stopped") from None
        raise translated(error) from None


class UnknownColumn(SqlError):
    """A column that the engine could not find; whoever knows the tables says which there are."""

    def __init__(self, path: list[str]) -> None:
        super().__init__(f"column `{'.'.join(path)}` does not exist")
        self.path = path


def translated(error: Exception) -> ByzerError:
    """An error of pyspark or Sail as one of ours. `offset` of a SqlError: where the text went wrong."""
    kind, text = type(error).__name__, _first_line(error)
    missing = re.search(r"attribute ObjectName\(\[(.*)\]\) is missing", text)
    if missing:
        return UnknownColumn(re.findall(r'Identifier\("((?:[^"\\]|\\.)*)"\)', missing[1]))
    spark = re.search(r"UNRESOLVED_COLUMN.*?name `([^ ]+)` cannot be resolved", str(error))
    if spark:
        return UnknownColumn(spark[1].replace("`", "").split("."))
    unknown = re.search(r"unknown function: (\S+)", text)
    if unknown:
        return NotFoundError(f"function `{unknown[1]}` does not exist")
    if "Cast error: " in text or kind in (
        "ArithmeticException",
        "NumberFormatException",
        "DateTimeException",
        "ArrayIndexOutOfBoundsException",
    ):
        text = text.removeprefix("Cast error: ")
        return EngineError(text, hint="try_cast and try_divide give NULL instead")
    place = re.search(r"found (.*?) at (\d+):(\d+) expected", text)
    if place:
        problem = SqlError(f"unexpected {place[1]!r} in the query")
        problem.offset = (int(place[2]), int(place[3]))  # type: ignore[attr-defined]
        return problem
    if "found end of input expected" in text:
        return SqlError("the query ends too early")
    if kind == "UnsupportedOperationException":
        return NotSupportedError(f"the SQL engine does not support {text}")
    if kind in ("AnalysisException", "ParseException", "IllegalArgumentException"):
        return ScriptError(f"the SQL engine cannot run this: {_readable(text)}")
    if "No space left" in str(error):
        return ResourceError(f"the disk is full: {text}")
    return EngineError(f"the SQL engine failed: {text}")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:NOTICE_LIMIT]


def _readable(text: str) -> str:
    text = re.sub(r"^invalid argument: ", "", text)
    if re.search(r"No field named .*#\d+", text):
        return "a column is neither aggregated nor in group by"
    return text


# ------------------------------------------------------------------------------------------------- plain Arrow types


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Without views, dictionaries, large offsets and NOT NULL, which readers of our files need not know."""
    import pyarrow as pa

    return pa.schema([pa.field(f.name, plain_type(f.type), True) for f in schema])


def plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    t = pa.types
    if t.is_dictionary(kind):
        return plain_type(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_fixed_size_binary(kind):
        return pa.binary()
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", plain_type(kind.value_type), True))
    if t.is_struct(kind):
        return pa.struct([pa.field(f.name, plain_type(f.type), True) for f in kind])
    if t.is_map(kind):
        return pa.map_(plain_type(kind.key_type), pa.field("value", plain_type(kind.item_type), True))
    if t.is_null(kind):
        return pa.string()
    return kind


def plain_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in the types of `schema`; by position, since a query may name two columns alike."""
    import pyarrow as pa

    columns = [c if c.type == f.type else c.cast(f.type) for c, f in zip(table.columns, schema, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)
