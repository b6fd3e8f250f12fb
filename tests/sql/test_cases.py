"""Every case of `cases/**/*.sql`: a script and, in comments below it, the statements, intents or errors expected.

To add a case, write it in one of those files: no Python is needed. `-- # title` begins a case; each `-- >` line is

    {…}                  one statement (parse/) or intent (plan/) in order; only the fields named here are compared
    later                (plan/) a statement that cannot be planned before an earlier one has run
    error LINE:COLUMN …  one error in order, and a part of its message
    hint …               a part of the hint of the error above
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import ByzerError, ScriptErrors, Source
from byzer_ft.intents import Setup, SetVariable
from byzer_ft.sql import Scope, SetupState, check, parse, parse_json, plan
from byzer_ft.sql.statements import Statement

ROOT = Path(__file__).parent / "cases"


@dataclass
class Case:
    title: str
    sql: str = ""
    expected: list[str] = field(default_factory=list)


def read_cases(path: Path) -> list[Case]:
    cases: list[Case] = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.startswith("-- # "):
            cases.append(Case(line[5:].strip()))
        elif line.startswith("-- > "):
            cases[-1].expected.append(line[5:].strip())
        elif cases and not cases[-1].expected:
            cases[-1].sql += line
        else:
            assert not line.strip() or not cases, f"{path}: text behind the expectations of {cases[-1].title!r}: {line}"
    return cases


def parameters(folder: str) -> list[Any]:
    found = [(p, c) for p in sorted((ROOT / folder).glob("*.sql")) for c in read_cases(p)]
    return [pytest.param(c, id=f"{p.stem}: {c.title}") for p, c in found]


@pytest.mark.parametrize("case", parameters("parse"))
def test_parse(case: Case) -> None:
    try:
        statements = parse(Source(case.sql, "case.sql"))
    except ScriptErrors as error:
        compare_errors(case, list(error.errors))
    else:
        compare(case, parse_json(statements))


@pytest.mark.parametrize("case", parameters("plan"))
def test_plan(case: Case) -> None:
    try:
        statements = parse(Source(case.sql, "case.sql"))
        errors = check(statements, Scope(owner="me"))
    except ScriptErrors as error:
        errors = list(error.errors)
    if errors:
        compare_errors(case, errors)
    else:
        compare(case, intents(statements, later=[e == "later" for e in case.expected]))


def intents(statements: list[Statement], later: list[bool]) -> list[Any]:
    """Planned one after the other, as a session does it, but for those that need an earlier one's result."""
    found: list[Any] = []
    variables: dict[str, str] = {}
    setup = SetupState()
    assert len(statements) == len(later)
    for statement, unknown in zip(statements, later, strict=True):
        if unknown:
            found.append("later")
            continue
        intent = plan(statement, Scope(variables=variables, setup=setup, owner="me"))
        assert intent.span == statement.span
        if isinstance(intent, Setup):
            setup = setup.apply(intent)
        if isinstance(intent, SetVariable) and (intent.options.type != "defaultParam" or intent.name not in variables):
            variables[intent.name] = intent.value
        found.append(intent.model_dump(mode="json"))
    return found


def compare(case: Case, found: list[Any]) -> None:
    assert not [e for e in case.expected if e.startswith("error")], f"no error was found in {case.sql}"
    expected = [e if e == "later" else json.loads(e) for e in case.expected]
    assert len(expected) == len(found), found
    for want, have in zip(expected, found, strict=True):
        assert named(have, want) == want


def named(have: Any, want: Any) -> Any:
    """`have` without the fields that `want` does not name."""
    if not isinstance(want, dict) or not isinstance(have, dict) or not want:
        return have
    return {k: named(have[k], v) for k, v in want.items() if k in have}


def compare_errors(case: Case, errors: list[ByzerError]) -> None:
    shown = "\n".join(e.render() for e in errors)
    expected = [e for e in case.expected if not e.startswith("hint ")]
    assert len(expected) == len(errors), shown
    index = -1
    for line in case.expected:
        kind, _, rest = line.partition(" ")
        if kind == "hint":
            assert rest in (errors[index].hint or ""), shown
            continue
        index += 1
        place, _, message = rest.partition(" ")
        span = errors[index].span
        assert kind == "error", f"expected {line}, found\n{shown}"
        assert span is not None, shown
        assert f"{span.line}:{span.column}" == place, shown
        assert message in errors[index].message, shown
