"""Option strings -> typed values, or errors that underline the user's own key or value.

The pydantic models here and in `intents` are the one list of what each statement takes: validation, completion and
documentation read it. A value that still holds `${…}` or `:{…}` cannot be judged yet and is left for the planner.
Knows nothing of statements' order, variables' values or what an option does.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from byzer_ft.errors import OptionError, Span, did_you_mean
from byzer_ft.intents import Options
from byzer_ft.sql.statements import Option


def _quantization(value: object) -> object:
    """The original's `"true"` was nf4."""
    named = {"true": "4bit", "false": "none", "nf4": "4bit", "int4": "4bit", "int8": "8bit", "4": "4bit", "8": "8bit"}
    return named.get(value.strip().lower(), value) if isinstance(value, str) else value


class _Late(Options):
    """Built at its first use: importing this module costs nothing."""

    model_config = ConfigDict(defer_build=True)


class LlmOptions(_Late):
    """`run command as LLM` whatever the action."""

    action: Literal["finetune", "infer", "merge", "convert"] = Field("finetune", description="what to do")
    pretrained_model_type: str | None = Field(None, description="what to do it with: `sft/llama2`, `custom/auto`, …")
    name: str | None = Field(None, description="name of the job")
    local_path_prefix: str | None = Field(None, description="directory below which the job's own directory is made")
    local_model_dir: str | None = Field(
        None, description="directory of the model (or `builtin:tiny-chat`); wins over model"
    )
    model: str | None = Field(None, description="a model table; `command` is none")
    model_table: str | None = Field(None, description="the same as model")
    input_table: str | None = Field(None, description="table of the training rows")
    output_table: str | None = Field(None, description="name of the resulting model table")
    detached: bool = Field(True, description="true: the statement returns as soon as the job runs; false: it waits")
    allow_fewer: bool = Field(False, description="run on fewer GPUs than asked for")
    trust_remote_code: bool = Field(False, description="run the code that comes with the model")
    allow_pickle: bool = Field(False, description="load pickle weights")
    devices: str | None = Field(None, description="accepted for compatibility; Ray chooses the GPUs")
    keep_partition_num: bool = Field(False, description="accepted for compatibility; rows are split by the trainer")
    model_wait_server_ready_timeout: int = Field(
        300, ge=0, description="accepted for compatibility; there is no server"
    )
    data_wait_server_ready_timeout: int = Field(300, ge=0, description="accepted for compatibility; there is no server")


class FinetuneOptions(LlmOptions):
    """`action="finetune"` with `sft/…`; hyper-parameters stand beside these as `sft.<type>.<name>`."""

    config: str | None = Field(None, description="hyper-parameters as one JSON object; `sft.…` keys win over it")
    model_type: Literal["casual_lm", "causal_lm"] = Field("causal_lm", description="accepted for compatibility")
    skip_copy_pretrained_model: bool = Field(False, description="accepted for compatibility; the base is never copied")


class InferOptions(LlmOptions):
    """`action="infer"`; generation parameters stand beside these."""

    name: str | None = Field(None, description="accepted for compatibility; a function is known by udfName")
    local_path_prefix: str | None = Field(None, description="accepted for compatibility; nothing is copied there")
    input_table: str | None = Field(None, description="accepted for compatibility; a function has no input table")
    output_table: str | None = Field(None, description="accepted for compatibility; a function has no output table")
    detached: bool = Field(True, description="accepted for compatibility; the statement waits until the model answers")
    allow_fewer: bool = Field(False, description="accepted for compatibility; replicas take what they are given")

    udf_name: str | None = Field(None, description="name of the SQL function")
    reconnect: bool = Field(False, description="use the function that is already deployed; deploy nothing")
    quantization: Annotated[Literal["none", "4bit", "8bit"], BeforeValidator(_quantization)] = Field(
        "none",
        validation_alias=AliasChoices("quantization", "quatization"),
        description="weights in 16 bits (none), 4bit or 8bit",
    )
    worker_use_ray: bool = Field(False, description="accepted for compatibility; every worker is Ray's")


class GenerationOptions(_Late):
    """How a function answers unless the call says otherwise; also as `generation.NAME` or `gen.NAME`."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        validation_alias=AliasChoices("max_new_tokens", "maxNewTokens", "max_tokens"),
        description="tokens an answer may have",
    )
    max_length: int | None = Field(None, ge=1, le=10_000_000, description="tokens of prompt and answer together")
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the likeliest token; above it, draws")
    top_p: float | None = Field(None, gt=0, le=1, description="draw from the likeliest tokens of this probability")
    top_k: int | None = Field(None, ge=0, description="draw from this many likeliest tokens; 0 is all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="drop tokens less likely than this share of the likeliest"
    )
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="above 1 makes seen tokens less likely")
    do_sample: bool | None = Field(None, description="draw tokens instead of taking the likeliest")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="makes drawn answers repeatable")
    stop: str | None = Field(None, description="text that ends the answer, or a JSON list of such texts")
    stopping_sequences: str | None = Field(None, description="the same, separated by commas")
    system_msg: str | None = Field(None, description="system message of requests that bring none")
    input_pattern: Literal["chat", "prompt"] | None = Field(None, description="the chat template, or raw text")


_Backend = Literal[
    "transformers", "vllm", "ray/vllm", "ray/deepspeed", "ray/devicemap", "deepspeed", "tgi", "llama_cpp"
]


def _names(*spellings: str) -> AliasChoices:
    return AliasChoices(*spellings)


class SetupOptions(_Late):
    """Keys of `!byzerllm setup "key=value"`; each may also stand in a statement's `where`, where it wins."""

    num_gpus: float | None = Field(
        None,
        ge=0,
        le=100_000,
        validation_alias=_names("num_gpus", "numGpus", "gpus_per_worker", "gpusPerWorker"),
        description="GPUs: of a fine-tune in all, of a deployment for each worker",
    )
    num_cpus: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        validation_alias=_names("num_cpus", "numCpus", "cpus_per_worker", "cpusPerWorker"),
        description="CPUs of a worker",
    )
    max_concurrency: int = Field(
        1,
        ge=1,
        le=1000,
        validation_alias=_names("maxConcurrency", "max_concurrency", "num_workers", "numWorkers"),
        description="workers of a deployment",
    )
    worker_max_concurrency: int = Field(
        1,
        ge=1,
        le=100_000,
        validation_alias=_names(
            "workerMaxConcurrency", "worker_max_concurrency", "worker_concurrency", "workerConcurrency"
        ),
        description="accepted for compatibility; a worker batches whatever arrives",
    )
    master_max_concurrency: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        validation_alias=_names("masterMaxConcurrency", "master_max_concurrency"),
        description="accepted for compatibility; there is no master",
    )
    infer_backend: _Backend = Field(
        "transformers",
        validation_alias=_names("infer_backend", "inferBackend"),
        description="what generates the answers",
    )
    load_balance: Literal["lru", "round_robin"] | None = Field(
        None, validation_alias=_names("load_balance", "loadBalance"), description="accepted for compatibility"
    )
    standalone: bool = Field(False, description="accepted for compatibility")
    owner: str | None = Field(
        None, validation_alias=_names("owner", "OWNER"), description="must be who this session belongs to"
    )
    ray_address: str | None = Field(
        None,
        validation_alias=_names("rayAddress", "ray_address"),
        description="accepted for compatibility; BYZER_FT_RAY_ADDRESS joins a cluster",
    )
    python_exec: str | None = Field(
        None, validation_alias=_names("pythonExec", "python_exec"), description="accepted for compatibility"
    )
    python_version: str | None = Field(
        None, validation_alias=_names("pythonVersion", "python_version"), description="accepted for compatibility"
    )
    data_mode: Literal["model", "data"] | None = Field(
        None, validation_alias=_names("dataMode", "data_mode"), description="accepted for compatibility"
    )
    run_in: Literal["driver", "executor"] | None = Field(
        None, validation_alias=_names("runIn", "run_in"), description="accepted for compatibility"
    )
    output_schema: str | None = Field(None, validation_alias=_names("schema"), description="accepted for compatibility")


RESOURCE = "resource."
MAX_ERRORS = 100  # of one statement: the search for a similar name is slow, and nobody reads more
TYPE_WORDS = ("int", "float", "bool", "str", "list", "dict")

# ------------------------------------------------------------------------------------------------ one model's options


@functools.cache
def spellings(model: type[BaseModel]) -> Mapping[str, str]:
    """Every accepted spelling of a model's options -> the field's name."""
    known: dict[str, str] = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        written = [str(c) for c in alias.choices] if isinstance(alias, AliasChoices) else [alias or info.alias or name]
        for spelling in [*written, name]:
            if isinstance(spelling, str):
                known.setdefault(spelling, name)
    return known


@functools.cache
def shown(model: type[BaseModel]) -> tuple[str, ...]:
    """The spelling of each option that messages show: the first."""
    first: dict[str, str] = {}
    for spelling, name in spellings(model).items():
        first.setdefault(name, spelling)
    return tuple(first.values())


def dynamic(value: str) -> bool:
    """Whether the value is only known when its variables are."""
    return "${" in value or ":{" in value


@dataclass
class Read:
    """What was made of some options: values by field, where each came from, and what was wrong.

    `final`: variables are filled in, so every value is judged.
    """

    final: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Option] = field(default_factory=dict)
    errors: list[OptionError] = field(default_factory=list)

    def put(self, model: type[BaseModel], name: str, option: Option) -> None:
        """Types one value; a second, different value for the same field is an error."""
        before = self.origin.get(name)
        if before is not None and before.value.value != option.value.value:
            self.errors.append(
                OptionError(
                    f"option `{option.key.value}` is given twice, with different values",
                    hint=f"the other one is `{before.key.value}` in line {before.key.span.line}",
                    span=option.key.span,
                )
            )
            return
        self.origin[name] = option
        if not self.final and dynamic(option.value.value):
            return
        error = typed(model, name, option.value.value, shown_as=option.key.value, span=option.value.span)
        if isinstance(error, OptionError):
            self.errors.append(error)
        else:
            self.values[name] = error[0]


def typed(
    model: type[BaseModel], name: str, value: object, *, shown_as: str, span: Span | None
) -> OptionError | tuple[Any]:
    """One value through its field: a 1-tuple with the typed value, or what is wrong with it."""
    try:
        return (getattr(model.model_validate({name: value}, by_name=True), name),)
    except ValidationError:
        info = model.model_fields[name]
        allowed = _allowed(info)
        text = str(value)
        given = repr(text if len(text) <= 60 else text[:57] + "…")
        near = did_you_mean(text, [a for a in allowed if a]) if allowed else None
        description = f"{shown_as}: {info.description}" if info.description else None
        return OptionError(
            f"option `{shown_as}` must be {expected(info)}, not {given}", hint=near or description, span=span
        )


def read(model: type[BaseModel], options: Iterable[Option], statement: str, *, final: bool = False) -> Read:
    """All options of a statement that has one model."""
    out = Read(final)
    for option in options:
        if len(out.errors) >= MAX_ERRORS:
            break
        name = spellings(model).get(option.key.value)
        if name is None:
            out.errors.append(unknown(option, statement, shown(model)))
        else:
            out.put(model, name, option)
    return out


def unknown(option: Option, statement: str, known: Iterable[str], *, more: Iterable[str] = ()) -> OptionError:
    """`known` is listed when nothing is near; `more` is only searched."""
    known = list(known)
    key = option.key.value
    hint = did_you_mean(key, [*known, *more]) or f"options of {statement}: {', '.join(known)}"
    return OptionError(f"unknown option `{key}` of {statement}", hint=hint, span=option.key.span)


# --------------------------------------------------------------------------------------- what a field would have liked


def expected(info: FieldInfo) -> str:
    """`a whole number from 1 to 4096`"""
    kind = base_type(info)
    allowed = _allowed(info)
    if allowed:
        return "one of " + ", ".join(f"`{a}`" for a in allowed)
    if kind is bool:
        return "`true` or `false`"
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        return f"{noun} {_range(info)}".rstrip()
    longest = next((m.max_length for m in info.metadata if isinstance(m, annotated_types.MaxLen)), None)
    return f"a text of at most {longest} characters" if longest else "a text"


def base_type(info: FieldInfo) -> Any:
    """The plain type of a field: `float` of `float | None`, `Literal` for choices."""
    annotation: Any = info.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return Literal if get_origin(annotation) is Literal else annotation


def _allowed(info: FieldInfo) -> list[str]:
    annotation: Any = info.annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    choices = [c for m in members if get_origin(m) is Literal for c in get_args(m)]
    pattern = next((str(p) for m in info.metadata if (p := getattr(m, "pattern", None))), "")
    if not choices and pattern.startswith("^(") and pattern.endswith(")$"):
        choices = pattern[2:-2].split("|")
    return [str(c) for c in choices]


def _range(info: FieldInfo) -> str:
    low = high = ""
    inclusive = True
    for bound in info.metadata:
        match bound:
            case annotated_types.Ge(ge=value):
                low = f"at least {_figure(value)}"
            case annotated_types.Gt(gt=value):
                low, inclusive = f"above {_figure(value)}", False
            case annotated_types.Le(le=value):
                high = f"at most {_figure(value)}"
            case annotated_types.Lt(lt=value):
                high, inclusive = f"below {_figure(value)}", False
    if low and high and inclusive:
        return f"from {low.removeprefix('at least ')} to {high.removeprefix('at most ')}"
    return " and ".join(part for part in (low, high) if part)


def _figure(value: Any) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def resource_amount(key: str, value: str, key_span: Span | None, value_span: Span | None) -> float | OptionError:
    """The amount of `resource.NAME=0.01`."""
    if not key.removeprefix(RESOURCE):
        return OptionError("`resource.` lacks a name", hint='for example: "resource.master=0.01"', span=key_span)
    try:
        amount = float(value)
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= 1_000_000:
        return OptionError(
            f"option `{key}` must be a number from 0 to 1000000, not {value!r}",
            hint="it asks for a share of that Ray resource, which pins the work to the nodes that have it",
            span=value_span,
        )
    return amount


def type_word(info: FieldInfo) -> str:
    """The word of `sft.<type>.<name>` that fits a field."""
    kind = base_type(info)
    return {int: "int", float: "float", bool: "bool"}.get(kind, "str")
