"""What a statement gives back: a table (computed when it is read), a job (its events while it runs), or a message.

Knows nothing of how results are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import NotFoundError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Event = Mapping[str, Any]


class Result:
    """The outcome of one statement. `kind` is the statement's, `message` one line for people, `table` its name if any.

    A table is computed when `arrow`, `pandas` or `rows` is first called, and kept. Iterating over a job's result
    gives its events as they happen; over any other result, nothing.
    """

    def __init__(
        self,
        kind: str,
        *,
        message: str = "",
        table: str | None = None,
        read: Callable[[], pa.Table] | None = None,
        job: str | None = None,
        events: Callable[[], Iterator[Event]] | None = None,
    ) -> None:
        self.kind = kind
        self.message = message
        self.table = table
        self.job = job
        self._read = read
        self._events = events
        self._arrow: pa.Table | None = None

    @property
    def has_table(self) -> bool:
        return self._read is not None or self._arrow is not None

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table. NotFoundError when the statement gives none (as `set`)."""
        if self._arrow is None:
            if self._read is None:
                raise NotFoundError(
                    f"this {self.kind} statement gives no table", hint="read the result of a select or a !show"
                )
            self._arrow = self._read()
        return self._arrow

    def pandas(self) -> pd.DataFrame:
        return self.arrow().to_pandas()

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of Python values."""
        rows: list[dict[str, Any]] = self.arrow().to_pylist()
        return rows

    def __iter__(self) -> Iterator[Event]:
        return self._events() if self._events is not None else iter(())

    def __repr__(self) -> str:
        return f"<Result {self.kind}: {self.message or self.table or ''}>"
