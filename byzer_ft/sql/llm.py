"""`run … as LLM` and what is known when it runs -> `Finetune` or `Deploy`.

Every check of a statement is made before any is reported. Knows no model directory, table or machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from byzer_ft.errors import ByzerError, NotSupportedError, OptionError, Span, did_you_mean, listing
from byzer_ft.intents import AnyIntent, Deploy, Finetune, ModelRef, Resources, TrainingOptions, Unsupported
from byzer_ft.sql.checks import NO_TABLE, check_table_name, filled, one, option_not_yet, refuse_unknown, table_of
from byzer_ft.sql.llm_options import LlmRead, read_llm
from byzer_ft.sql.options import RESOURCE, FinetuneOptions, InferOptions, Read, SetupOptions, spellings
from byzer_ft.sql.statements import Options, Run, Statement
from byzer_ft.sql.variables import Scope

ETS_NOT_YET = ("TableRepartition", "ModelAdmin", "IfCommand", "ScriptUDF", "Ray", "CacheExt", "EmptyTable", "PythonEnv")


def plan_run(statement: Run, scope: Scope) -> AnyIntent:
    et, verb = scope.fill(statement.et), statement.verb.value.lower()
    if et.lower() != "llm":
        refuse_unknown(statement.et, et, "ET", ("LLM",), ETS_NOT_YET)
        return Unsupported(statement=f"{verb} … as {et}", span=statement.span)
    if verb == "predict":
        return Unsupported(statement="predict … as LLM", span=statement.span)
    options = filled(statement, scope).options
    found = read_llm(options, final=True)
    if found is None:
        return _llm_not_yet(statement, options)
    if found.errors:
        raise one(found.errors)
    if found.not_yet:
        raise one([option_not_yet(o, "run … as LLM") for o in found.not_yet])
    _check_owner(found.setup, scope)
    return _deploy(statement, found, scope) if found.action == "infer" else _finetune(statement, found, scope)


def _llm_not_yet(statement: Run, options: Options) -> AnyIntent:
    said = {o.key.value: o.value.value for o in options}
    action = said.get("action", "finetune")
    kind = said.get("pretrainedModelType") or said.get("pretrained_model_type") or ""
    what = f'action="{action}"' if action in ("merge", "convert") else f'pretrainedModelType="{kind}"'
    return Unsupported(statement=f"run … as LLM with {what}", span=statement.span)


def _finetune(statement: Run, found: LlmRead, scope: Scope) -> AnyIntent:
    options = FinetuneOptions(**found.statement.values)
    get = _Gather()
    fields = {
        "name": get(_job_name, found.statement),
        "family": get(_family, found, "sft"),
        "model": get(_model, statement, found),
        "input_table": get(_input_table, statement, found, scope),
        "output_table": get(_output_table, statement, found, scope),
        "local_path_prefix": get(_nonempty, found.statement, "local_path_prefix"),
        "resources": get(_whole_gpus, statement, found, scope),
        "training": get(_training, statement, found),
    }
    get.finish()
    return Finetune(
        **fields,
        detached=options.detached,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        span=statement.span,
    )


def _deploy(statement: Run, found: LlmRead, scope: Scope) -> AnyIntent:
    options = InferOptions(**found.statement.values)
    get = _Gather()
    get(_check_backend, statement, found, options, scope)
    get(_check_no_result, statement)
    fields = {
        "function": get(_function, statement, found),
        "family": get(_family, found, "custom"),
        "model": ModelRef() if options.reconnect else get(_model, statement, found),
        "local_path_prefix": get(_nonempty, found.statement, "local_path_prefix"),
    }
    get.finish()
    return Deploy(
        **fields,
        reconnect=options.reconnect,
        replicas=_setup(found, scope).max_concurrency,
        quantization=options.quantization,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        resources=_resources(found, scope),
        generation=found.generation.values,
        span=statement.span,
    )


class _Gather:
    """Calls readers one after the other and keeps their errors, so that a person sees all of them at once."""

    def __init__(self) -> None:
        self.errors: list[ByzerError] = []

    def __call__(self, reader: Callable[..., Any], *given: Any) -> Any:
        try:
            return reader(*given)
        except ByzerError as error:
            self.errors.append(error)

    def finish(self) -> None:
        if self.errors:
            raise one(sorted(self.errors, key=lambda e: e.span.start if e.span else 0))


def _check_backend(statement: Run, found: LlmRead, options: InferOptions, scope: Scope) -> None:
    backend = _setup(found, scope).infer_backend
    if backend != "transformers" and not options.reconnect:
        raise NotSupportedError(
            f"infer_backend={backend} is not supported yet",
            hint='!byzerllm setup "infer_backend=transformers"; answers with transformers',
            span=_span(found.setup, "infer_backend", statement),
        )


def _check_no_result(statement: Run) -> None:
    if statement.outputs:
        span = statement.outputs[0].span
        raise NotSupportedError("a deployment has no result table: `as` is not supported here", span=span)


def _whole_gpus(statement: Run, found: LlmRead, scope: Scope) -> Resources:
    resources = _resources(found, scope)
    if resources.num_gpus is not None and resources.num_gpus != int(resources.num_gpus):
        raise OptionError(
            f"num_gpus={resources.num_gpus:g}: a fine-tune takes whole GPUs",
            hint="one process trains on each",
            span=_span(found.setup, "num_gpus", statement),
        )
    return resources


def _training(statement: Run, found: LlmRead) -> TrainingOptions:
    given = found.training.values
    if given.get("fp16") and given.get("bf16"):
        span = _span(found.training, "bf16", statement)
        raise OptionError("fp16 and bf16 contradict each other", hint="give one of them", span=span)
    return TrainingOptions(**given)


# Models that the original deploys by these names and that are no chat models.
_CUSTOM_NOT_YET = ("m3e", "bge", "visualglm", "starcode", "alpha_moss", "stable_diffusion", "whisper", "bark")
_BARE_NOT_YET = ("moss", "dolly", "bark", "whisper", "m3e", "qa")


def _family(found: LlmRead, prefix: str) -> str:
    """`llama2` of `sft/llama2`; without a type the model's own config.json decides."""
    from byzer_ft.modeldir import FAMILIES

    kind = _nonempty(found.statement, "pretrained_model_type")
    if kind is None or found.statement.values.get("reconnect"):
        return "auto"
    span = found.statement.origin["pretrained_model_type"].value.span
    before, slash, family = kind.rpartition("/")
    family = family.lower()
    if before == prefix and family in FAMILIES:
        return family
    if (prefix == "custom" and before == prefix and family in _CUSTOM_NOT_YET) or (
        not slash and family in _BARE_NOT_YET
    ):
        raise NotSupportedError(f"models of type {kind} are not supported yet", span=span)
    types = [f"{prefix}/{name}" for name in FAMILIES]
    hint = f"did you mean `{prefix}/{family}`?" if family in FAMILIES else did_you_mean(kind, types)
    if before in ("lora", "deepspeed"):
        hint = f'`{before}/…` belongs to action="{"merge" if before == "lora" else "convert"}"'
    message = f"unknown type {kind}"
    if before in ("sft", "custom", "lora", "deepspeed") and before != prefix:
        message = f'type {kind} does not fit action="{found.action}"'
    raise OptionError(message, hint=hint or f"types: {listing(types, limit=40)}", span=span)


def _model(statement: Run, found: LlmRead) -> ModelRef:
    directory = _nonempty(found.statement, "local_model_dir")
    if directory is not None:
        return ModelRef(directory=directory)
    tables = [t for name in ("model_table", "model") if (t := _model_table(found.statement, name)) is not None]
    if len(set(tables)) > 1:
        raise OptionError(
            f"modelTable={tables[0]!r} and model={tables[1]!r} contradict each other",
            hint="give one of them",
            span=found.statement.origin["model"].span,
        )
    if not tables:
        raise OptionError(
            "which model? Neither localModelDir nor model is given",
            hint='localModelDir="/path/of/the/model" for a directory, '
            'or model="name" for a model table (load model.`/path` as name;)',
            span=_head(statement),
        )
    return ModelRef(table=tables[0])


def _model_table(options: Read, name: str) -> str | None:
    value = _nonempty(options, name)
    return None if value is None or value.lower() == NO_TABLE else value


def _input_table(statement: Run, found: LlmRead, scope: Scope) -> str:
    """`inputTable`, or the table of `run rows as LLM`."""
    table = scope.fill(statement.table)
    own = None if table.lower() == NO_TABLE else table
    said = _nonempty(found.statement, "input_table")
    if said is not None and said.lower() == NO_TABLE:
        raise OptionError(
            f"inputTable={said!r}: `command` is no table, a fine-tune needs rows",
            hint='inputTable="name" of a table that load or select made',
            span=found.statement.origin["input_table"].value.span,
        )
    if said is None and own is None:
        raise OptionError(
            "inputTable is missing: a fine-tune needs rows",
            hint='inputTable="name" of a table that load or select made',
            span=_head(statement),
        )
    if said is not None and own is not None and said != own:
        raise OptionError(
            f"inputTable={said!r} and `run {own} as LLM` contradict each other",
            hint=f"write: run command as LLM.`` where inputTable={said!r} …",
            span=found.statement.origin["input_table"].value.span,
        )
    return said or own or ""


def _output_table(statement: Run, found: LlmRead, scope: Scope) -> str | None:
    """`outputTable`, or the name behind `as`."""
    names = [table_of(part, scope) for part in statement.outputs]
    said = _nonempty(found.statement, "output_table")
    if said is not None:
        check_table_name(said, found.statement.origin["output_table"].value.span)
    if len({*names, *([said] if said else [])}) > 1:
        span = statement.outputs[0].span
        raise OptionError("a fine-tune has one result: outputTable and `as` contradict each other", span=span)
    return said or (names[0] if names else None)


def _job_name(options: Read) -> str | None:
    name = _nonempty(options, "name")
    if name is not None and not re.fullmatch(r"\w[\w.-]{0,127}", name):
        raise OptionError(
            f"name {name!r} cannot name a job",
            hint="letters, digits, `_`, `-` and `.`, at most 128, beginning with a letter or digit",
            span=options.origin["name"].value.span,
        )
    return name


def _function(statement: Run, found: LlmRead) -> str:
    name = _nonempty(found.statement, "udf_name")
    if name is None:
        raise OptionError(
            "udfName is missing: the name of the SQL function",
            hint='for example: udfName="chat"',
            span=_head(statement),
        )
    span = found.statement.origin["udf_name"].value.span
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name):
        raise OptionError(
            f"udfName {name!r} cannot name a function",
            hint="letters, digits and `_`, at most 128, beginning with a letter",
            span=span,
        )
    from byzer_ft.sql.functions import is_builtin

    if is_builtin(name):
        raise OptionError(
            f"udfName {name!r} is the name of a built-in function or a word of SQL",
            hint=f"take another name, for example {name}_chat",
            span=span,
        )
    return name


def _setup(found: LlmRead, scope: Scope) -> SetupOptions:
    """Setup keys: the statement's own win over the session's, those over the defaults."""
    names = spellings(SetupOptions)
    said = {names[k]: v for k, v in scope.setup.items() if k in names and v != ""}
    return SetupOptions.model_validate({**said, **found.setup.values}, by_name=True)


def _resources(found: LlmRead, scope: Scope) -> Resources:
    setup = _setup(found, scope)
    pinned = {k.removeprefix(RESOURCE): float(v) for k, v in scope.setup.items() if k.startswith(RESOURCE)}
    return Resources(
        num_gpus=setup.num_gpus,
        num_cpus=setup.num_cpus,
        custom={k: v for k, v in {**pinned, **found.resources}.items() if v > 0},
        allow_fewer=bool(found.statement.values.get("allow_fewer", False)),
    )


def _check_owner(setup: Read, scope: Scope) -> None:
    owner = setup.values.get("owner")
    if owner is not None and scope.owner and owner != scope.owner:
        raise OptionError(
            f"owner={owner!r}: this session belongs to {scope.owner!r}",
            hint="BYZER_FT_OWNER says who a session belongs to",
            span=setup.origin["owner"].value.span,
        )


def _nonempty(options: Read, name: str) -> str | None:
    """A text option; given but empty is an error that says so."""
    value: str | None = options.values.get(name)
    if value is None:
        return None
    if not value.strip():
        option = options.origin[name]
        raise OptionError(f"option `{option.key.value}` is empty", span=option.value.span)
    return value


def _span(options: Read, name: str, statement: Statement) -> Span:
    option = options.origin.get(name)
    return option.value.span if option is not None else statement.span


def _head(statement: Run) -> Span:
    """`run command as LLM`: where something is missing rather than wrong."""
    return statement.span.source.span(statement.span.start, statement.et.span.end)
