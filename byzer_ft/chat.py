"""Rows -> conversations -> the exact text of a chat, with the ranges that carry the loss.

Training and serving both render here, so what a model reads when it answers is what it read when it learned: the
prompt is a prefix of the training text, and the text is tokenised without special tokens of the tokenizer's own
(`add_special_tokens=False`), since a template writes them itself. Templates come from a model directory and are
treated as hostile: they run in a sandbox with bounded loops and bounded output.
Knows nothing of tokens, models, torch or SQL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from byzer_ft.errors import DataError, ModelError, did_you_mean

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

SHAPES = {
    "alpaca": "instruction string, output string, optional: input string, history array<array<string>>, system string",
    "moss": "conversation array<struct<human string, assistant string>>, optional: system string",
}
REASONS = {
    "empty": "no text in it",
    "malformed": "a value of the wrong type",
    "system_only": "a system message without a question",
    "starts_with_assistant": "an answer before the first question",
    "two_user_turns": "two questions in a row",
    "two_assistant_turns": "two answers in a row",
    "ends_with_user": "no answer to the last question",
    "not_renderable": "the chat template rewrites it, so that the answer cannot be found in its text",
    "does_not_fit": "not one token of its answer fits into max_seq_length",
    "no_target": "its answer has no tokens to learn",
}


class RowError(DataError):
    """One row that cannot be used. `reason` is one of REASONS: stable, short, fit for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{REASONS[reason]}{': ' if detail else ''}{detail}")
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn, ending with the assistant. No text is blank."""

    messages: tuple[Message, ...]

    @property
    def system(self) -> str | None:
        return self.messages[0]["content"] if self.messages[0]["role"] == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message: even places ask, odd places answer."""
        return self.messages[1:] if self.system is not None else self.messages


# ------------------------------------------------------------------------------------------- rows -> conversations


def detect(columns: Iterable[str | tuple[str, str]]) -> Literal["alpaca", "moss"]:
    """Which of the two shapes a table has, by its columns (names, or names with types)."""
    shown = [c if isinstance(c, str) else f"{c[0]} {c[1]}" for c in columns]
    names = [c.split(" ", 1)[0] for c in shown]
    if "conversation" in names:
        return "moss"
    if "instruction" in names and "output" in names:
        return "alpaca"
    raise DataError(
        f"the rows have neither of the two shapes that can be trained on; their columns: {', '.join(shown) or 'none'}",
        hint="\n".join(
            [
                f"Alpaca: {SHAPES['alpaca']}",
                f"MOSS:   {SHAPES['moss']}",
                *_nearest_columns(names),
                "shape them with SELECT, e.g. select question as instruction, answer as output from t as sft_data;",
            ]
        ),
    )


def _nearest_columns(names: Sequence[str]) -> Iterator[str]:
    for wanted in ("conversation", "instruction", "output"):
        near = None if wanted in names else did_you_mean(wanted, names)
        if near:
            yield f"for column `{wanted}`: {near}"


def conversation(row: Mapping[str, Any]) -> Conversation:
    """An Alpaca or MOSS row as a conversation; raises RowError with the reason why it is none."""
    system = _text(row.get("system"), "system")
    pairs = _moss_pairs(row) if "conversation" in row else _alpaca_pairs(row)
    turns = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
        if text
    ]
    _check_order(turns, has_system=bool(system))
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return Conversation((*head, *turns))


def _alpaca_pairs(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    history = row.get("history")
    if history is None:
        history = []
    if not isinstance(history, (list, tuple)):
        raise RowError("malformed", f"history is {_kind(history)}, not an array of [question, answer]")
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError("malformed", "an element of history is not a pair [question, answer]")
        yield _text(pair[0], "a question of history"), _text(pair[1], "an answer of history")
    asked = [_text(row.get(name), name) for name in ("instruction", "input")]
    yield "\n".join(part for part in asked if part), _text(row.get("output"), "output")


def _moss_pairs(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    turns = row["conversation"]
    if turns is None:
        return
    if not isinstance(turns, (list, tuple)):
        raise RowError("malformed", f"conversation is {_kind(turns)}, not an array of turns")
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise RowError("malformed", f"a turn is {_kind(turn)}, not a struct of human and assistant")
        if "human" not in turn and "assistant" not in turn:
            raise RowError("malformed", f"a turn has the fields {', '.join(map(str, turn))}, not human and assistant")
        yield _text(turn.get("human"), "human"), _text(turn.get("assistant"), "assistant")


def _text(value: Any, name: str) -> str:
    """A text as it stands, "" when it is null or blank. Whole numbers are taken: schema inference makes them."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("malformed", f"{name} is {_kind(value)}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("malformed", f"{name} is not valid Unicode (half of a surrogate pair)") from None
    return value if value.strip() else ""


def _kind(value: object) -> str:
    names = {"list": "an array", "tuple": "an array", "dict": "a struct", "NoneType": "null", "str": "a string"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _check_order(turns: Sequence[Message], *, has_system: bool) -> None:
    if not turns:
        raise RowError("system_only" if has_system else "empty")
    if turns[0]["role"] == "assistant":
        raise RowError("starts_with_assistant")
    for before, after in zip(turns, turns[1:], strict=False):
        if before["role"] == after["role"]:
            raise RowError(f"two_{after['role']}_turns")
    if turns[-1]["role"] == "user":
        raise RowError("ends_with_user")


# ------------------------------------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class Specials:
    """The tokenizer's special tokens, as templates name them. `known`: every token that is never plain text."""

    bos: str = ""
    eos: str = ""
    unk: str = ""
    pad: str = ""
    known: frozenset[str] = field(default_factory=frozenset)

    @staticmethod
    def of(tokenizer: Any) -> Specials:
        """From anything with the attributes of a transformers tokenizer."""
        named = {n: getattr(tokenizer, f"{n}_token", None) or "" for n in ("bos", "eos", "unk", "pad")}
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        known = {str(t) for t in added.values() if getattr(t, "special", True)}
        known |= {str(t) for t in getattr(tokenizer, "all_special_tokens", ())}
        return Specials(**{n: str(t) for n, t in named.items()}, known=frozenset(known - {""}))

    def variables(self) -> dict[str, str]:
        """What a template sees: only the tokens that exist, so `bos_token is defined` answers as in transformers."""
        pairs = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.unk, "pad_token": self.pad}
        return {name: token for name, token in pairs.items() if token}

    def is_token(self, text: str) -> bool:
        return bool(text) and (text == self.eos or text in self.known)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, its name, and where it came from: the tokenizer, the family, or the default."""

    name: str
    text: str
    source: Literal["tokenizer", "family", "default"]


_SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)
NAMED = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ m['content'] ~ '\\n\\n' }}"
        "{% elif m['role'] == 'user' %}{{ 'User: ' ~ m['content'] ~ '\\n' }}"
        "{% else %}{{ 'Assistant: ' ~ m['content'] ~ eos_token ~ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "llama2": (
        _SYSTEM_FIRST + "{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token ~ '[INST] ' }}"
        "{% if loop.first and system %}{{ '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' }}{% endif %}"
        "{{ m['content'] ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m['content'] ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n' ~ m['content'] ~ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\\n' ~ m['content'] ~ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "chatglm": (
        _SYSTEM_FIRST + "{% if system %}{{ system ~ '\\n\\n' }}{% endif %}{% for m in turns %}"
        "{% if m['role'] == 'user' %}{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n\\n问：' ~ m['content'] ~ '\\n\\n' }}"
        "{% else %}{{ '答：' ~ m['content'] ~ eos_token ~ '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '答：' }}{% endif %}"
    ),
    "baichuan": (
        _SYSTEM_FIRST + "{{ system }}{% for m in turns %}"
        "{% if m['role'] == 'user' %}{{ '<reserved_106>' ~ m['content'] }}"
        "{% else %}{{ '<reserved_107>' ~ m['content'] ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
    ),
    "falcon": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ 'System: ' ~ m['content'] ~ '\\n' }}"
        "{% elif m['role'] == 'user' %}{{ 'User: ' ~ m['content'] ~ '\\n' }}"
        "{% else %}{{ 'Falcon: ' ~ m['content'] ~ eos_token ~ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Falcon:' }}{% endif %}"
    ),
    "internlm": (
        _SYSTEM_FIRST + "{{ bos_token }}{% if system %}{{ '<|System|>:' ~ system ~ '\\n' }}{% endif %}"
        "{% for m in turns %}{% if m['role'] == 'user' %}{{ '<|User|>:' ~ m['content'] ~ '<eoh>\\n' }}"
        "{% else %}{{ '<|Bot|>:' ~ m['content'] ~ '<eoa>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}"
    ),
    "mistral": (
        _SYSTEM_FIRST + "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.first and system %}{{ system ~ '\\n\\n' }}{% endif %}{{ m['content'] ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m['content'] ~ eos_token }}{% endif %}{% endfor %}"
    ),
    "vicuna": (
        _SYSTEM_FIRST + "{{ bos_token }}{% if system %}{{ system ~ ' ' }}{% endif %}{% for m in turns %}"
        "{% if m['role'] == 'user' %}{{ 'USER: ' ~ m['content'] ~ ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' ~ m['content'] ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
FAMILY_TEMPLATES = {
    **{name: name for name in ("llama2", "llama3", "chatglm", "baichuan", "falcon", "internlm", "mistral", "vicuna")},
    **dict.fromkeys(("chatml", "yi", "qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "chatml"),
    "llama": "llama2",
    "mixtral": "mistral",
    "chatglm2": "chatglm",
    "chatglm3": "chatglm",
    "baichuan2": "baichuan",
    "internlm2": "internlm",
}


def template_for(tokenizer_template: str | None, family: str) -> ChatTemplate:
    """The tokenizer's own template where it has one, else a named one by model family, else the plain one."""
    if tokenizer_template and tokenizer_template.strip():
        return ChatTemplate("tokenizer", tokenizer_template, "tokenizer")
    name = FAMILY_TEMPLATES.get(family.lower())
    return ChatTemplate(name, NAMED[name], "family") if name else ChatTemplate("plain", NAMED["plain"], "default")


# ------------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True)
class Rendered:
    """A text that ends with its last answer, and the half-open ranges of it that the model shall learn to write."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(conversation: Conversation, template: ChatTemplate, specials: Specials) -> Rendered:
    """The training text. Each span is an answer with its end-of-turn token; what stands before it is the prompt."""
    manner = manner_of(template, specials)
    messages = _folded(conversation.messages, manner)
    whole = _write(template, specials, messages)
    spans = tuple(
        _span(template, specials, manner, messages, i, whole)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    )
    text = whole[: spans[-1][1]]
    if manner.append_eos:
        text += specials.eos
        spans = (*spans[:-1], (spans[-1][0], len(text)))
    return Rendered(text, spans)


def prompt(messages: Sequence[Message], template: ChatTemplate, specials: Specials) -> str:
    """What a model is given to answer: a prefix of what `render` makes of these messages and their answer."""
    turns = [m for m in messages if m["role"] != "system"]
    if not turns or turns[-1]["role"] != "user":
        raise DataError("a request must end with a user message", hint="the model writes the assistant's turn")
    return _write(template, specials, _folded(messages, manner_of(template, specials)), asking=True)


@dataclass(frozen=True)
class Manner:
    """How a template behaves, found by asking it: the reasons for the choices that are announced.

    `tail` follows the last answer, `end_of_turn` is its part that belongs to the answer, `lead` stands between the
    prompt and an earlier answer, `folds_system`: the system message goes into the first question because the
    template refuses or drops it, `append_eos`: no end-of-turn token follows the last answer, so eos is added.
    """

    tail: str
    end_of_turn: str
    lead: str
    earlier_end: str
    folds_system: bool
    append_eos: bool


_Q, _A, _S = "qzQUESTIONzq", "qzANSWERzq", "qzSYSTEMzq"


@lru_cache(maxsize=64)
def manner_of(template: ChatTemplate, specials: Specials) -> Manner:
    """Probes a template with two short chats; raises ModelError where it cannot be trained with."""
    one = [{"role": "user", "content": _Q}, {"role": "assistant", "content": _A}]
    ask, answered = _write(template, specials, one[:1], asking=True), _write(template, specials, one)
    if not answered.startswith(ask) or _A not in answered[len(ask) :]:
        raise ModelError(
            f"chat template `{template.name}` cannot be trained with: the prompt it writes for a question is not the "
            "beginning of what it writes for the question with its answer",
            hint=f"the prompt: {ask[-80:]!r}\nwith answer: {answered[-120:]!r}\n"
            "mend chat_template in the model's directory, or remove it: a template of the family is used then",
        )
    tail = answered.rpartition(_A)[2]
    end = tail.rstrip()
    token = end.strip()
    if not specials.is_token(token) and not specials.eos:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, and its chat template ends an answer with no special token",
            hint="set eos_token in tokenizer_config.json: a model that never saw an end would never stop",
        )
    lead, earlier_end = _between(template, specials, end)
    return Manner(
        tail=tail,
        end_of_turn=token if specials.is_token(token) else specials.eos,
        lead=lead,
        earlier_end=earlier_end,
        folds_system=_drops_system(template, specials),
        append_eos=not specials.is_token(token),
    )


def _between(template: ChatTemplate, specials: Specials, end: str) -> tuple[str, str]:
    """What surrounds an answer that is not the last one: some templates write those differently."""
    two = [{"role": r, "content": c} for r, c in (("user", _Q), ("assistant", _A), ("user", _Q), ("assistant", _S))]
    whole = _write(template, specials, two)
    asked = _write(template, specials, two[:1], asking=True)
    if not whole.startswith(asked) or _A not in whole:
        return "", ""
    lead, _, rest = whole[len(asked) :].partition(_A)
    return lead, end if rest.startswith(end) else ""


def _drops_system(template: ChatTemplate, specials: Specials) -> bool:
    messages = [{"role": "system", "content": _S}, {"role": "user", "content": _Q}]
    try:
        return _S not in _write(template, specials, messages, asking=True)
    except ModelError:
        return True


def _folded(messages: Sequence[Message], manner: Manner) -> list[dict[str, str]]:
    copies = [{"role": m["role"], "content": m["content"]} for m in messages]
    if not manner.folds_system or copies[0]["role"] != "system" or len(copies) < 2:
        return copies
    system, first, *rest = copies
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _span(
    template: ChatTemplate, specials: Specials, manner: Manner, messages: list[dict[str, str]], i: int, whole: str
) -> tuple[int, int]:
    """Where the answer `messages[i]` stands in the whole text: from the end of its prompt to its end of turn."""
    asked = _write(template, specials, messages[:i], asking=True)
    if not whole.startswith(asked):
        raise RowError("not_renderable", "the prompt is not the beginning of the text")
    start, last = len(asked), i == len(messages) - 1
    answered = whole if last else _write(template, specials, messages[: i + 1])
    if whole.startswith(answered) and answered.endswith(manner.tail) and len(answered) - len(manner.tail) > start:
        return start, len(answered) - len(manner.tail) + len(manner.tail.rstrip())
    # An earlier answer that is written differently from a last one (Qwen3 drops its reasoning, for example).
    for content in (messages[i]["content"], messages[i]["content"].strip()):
        end = start + len(manner.lead) + len(content)
        if whole[start:end] == manner.lead + content:
            return start, end + (len(manner.earlier_end) if whole.startswith(manner.earlier_end, end) else 0)
    raise RowError("not_renderable", "the answer is not in the text")


# --------------------------------------------------------------------------------------------------- the sandbox

_MAX_STEPS = 1_000_000  # of all loops over `range` in one rendering
_MAX_NUMBER = 1_000_000  # in a call or a multiplication: 'x' * 10**10 must not be computed


def _write(
    template: ChatTemplate, specials: Specials, messages: Sequence[Mapping[str, str]], *, asking: bool = False
) -> str:
    """One rendering. Its output is bounded by a multiple of what goes in; raises ModelError with the reason."""
    import jinja2

    limit = 100_000 + 8 * sum(len(m["content"]) for m in messages)
    budget = [_MAX_STEPS]
    pieces: list[str] = []
    try:
        stream = _compiled(template.text).generate(
            messages=[dict(m) for m in messages],
            tools=None,
            documents=None,
            add_generation_prompt=asking,
            range=lambda *bounds: _bounded_range(budget, *bounds),
            **specials.variables(),
        )
        for piece in stream:
            pieces.append(piece)
            limit -= len(piece)
            if limit < 0:
                raise ModelError(f"chat template `{template.name}` writes far more text than the conversation has")
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"chat template `{template.name}` fails: {error}",
            hint="mend chat_template in the model's directory, or remove it: a template of the family is used then",
        ) from None
    except (RecursionError, MemoryError):
        raise ModelError(f"chat template `{template.name}` needs too much memory") from None
    return "".join(pieces)


def _bounded_range(budget: list[int], *bounds: int) -> range:
    values = range(*bounds)
    budget[0] -= len(values)
    if budget[0] < 0:
        raise OverflowError(f"it loops more than {_MAX_STEPS} times")
    return values


@lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    """The template in an environment like that of transformers: what it renders there, it renders here."""
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for transformers; the text inside it is simply written."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
            if operator == "%" and not numbers:
                raise SecurityError("formatting with % is not allowed")
            repeats = operator == "*" and not numbers
            if operator == "**" or (repeats and max(_size(left), 1) * max(_size(right), 1) > _MAX_NUMBER):
                raise SecurityError(f"the operator {operator} is not allowed here")
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(a, int) and abs(a) > _MAX_NUMBER for a in (*args, *kwargs.values())):
                raise SecurityError("a number that large is not allowed in a call")
            return super().call(__context, __obj, *args, **kwargs)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    for name in ("center", "indent", "format", "pprint", "random"):
        environment.filters.pop(name, None)
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    environment.globals.pop("lipsum", None)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from None


def _size(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
