"""Every option, parameter, name and reason that the program knows stands in the documentation, as the program knows it.

A table below a line `<!-- options: NAME -->` must be exactly what the pydantic model of that name says; when it is not,
the failure shows the table that is right. Lists of names are searched on their page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from byzer_ft.catalog import JobState
from byzer_ft.chat import FAMILY_TEMPLATES, NAMED, REASONS
from byzer_ft.engine.built_ins import BUILT_INS
from byzer_ft.engine.references import FORBIDDEN_FUNCTIONS, NON_DETERMINISTIC, TABLE_FUNCTIONS
from byzer_ft.intents import LoadOptions, SaveOptions, SetOptions, TrainingOptions
from byzer_ft.modeldir import FAMILIES
from byzer_ft.serving.protocol import DEFAULT_MAX_NEW_TOKENS, PARAMETERS, Generation
from byzer_ft.sql.llm import ETS_NOT_YET
from byzer_ft.sql.macros import COMMANDS, SHOWN, SHOWN_NOT_YET
from byzer_ft.sql.macros import NOT_YET as COMMANDS_NOT_YET
from byzer_ft.sql.options import (
    FinetuneOptions,
    GenerationOptions,
    InferOptions,
    LlmOptions,
    SetupOptions,
    expected,
    spellings,
    type_word,
)
from byzer_ft.sql.parser import STATEMENTS
from byzer_ft.sql.plan import LOAD_NOT_YET, SAVE_NOT_YET
from byzer_ft.sql.setup import MODES
from byzer_ft.sql.validate import LOAD_FORMATS, SAVE_FORMATS

DOCS = Path(__file__).parents[2] / "docs"


# ------------------------------------------------------------------------------------------------------------- tables


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _names(model: type[BaseModel], field: str) -> str:
    return " ".join(f"`{written}`" for written, name in spellings(model).items() if name == field)


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is None:
        return "–"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _options(model: type[BaseModel], without: type[BaseModel] | None = None) -> Iterator[str]:
    yield _row("option", "default", "value", "meaning")
    yield _row("---", "---", "---", "---")
    for name, info in model.model_fields.items():
        if without is None or name not in without.model_fields:
            yield _row(_names(model, name), _default(info), expected(info), info.description or "")


def _hyper_parameters() -> Iterator[str]:
    yield _row("key", "default", "value", "meaning")
    yield _row("---", "---", "---", "---")
    for name, info in TrainingOptions.model_fields.items():
        yield _row(f"`sft.{type_word(info)}.{name}`", _default(info), expected(info), info.description or "")


def _generation() -> Iterator[str]:
    """The spellings of a deployment, with the value that holds where neither it nor the request says one."""
    yield _row("parameter", "unless given", "value", "meaning")
    yield _row("---", "---", "---", "---")
    for name, info in GenerationOptions.model_fields.items():
        holds = Generation.model_fields.get(name)
        default = f"`{DEFAULT_MAX_NEW_TOKENS}`" if name == "max_new_tokens" else "–"
        if holds is not None and holds.default not in (None, ()):
            default = _default(holds)
        yield _row(_names(GenerationOptions, name), default, expected(info), info.description or "")


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "LoadOptions": ("sql.md", lambda: _options(LoadOptions)),
    "SaveOptions": ("sql.md", lambda: _options(SaveOptions)),
    "SetOptions": ("sql.md", lambda: _options(SetOptions)),
    "LlmOptions": ("sql.md", lambda: _options(LlmOptions)),
    "FinetuneOptions": ("sql.md", lambda: _options(FinetuneOptions, LlmOptions)),
    "InferOptions": ("sql.md", lambda: _options(InferOptions, LlmOptions)),
    "SetupOptions": ("sql.md", lambda: _options(SetupOptions)),
    "TrainingOptions": ("training.md", _hyper_parameters),
    "GenerationOptions": ("serving.md", _generation),
}


def _stands(name: str) -> str:
    page = (DOCS / TABLES[name][0]).read_text("utf-8")
    found = re.search(rf"^<!-- options: {name} -->\n\n?((?:\|.*\n)+)", page, re.M)
    return found[1] if found else ""


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_the_program_knows(name: str) -> None:
    right = "".join(line + "\n" for line in TABLES[name][1]())
    assert _stands(name) == right, f"the table that belongs below `<!-- options: {name} -->` is\n{right}"


def test_no_table_is_left_unchecked() -> None:
    marked = {
        (page.name, name)
        for page in DOCS.glob("*.md")
        for name in re.findall(r"^<!-- options: (\w+) -->", page.read_text("utf-8"), re.M)
    }
    assert marked == {(page, name) for name, (page, _) in TABLES.items()}


# -------------------------------------------------------------------------------------------------------------- names

LISTS = {
    "statements": ("sql.md", STATEMENTS),
    "formats that are loaded": ("sql.md", LOAD_FORMATS),
    "formats that are saved": ("sql.md", SAVE_FORMATS),
    "formats that are only read": ("sql.md", {*LOAD_NOT_YET, *SAVE_NOT_YET}),
    "commands": ("sql.md", [f"!{c}" for c in (*COMMANDS, *COMMANDS_NOT_YET)]),
    "what is shown": ("sql.md", SHOWN + SHOWN_NOT_YET),
    "other ETs": ("sql.md", ETS_NOT_YET),
    "setup modes": ("sql.md", MODES),
    "built-in functions": ("sql.md", BUILT_INS),
    "non-deterministic words": ("sql.md", NON_DETERMINISTIC),
    "table functions": ("sql.md", TABLE_FUNCTIONS),
    "refused functions": ("sql.md", FORBIDDEN_FUNCTIONS),
    "reasons of rows": ("training.md", [*REASONS, "cut", "truncated"]),
    "states of jobs": ("training.md", get_args(JobState)),
    "templates": ("training.md", NAMED),
    "families": ("models.md", FAMILIES),
    "parameters of requests": ("serving.md", PARAMETERS | {"stopping_sequences", "system_msg"}),
}


@pytest.mark.parametrize("what", LISTS)
def test_every_name_stands_on_its_page(what: str) -> None:
    page, names = LISTS[what]
    text = (DOCS / page).read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_template_of_every_family_is_told() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", (DOCS / "models.md").read_text("utf-8"), re.M))
    expected_templates = {name: FAMILY_TEMPLATES[name] for name in FAMILIES if name in FAMILY_TEMPLATES}
    assert told == expected_templates


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading: lower case, blanks to hyphens, other marks left out."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_anchors_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            text = (page.parent / target if target else page).read_text("utf-8")
            headings = [_anchor(h) for h in re.findall(r"^#+ (.+)$", text, re.M)]
            assert anchor in headings, f"{page.name} links to {target}#{anchor}"
