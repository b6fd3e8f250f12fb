"""The options of `run … as LLM`, sorted by what they concern: statement, setup, hyper-parameters, generation.

Knows which documented options this version only reads. Knows nothing of variables or of what an option does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from byzer_ft.errors import OptionError, did_you_mean
from byzer_ft.intents import TrainingOptions
from byzer_ft.sql.options import (
    MAX_ERRORS,
    RESOURCE,
    TYPE_WORDS,
    FinetuneOptions,
    GenerationOptions,
    InferOptions,
    LlmOptions,
    Read,
    SetupOptions,
    dynamic,
    resource_amount,
    shown,
    spellings,
    type_word,
    typed,
    unknown,
)
from byzer_ft.sql.statements import Option


@dataclass
class LlmRead:
    """The options of `run … as LLM`, sorted by what they concern. `errors` are in the order of the text."""

    action: str
    statement: Read
    setup: Read
    training: Read
    generation: Read
    resources: dict[str, float] = field(default_factory=dict)
    not_yet: list[Option] = field(default_factory=list)
    errors: list[OptionError] = field(default_factory=list)


# Documented for models that this version does not run; refused by name when they are planned.
_NOT_YET = {
    "finetune": ("data_dir", "dataDir", "localDataDir"),
    "infer": ("longContextMode", "inferMode", "timeout_s", "inference_mode"),
}
_NOT_YET_PREFIXES = {"finetune": (), "infer": ("saas.", "model.", "backend.")}


def read_llm(options: Iterable[Option], *, final: bool = False) -> LlmRead | None:
    """None when the options say that this is not a fine-tune or deployment of a local model: nothing is judged."""
    options = tuple(options)
    action = _said(options, "action") or "finetune"
    kind = _said(options, "pretrainedModelType", "pretrained_model_type") or ""
    if not final and (dynamic(action) or dynamic(kind)):
        return None
    if action in ("merge", "convert") or (kind.startswith(("sfft/", "saas/")) and not _reconnects(options)):
        return None
    out = LlmRead(action, Read(final), Read(final), Read(final), Read(final))
    model = InferOptions if action == "infer" else FinetuneOptions
    for option in options:
        if len(out.errors) >= MAX_ERRORS:
            break
        _sort_llm_option(out, model, option)
    for part in (out.statement, out.setup, out.training, out.generation):
        out.errors += part.errors
    if "config" in out.statement.values:
        out.errors += _merge_config(out)
    out.errors.sort(key=lambda e: e.span.start if e.span else 0)
    return out


def _said(options: tuple[Option, ...], *keys: str) -> str | None:
    return next((o.value.value for o in options if o.key.value in keys), None)


def _reconnects(options: tuple[Option, ...]) -> bool:
    return (_said(options, "reconnect") or "").lower() == "true"


def _sort_llm_option(out: LlmRead, model: type[LlmOptions], option: Option) -> None:
    key = option.key.value
    infer = out.action == "infer"
    if (name := spellings(model).get(key)) is not None:
        out.statement.put(model, name, option)
    elif (name := spellings(SetupOptions).get(key)) is not None:
        out.setup.put(SetupOptions, name, option)
    elif key.startswith(RESOURCE):
        _resource(out, option)
    elif key.startswith("sft.") and not infer:
        _hyper_parameter(out, option)
    elif not infer and (name := spellings(TrainingOptions).get(key)) is not None:
        out.training.put(TrainingOptions, name, option)
    elif infer and (name := _generation_name(key)) is not None:
        out.generation.put(GenerationOptions, name, option)
    elif key in _NOT_YET.get(out.action, ()) or key.startswith(_NOT_YET_PREFIXES.get(out.action, ()) or ("\0",)):
        out.not_yet.append(option)
    else:
        out.errors.append(_unknown_llm(out, model, option))


def _generation_name(key: str) -> str | None:
    prefix, dot, bare = key.partition(".")
    return spellings(GenerationOptions).get(bare if dot and prefix in ("generation", "gen") else key)


def _unknown_llm(out: LlmRead, model: type[LlmOptions], option: Option) -> OptionError:
    key, infer = option.key.value, out.action == "infer"
    statement = f'run … as LLM (action="{out.action}")'
    other = FinetuneOptions if infer else InferOptions
    if key in spellings(other) or (key in spellings(TrainingOptions) if infer else _generation_name(key)):
        belongs = "finetune" if infer else "infer"
        return OptionError(
            f"option `{key}` does not concern {statement}",
            hint=f'it belongs to action="{belongs}"',
            span=option.key.span,
        )
    if key.startswith("sft."):
        return OptionError(
            f"option `{key}` does not concern {statement}",
            hint='it belongs to action="finetune"',
            span=option.key.span,
        )
    if key.startswith("resources."):
        hint = f"did you mean `{RESOURCE}{key.removeprefix('resources.')}`?"
        return OptionError(f"unknown option `{key}` of {statement}", hint=hint, span=option.key.span)
    beside = shown(GenerationOptions) if infer else tuple(TrainingOptions.model_fields)
    return unknown(option, statement, shown(model), more=[*shown(SetupOptions), *beside])


def _resource(out: LlmRead, option: Option) -> None:
    name = option.key.value.removeprefix(RESOURCE)
    if not out.setup.final and dynamic(option.value.value):
        return
    amount = resource_amount(option.key.value, option.value.value, option.key.span, option.value.span)
    if isinstance(amount, OptionError):
        out.errors.append(amount)
    else:
        out.resources[name] = amount


def _hyper_parameter(out: LlmRead, option: Option) -> None:
    """`sft.<type>.<name>`: the type word must fit the parameter's real type (a whole number is also a number)."""
    key = option.key.value
    steps = key.split(".")
    known = TrainingOptions.model_fields
    if len(steps) != 3 or steps[1] not in TYPE_WORDS:
        name = steps[-1] if len(steps) > 1 else ""
        real = f"`sft.{type_word(known[name])}.{name}`" if name in known else "`sft.<type>.<name>`"
        hint = f"write {real}; types are {', '.join(TYPE_WORDS)}"
        out.errors.append(OptionError(f"`{key}` is not of the form sft.<type>.<name>", hint=hint, span=option.key.span))
        return
    word, name = steps[1:]
    if name not in known:
        near = did_you_mean(name, known)
        right = near.split("`")[1] if near else ""
        hint = f"hyper-parameters: {', '.join(known)}"
        if near:
            hint = f"did you mean `sft.{type_word(known[right])}.{right}`?"
        out.errors.append(OptionError(f"unknown hyper-parameter `{name}`", hint=hint, span=option.key.span))
        return
    real = type_word(known[name])
    if word != real and not (word == "int" and real == "float"):
        out.errors.append(
            OptionError(
                f"hyper-parameter `{name}` is {_article(real)}, not {_article(word)}",
                hint=f"write `sft.{real}.{name}`",
                span=option.key.span,
            )
        )
        return
    out.training.put(TrainingOptions, name, option)


def _article(word: str) -> str:
    return {"int": "an int", "str": "a str"}.get(word, f"a {word}")


def _merge_config(out: LlmRead) -> list[OptionError]:
    """`config` holds hyper-parameters as JSON; what `sft.…` says wins over it."""
    option = out.statement.origin["config"]
    span = option.value.span
    try:
        values = json.loads(option.value.value)
    except (ValueError, RecursionError) as error:
        return [OptionError(f"option `config` is not JSON: {error}"[:300], span=span)]
    if not isinstance(values, dict):
        hint = "for example: config='{\"max_seq_length\": 512}'"
        return [OptionError("option `config` must be a JSON object", hint=hint, span=span)]
    errors = []
    for name, value in values.items():
        if name not in TrainingOptions.model_fields:
            near = did_you_mean(name, TrainingOptions.model_fields)
            errors.append(OptionError(f"unknown hyper-parameter `{name[:60]}` in `config`", hint=near, span=span))
        elif name not in out.training.origin:
            found = typed(TrainingOptions, name, value, shown_as=f"config.{name}", span=span)
            if isinstance(found, OptionError):
                errors.append(found)
            else:
                out.training.values[name] = found[0]
                out.training.origin[name] = option
    return errors
