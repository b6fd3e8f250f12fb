"""The door through which a query asks models: session gives it, engine only calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Answers:
    """`values` has the type and length of the arguments, and is null where `errors` has a reason."""

    values: pa.Array
    errors: Mapping[int, str] = field(default_factory=dict)


class Models(Protocol):
    """SQL functions that are models."""

    def functions(self) -> frozenset[str]:
        """Their names, lower case."""

    def ask(self, function: str, arguments: pa.Array) -> Answers:
        """Answers to distinct, non-null arguments: STRING, or LIST<STRING>."""
