"""A parsed statement -> what is wrong with its options, or what they do not do, before any variable is known.

Only statements that are executed here are judged; keys of the others travel unseen. Knows nothing of variables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzer_ft.errors import ByzerError, OptionError, SqlError
from byzer_ft.intents import LoadOptions, SaveOptions, SetOptions, TrainingOptions
from byzer_ft.sql.llm_options import read_llm
from byzer_ft.sql.macros import plan_macro
from byzer_ft.sql.options import FinetuneOptions, InferOptions, Read, SetupOptions, read, spellings
from byzer_ft.sql.statements import Load, Macro, Option, Run, Save, Set, Statement
from byzer_ft.sql.variables import Scope

if TYPE_CHECKING:
    from pydantic import BaseModel

LOAD_FORMATS = ("json", "csv", "text", "parquet", "model", "delta")
SAVE_FORMATS = ("delta", "json", "parquet", "csv")
# Documented options of executed statements that this version only reads.
NOT_YET = {"load": ("startingVersion", "endingVersion", "implClass"), "save": ("implClass",)}


def option_errors(statement: Statement) -> list[ByzerError]:
    match statement:
        case Load() if statement.format.value.lower() in LOAD_FORMATS:
            return list(read(LoadOptions, judged(statement), "load").errors)
        case Save() if statement.format.value.lower() in SAVE_FORMATS:
            return list(read(SaveOptions, judged(statement), "save").errors)
        case Set():
            return list(read(SetOptions, statement.options, "set").errors)
        case Run() if statement.et.value.lower() == "llm":
            found = read_llm(statement.options)
            return list(found.errors) if found else []
        case Macro() if statement.name.value.lower() in ("byzerllm", "python"):
            return _setup_errors(statement)
        case _:
            return []


def _setup_errors(statement: Macro) -> list[ByzerError]:
    """Of `!byzerllm setup "key=value"`: an unknown key or a value of another type."""
    if any("${" in a.value for a in statement.args):
        return []
    try:
        plan_macro(statement, Scope())
    except OptionError as error:
        return [error]
    except SqlError:  # which command it is, is the planner's question
        pass
    return []


def judged(statement: Load | Save) -> list[Option]:
    """The options but for those that are documented and not executed yet."""
    return [o for o in statement.options if o.key.value not in NOT_YET[statement.kind]]


NO_EFFECT = "accepted for compatibility"


def notices(statement: Statement) -> list[str]:
    """What a person should hear about options that are read and do nothing here."""
    given: list[tuple[str, str | None]] = []
    match statement:
        case Load() if statement.format.value.lower() in LOAD_FORMATS:
            given = _described(LoadOptions, read(LoadOptions, judged(statement), "load"))
        case Run() if statement.et.value.lower() == "llm" and (found := read_llm(statement.options)) is not None:
            model = InferOptions if found.action == "infer" else FinetuneOptions
            given = _described(model, found.statement) + _described(SetupOptions, found.setup)
            given += _described(TrainingOptions, found.training)
        case Macro():
            words = [a.value for a in statement.args]
            key = words[1].partition("=")[0].strip() if len(words) > 1 and words[0] in ("setup", "conf") else ""
            if (name := spellings(SetupOptions).get(key)) is not None:
                given = [(key, SetupOptions.model_fields[name].description)]
    return [f"option `{key}` has no effect: {text}" for key, text in given if text and text.startswith(NO_EFFECT)]


def _described(model: type[BaseModel], found: Read) -> list[tuple[str, str | None]]:
    return [(o.key.value, model.model_fields[name].description) for name, o in found.origin.items() if o.value.value]
