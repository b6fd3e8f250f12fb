"""The documented statements, as a copy of our own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def acceptance() -> str:
    return (Path(__file__).parent / "acceptance.sql").read_text("utf-8")
