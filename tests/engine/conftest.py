"""One engine a module, with what it announced, and a model that is a real implementation of the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from byzer_ft.engine import Answers, SparkEngine
from byzer_ft.errors import Source, Span
from byzer_ft.intents import LoadOptions, LoadTable, Query, SaveOptions, SaveTable
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings


class Shouting:
    """Functions over text that remember what they were asked: `up`, `shout`, `picky` fails for b, `broken` always."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Any]]] = []

    def functions(self) -> frozenset[str]:
        return frozenset({"up", "shout", "picky", "broken"})

    def ask(self, function: str, arguments: pa.Array) -> Answers:
        values = arguments.to_pylist()
        self.asked.append((function, values))
        errors = {i: "starts with b" for i, v in enumerate(values) if function == "picky" and v.startswith("b")}
        if function == "broken":
            errors = dict.fromkeys(range(len(values)), "out of order")

        def one(text: str) -> str:
            return text.upper() if function in ("up", "picky") else text + "!"

        answers = [
            None if i in errors else [one(e) for e in v] if isinstance(v, list) else one(v)
            for i, v in enumerate(values)
        ]
        return Answers(pa.array(answers, arguments.type), errors)


@dataclass
class Desk:
    """An engine with short forms for tests."""

    engine: SparkEngine
    folder: Path
    notices: list[str] = field(default_factory=list)

    def load(self, fmt: str, path: str | Path, table: str = "t", **options: Any) -> list[dict[str, Any]]:
        text = f"load {fmt}.`{path}` as {table};"
        intent = LoadTable(format=fmt, path=str(path), table=table, options=LoadOptions(**options), span=whole(text))
        self.engine.load(intent)
        return self.rows(table)

    def query(self, body: str, table: str = "out", models: Any = None) -> list[dict[str, Any]]:
        self.engine.query(Query(body=body, table=table, span=whole(f"{body} as {table};")), models)
        return self.rows(table)

    def save(self, table: str, fmt: str, path: str | Path, mode: str = "errorifexists", **options: Any) -> str:
        by = tuple(options.pop("partition_by", ()))
        return self.engine.save(
            SaveTable(
                table=table,
                format=fmt,
                path=str(path),
                mode=mode,
                partition_by=by,
                options=SaveOptions(**options),
                span=whole(f"save {mode} {table} as {fmt}.`{path}`;"),
            )
        )

    def rows(self, table: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.engine.arrow(table).to_pylist()
        return rows

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def whole(text: str) -> Span:
    return Source(text).span(0, len(text))


@pytest.fixture(scope="module")
def make_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Desk]]:
    made: list[SparkEngine] = []

    def make(roots: list[Path] | None = None, engine: str | None = None) -> Desk:
        base = tmp_path_factory.mktemp("engine")
        settings = load_settings(env={}, home=base / "home", owner="tester", engine=engine)
        notices: list[str] = []
        spark = SparkEngine(settings, PathGuard(roots), base / "scratch", notices.append)
        made.append(spark)
        (base / "files").mkdir()
        return Desk(spark, base / "files", notices)

    yield make
    for spark in made:
        spark.close()


@pytest.fixture(scope="module")
def shared_desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


@pytest.fixture
def desk(shared_desk: Desk, tmp_path: Path) -> Desk:
    """The module's engine with an empty folder and no notices yet."""
    shared_desk.notices.clear()
    shared_desk.folder = tmp_path
    return shared_desk
