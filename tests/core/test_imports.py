"""The walls: who may import whom, and what `import byzer_ft` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "byzer_ft"
BASE = {"errors", "settings", "paths", "intents", "chat", "modeldir", "render"}
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    # room: (first-party rooms it may import, third-party packages it may import)
    "errors": (set(), set()),
    "settings": ({"errors"}, {"pydantic"}),
    "paths": ({"errors"}, set()),
    "intents": ({"errors"}, {"pydantic"}),
    "chat": ({"errors", "intents"}, {"pydantic", "jinja2", "markupsafe"}),
    "modeldir": ({"errors", "intents", "paths", "settings", "chat"}, {"pydantic"}),
    "render": (set(), {"pyarrow"}),
    "sql": (BASE, {"pydantic", "annotated_types", "sqlglot"}),
    "engine": (BASE, {"pyspark", "pysail", "pyarrow", "deltalake", "sqlglot", "duckdb", "grpc", "pandas"}),
    "lake": (BASE, {"deltalake", "pyarrow", "blake3", "pydantic"}),
    "catalog": (BASE, {"sqlalchemy"}),
    "training": (
        BASE,
        {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy", "pyarrow", "pydantic"},
    ),
    "serving": (
        BASE | {"lake", "jobs"},
        {"ray", "torch", "transformers", "peft", "bitsandbytes", "pydantic", "numpy", "safetensors", "starlette"},
    ),
    "jobs": (BASE | {"lake", "catalog"}, {"ray", "pydantic"}),
    "session": (BASE | {"sql", "engine", "lake", "jobs", "serving", "catalog"}, {"pyarrow", "pandas"}),
    "cli": (BASE | {"session", "sql", "jobs", "catalog", "engine", "__init__"}, {"click"}),
    "__init__": ({"errors", "settings", "session"}, set()),
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "byzer_ft" else {node.module}
            )
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ROOMS, f"a new room needs its row in ROOMS: {room}"
    first, third = ROOMS[room]
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "byzer_ft":
            target = rest.split(".")[0] if rest else "__init__"
            if target == "__version__":
                target = "__init__"
            assert target == room or target in first, f"{room} may not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in third, f"{room} may not import {name}"


def test_every_file_opens_by_saying_what_it_does() -> None:
    silent = [p for p in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent


@pytest.mark.parametrize("module", ["byzer_ft", "byzer_ft.session", "byzer_ft.cli", "byzer_ft.sql"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "ray", "pyspark", "pysail", "pyarrow", "duckdb", "transformers", "deltalake", "pandas", "sqlglot")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
