"""Fine-tune and serve language models from SQL.

    import byzer_ft
    with byzer_ft.connect() as session:
        session.sql("load json.`tickets.jsonl` as t; select count(*) as n from t as out;").rows()

Importing this loads neither torch, ray, pyspark, pyarrow nor duckdb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ByzerError

if TYPE_CHECKING:
    from byzer_ft.session import Result, Session

__version__ = "0.1.0"
__all__ = ["ByzerError", "Result", "Session", "connect"]


def connect(url: str | None = None, token: str | None = None, **settings: Any) -> Session:
    """A session. Keywords are settings (`home=…`, `owner=…`, …) that win over the environment.

    Raises NotSupportedError for a `url`: the service that it would talk to does not exist yet.
    """
    from byzer_ft.errors import NotSupportedError
    from byzer_ft.session import Session
    from byzer_ft.settings import load_settings

    loaded = load_settings(**settings)
    if url or token or loaded.url:
        raise NotSupportedError("connecting to a service is not supported yet", hint="leave out url and BYZER_FT_URL")
    return Session(loaded)


def __getattr__(name: str) -> Any:
    if name in ("Session", "Result"):
        from byzer_ft import session

        return getattr(session, name)
    raise AttributeError(f"module 'byzer_ft' has no attribute {name!r}")
