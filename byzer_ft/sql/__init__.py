"""Text -> statements -> intents. Pure: no file, no engine, no network.

`parse` reads a script, `plan` says what one statement means when it is carried out, `check` plans a whole script
before anything starts.
"""

from byzer_ft.sql.parser import parse
from byzer_ft.sql.plan import check, not_supported, plan
from byzer_ft.sql.setup import SetupState
from byzer_ft.sql.statements import Option, Options, Part, Statement, parse_json
from byzer_ft.sql.validate import notices
from byzer_ft.sql.variables import Scope

__all__ = [
    "Option",
    "Options",
    "Part",
    "Scope",
    "SetupState",
    "Statement",
    "check",
    "not_supported",
    "notices",
    "parse",
    "parse_json",
    "plan",
]
