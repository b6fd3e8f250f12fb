"""One element of a model function's argument -> a `Request`; a request's answer -> the JSON that SQL receives.

An element is one of three things:

* a JSON object with `instruction`: a request, as `llm_param` makes it. All values may be strings.
* a JSON object `{"stack": [reply, param]}`, as `llm_stack` makes it: the conversation of a previous reply goes on.
* any other text: a prompt, the single message of a user.

What each key of a request does:

| key | use |
|---|---|
| `instruction` | the user's message |
| `system_msg` | the system message; in a continuation it replaces the one in the history |
| `history` | earlier messages: `[{"role", "content"}…]` or `[[question, answer]…]`, also as a JSON string |
| `user_role` `assistant_role` `system_role` | with a chat template the template writes the roles, so these only name the roles of `history`; with `input_pattern="prompt"` they are written into the text as `{role}:` |
| `input_pattern` | `chat` (default): the template; `prompt`: the text goes to the model as it is |
| `temperature` `top_p` `top_k` `min_p` `repetition_penalty` `seed` `max_new_tokens` `max_length` `stop` | see `Generation`; also as `generation.NAME` or `gen.NAME`, where an unknown name is an error |
| `stopping_sequences` | `stop` as a comma-separated list |
| `embedding` `image` | refused: nothing that serves them is deployed |
| anything else | kept in the reply's `input`, not used |

Replies can be read by both generations of the original's functions: `predict` and `output` hold the answer.
Knows nothing of templates, tokens, Ray or SQL.
"""  # noqa: E501 (a table)

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from byzer_ft.errors import ByzerError, DataError, OptionError, did_you_mean

DEFAULT_MAX_NEW_TOKENS = 512

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}


# ------------------------------------------------------------------------------------------ generation parameters


def _stops(value: object) -> object:
    """One string, a list of strings, or a JSON list in a string."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                return (value,)
        else:
            return (value,) if value else ()
    return value


def _commas(value: object) -> object:
    """The original's comma-separated `stopping_sequences`."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return tuple(part for part in value.split(",") if part)
    return value


class Generation(BaseModel):
    """How an answer is generated. Greedy and therefore repeatable unless a temperature is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token; above it, tokens are drawn")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that hold this probability")
    top_k: int = Field(0, ge=0, description="draw from this many likeliest tokens; 0 is all")
    min_p: float = Field(0.0, ge=0, le=1, description="drop tokens less likely than this share of the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="above 1 makes seen tokens less likely")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        validation_alias=AliasChoices("max_new_tokens", "max_tokens"),
        description=f"tokens an answer may have; {DEFAULT_MAX_NEW_TOKENS} when neither this nor max_length is given",
    )
    max_length: int | None = Field(None, ge=1, le=10_000_000, description="tokens of prompt and answer together")
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_stops)] = Field(
        (), max_length=64, description="texts that end the answer; they are not part of it"
    )
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="makes drawn answers repeatable")
    input_pattern: Literal["chat", "prompt"] = Field("chat", description="the model's chat template, or raw text")

    @model_validator(mode="before")
    @classmethod
    def _sampling(cls, values: Any) -> Any:
        """`do_sample` of transformers, and a draw that was asked for without a temperature."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        draw = values.pop("do_sample", None)
        narrowed = any(values.get(k) not in (None, "") for k in ("top_p", "top_k", "min_p"))
        if draw is not None and str(draw).strip().lower() in ("false", "0"):
            values["temperature"] = 0.0
        elif "temperature" not in values and (draw is not None or narrowed):
            values["temperature"] = 1.0
        return values

    def room(self, prompt_tokens: int, context: int) -> int:
        """Tokens the answer may have, given the prompt's and the model's context. At most 0: there is no room."""
        limits = [context - prompt_tokens]
        if self.max_length is not None:
            limits.append(self.max_length - prompt_tokens)
        if self.max_new_tokens is not None:
            limits.append(self.max_new_tokens)
        elif self.max_length is None:
            limits.append(DEFAULT_MAX_NEW_TOKENS)
        return min(limits)


PARAMETERS = frozenset(Generation.model_fields) | {"max_tokens", "do_sample"}
_LENGTHS = {"max_new_tokens", "max_tokens", "max_length"}


def check_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A function's default parameters, as given; OptionError for what no request understands."""
    try:
        merged = _parameters(defaults)
        for name in defaults:
            bare = name.partition(".")[2] if name.startswith(("generation.", "gen.")) else name
            if bare not in PARAMETERS and bare not in ("stopping_sequences", "system_msg"):
                raise _unknown(name, bare)
        _generation(merged)
    except DataError as error:
        raise OptionError(error.message, hint=error.hint) from None
    return dict(defaults)


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """The generation parameters among a request's keys, prefixes taken off. A null counts as not given."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        prefix, dot, bare = key.partition(".")
        if dot and prefix in ("generation", "gen"):
            if bare not in PARAMETERS and bare != "stopping_sequences":
                raise _unknown(key, bare)
        else:
            bare = key
        if bare == "stopping_sequences":
            found["stop"] = _commas(value)
        elif bare in PARAMETERS and not (value == "" and bare != "stop"):
            found[bare] = value.strip() if isinstance(value, str) and bare != "stop" else value
    return found


def _unknown(key: str, bare: str) -> DataError:
    return DataError(
        f"unknown generation parameter `{key}`",
        hint=did_you_mean(bare, PARAMETERS) or f"parameters: {', '.join(sorted(PARAMETERS))}",
    )


def _generation(parameters: Mapping[str, Any]) -> Generation:
    try:
        return Generation.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        shown = Generation.model_fields.get(name)
        raise DataError(
            f"`{name}`={str(first.get('input'))[:60]!r}: {first['msg']}", hint=shown.description if shown else None
        ) from None


# ------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Request:
    """What is asked: messages ending with the user's, how to answer, and `raw`, the reply's `input`."""

    messages: list[Message]
    generation: Generation = field(default_factory=Generation)
    raw: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)  # the names that `user_role`, … gave

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for the way to a replica."""
        return {
            "messages": self.messages,
            "generation": self.generation.model_dump(exclude_unset=True),
            "raw": self.raw,
            "roles": self.roles,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        return cls(
            list(value["messages"]), Generation.model_validate(value["generation"]), value["raw"], value["roles"]
        )

    def raw_prompt(self) -> str:
        """The text for `input_pattern="prompt"`: the contents, each behind `{role}:` where its role was named.

        This is the original's layout; one message without named roles is the prompt itself.
        """
        lines = []
        for message in self.messages:
            name = self.roles.get(message["role"])
            gap = "\n" if message["role"] == "system" else ""
            lines.append(f"{name}:{gap}{message['content']}" if name else message["content"])
        if "assistant" in self.roles:
            lines.append(f"{self.roles['assistant']}:")
        return "\n".join(lines)


def parse_element(text: str, defaults: Mapping[str, Any] | None = None, *, plain: bool = False) -> Request:
    """The request that one element of an argument means; DataError says what is wrong with it.

    `defaults` are the function's; what the element says wins. `plain` takes any text as a prompt, JSON or not.
    """
    defaults = defaults or {}
    value = None if plain else _object(text)
    if value is not None and isinstance(value.get("stack"), list) and "instruction" not in value:
        return _continued(value["stack"], defaults)
    if value is not None and "instruction" in value:
        return _request(value, defaults, [])
    return _request({"instruction": _clean(text)}, defaults, [])


def _request(raw: dict[str, Any], defaults: Mapping[str, Any], before: list[Message]) -> Request:
    _refuse_other_tasks(raw)
    given, preset = _parameters(raw), _parameters(defaults)
    if _LENGTHS & given.keys():  # a request that limits the length is not limited by the function's defaults too
        preset = {k: v for k, v in preset.items() if k not in _LENGTHS}
    if "stop" in given and "stop" in preset:
        preset.pop("stop")
    roles = {
        role: str(raw[key])
        for role, key in (("system", "system_role"), ("user", "user_role"), ("assistant", "assistant_role"))
        if raw.get(key)
    }
    messages = before + _history(raw.get("history"), roles)
    system = raw.get("system_msg") or (
        None if any(m["role"] == "system" for m in messages) else defaults.get("system_msg")
    )
    if system:
        messages = [{"role": "system", "content": str(system)}] + [m for m in messages if m["role"] != "system"]
    messages.append({"role": "user", "content": _text(raw["instruction"], "instruction")})
    return Request(messages, _generation(preset | given), raw, roles)


def _refuse_other_tasks(raw: Mapping[str, Any]) -> None:
    if str(raw.get("embedding") or "false").strip().lower() not in ("false", "0", ""):
        raise DataError("this function generates text: `embedding` is not supported yet", hint="leave `embedding` out")
    if raw.get("image"):
        raise DataError("this function reads text: `image` is not supported yet", hint="leave `image` out")


def _continued(stack: list[Any], defaults: Mapping[str, Any]) -> Request:
    """`llm_stack(reply, param)`: the reply's conversation and its answer, then the new instruction."""
    if len(stack) != 2:
        raise DataError(f"llm_stack takes a reply and a parameter, not {len(stack)} values")
    reply, param = (_unwrapped(part) for part in stack)
    if not isinstance(reply, dict) or not ("history" in reply or "predict" in reply or "output" in reply):
        raise DataError(
            "the first argument of llm_stack is not a reply of a model function",
            hint="pass the column that the previous call returned",
        )
    if not isinstance(param, dict) or "instruction" not in param:
        raise DataError(
            "the second argument of llm_stack has no `instruction`", hint='llm_param(map("instruction", …)) makes one'
        )
    return _request(param, defaults, _conversation(reply))


def _conversation(reply: Mapping[str, Any]) -> list[Message]:
    """A reply's messages with its answer; a reply of the original has no `history`, only `input` and `predict`."""
    if reply.get("history"):
        return _history(reply["history"], {})
    asked = reply.get("input")
    instruction = asked.get("instruction") if isinstance(asked, dict) else asked
    answer = reply.get("predict", reply.get("output"))
    return [
        {"role": "user", "content": _text(instruction or "", "input")},
        {"role": "assistant", "content": _text(answer or "", "predict")},
    ]


def _history(value: Any, roles: Mapping[str, str]) -> list[Message]:
    if isinstance(value, str):
        value = value.strip()
        try:
            value = json.loads(value) if value else []
        except (ValueError, RecursionError):
            raise DataError("`history` is not JSON", hint='[{"role": "user", "content": …}, …]') from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"`history` is {type(value).__name__}, not a list", hint='[{"role": "user", "content": …}, …]')
    named = {name.lower(): role for role, name in roles.items()}
    messages: list[Message] = []
    for place, item in enumerate(value):
        messages += _turn(item, place, named)
    return messages


_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "bot": "assistant"}


def _turn(item: Any, place: int, named: Mapping[str, str]) -> list[Message]:
    where = f"`history`[{place}]"
    if isinstance(item, list) and len(item) == 2:
        texts = [_text(part, where) for part in item]
        return [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    if isinstance(item, dict) and "role" in item and "content" in item:
        word = str(item["role"]).strip().lower()
        role = _ROLES.get(word) or named.get(word)
        if role is None:
            raise DataError(
                f"{where} has the unknown role {str(item['role'])[:40]!r}", hint="system, user or assistant"
            )
        return [{"role": role, "content": _text(item["content"], where)}]
    raise DataError(f'{where} is neither {{"role", "content"}} nor [question, answer]')


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{name} is {'null' if value is None else type(value).__name__}, not a text")


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None. NaN and lone surrogates do not survive: they are no JSON or UTF-8."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text, parse_constant=str)
        return _clean(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def _unwrapped(value: Any) -> Any:
    """The object inside arrays of one and JSON strings: `["[{…}]"]`, `[{…}]`, `"{…}"` and `{…}` are the same."""
    for _ in range(8):
        if isinstance(value, str):
            try:
                value = _clean(json.loads(value, parse_constant=str))
            except (ValueError, RecursionError):
                return value
        elif isinstance(value, list) and value:
            value = value[0]
        else:
            return value
    return value


def _clean(value: Any) -> Any:
    """Lone surrogates, which neither tokenizers nor Arrow can hold, become U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    return value


# -------------------------------------------------------------------------------------------------------- replies


@dataclass(frozen=True)
class Reply:
    """The answer to one element: `text`, or `error` and no text. Nothing is ever both."""

    text: str | None
    error: str | None = None
    request: Request | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, reason: str | BaseException, request: Request | None = None) -> Reply:
        if isinstance(reason, ByzerError):
            reason = reason.message if reason.hint is None else f"{reason.message} ({reason.hint})"
        return cls(None, str(reason) or "failed without a reason", request)

    @property
    def history(self) -> list[Message]:
        """The whole conversation, the answer included."""
        asked = self.request.messages if self.request else []
        return [*asked, {"role": "assistant", "content": self.text or ""}]


def array_element(reply: Reply) -> str:
    """The element of the ARRAY<STRING> that SQL receives: an array of one object, as the original's first form."""
    item = {
        "predict": reply.text,
        "output": reply.text,
        "input": reply.request.raw if reply.request else {},
        "history": reply.history,
        "metadata": reply.metadata,
    }
    return json.dumps([item], ensure_ascii=False)


def parse_elements(
    elements: Iterable[str | None], defaults: Mapping[str, Any] | None = None, *, plain: bool = False
) -> list[Request | Reply]:
    """All elements of a call; one that cannot be read is already its (failed) reply."""
    out: list[Request | Reply] = []
    for text in elements:
        try:
            if text is None:
                raise DataError("a null in an array of requests", hint="filter it out, or use coalesce")
            out.append(parse_element(text, defaults, plain=plain))
        except DataError as error:
            out.append(Reply.failed(error))
    return out
