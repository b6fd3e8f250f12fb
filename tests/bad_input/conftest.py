"""A session that is given bad input again and again, and what must hold after each refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from byzer_ft.errors import ByzerError, ScriptErrors
from byzer_ft.session import Session
from byzer_ft.settings import load_settings

E = TypeVar("E", bound=ByzerError)
Place = tuple[int, int] | tuple[int, int, str]


@dataclass
class Desk:
    """One session, its home, a folder for files, and everything it said."""

    session: Session
    home: Path
    folder: Path
    notices: list[str] = field(default_factory=list)

    def rows(self, script: str) -> list[dict[str, Any]]:
        return self.session.sql(script).rows()

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def refused(self, script: str, kind: type[E], *words: str, at: Place | None = None) -> E:
        """Runs `script`, which must fail with `kind`, say all `words`, point `at` (line, column, text), leave nothing.

        Whatever the script was, the session goes on: its tables are those of before, and the next query works.
        """
        tables = self.session.sql("!show tables;").rows()
        with pytest.raises(ByzerError) as caught:
            self.session.sql(script, "bad.sql")
        error: ByzerError = caught.value
        if isinstance(error, ScriptErrors) and len(error.errors) == 1:
            error = error.errors[0]
        said = error.render()
        assert isinstance(error, kind), said
        for word in words:
            assert word in said, f"{word!r} is not said by:\n{said}"
        assert error.span is not None and error.span.source.name == "bad.sql", said
        if at is not None:
            found: Place = (error.span.line, error.span.column, error.span.text)[: len(at)]  # type: ignore[assignment]
            assert found == at, said
        assert self.session.sql("!show tables;").rows() == tables
        assert self.rows("select 1 as one as still_here;") == [{"one": 1}]
        assert self.rows("!show jobs;") == []
        assert not (self.home / "jobs").exists()
        assert not any("Ray" in notice for notice in self.notices), self.notices
        return error


@pytest.fixture(scope="module")
def make_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Desk]]:
    """make_desk(setting=value, …): a desk with a home of its own."""
    desks: list[Desk] = []

    def make(**settings: Any) -> Desk:
        folder = tmp_path_factory.mktemp("bad")
        settings.setdefault("home", folder / "home")
        (folder / "files").mkdir()
        notices: list[str] = []
        session = Session(load_settings({}, **settings), notice=notices.append)
        desks.append(Desk(session, Path(settings["home"]), folder / "files", notices))
        desks[-1].session.sql("select 1 as one as still_here;")
        return desks[-1]

    yield make
    for desk in desks:
        desk.session.close()


@pytest.fixture(scope="module")
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """One session for all tests of a file: each finds it as the refusals before left it."""
    return make_desk()
