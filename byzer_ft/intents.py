"""What a statement means, as frozen, validated types. The sql room makes them, session carries them out.

Past this border nobody sees an option string: `sft.int.max_seq_length="512"` has become `TrainingOptions.
max_seq_length == 512`. The field descriptions here are the one text that validation, documentation and completion
show. `span` is where the statement stands in the user's text; it is never part of JSON or of equality.
Knows nothing of SQL text, engines, Ray or torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from byzer_ft.errors import Span

FORMAT_VERSION = 1  # of every stored form that embeds these types; a newer one is refused by its reader


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Options(BaseModel):
    """Options of one statement: camelCase as the original writes them, snake_case accepted, unknown ones refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=to_camel,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def _aliases(*names: str) -> AliasChoices:
    """Spellings of one option; the first is the one that messages and documentation show."""
    return AliasChoices(*names)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Count = Annotated[float, Field(ge=0)]

# ---------------------------------------------------------------------------------------------- training options

Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"
]
Optimizer = Literal[
    "paged_adamw_32bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adafactor", "sgd"
]


class TrainingOptions(BaseModel):
    """Hyper-parameters: `sft.<type>.<name>` in SQL, the same bare names in a request file.

    Defaults are the guide's DEFAULT_QLORA_CONFIG. `model_fields_set` is what the user gave; a default may be
    adapted (announced with its reason), a given value is obeyed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    num_train_epochs: float = Field(1.0, gt=0, le=10_000, description="passes over the training rows")
    max_steps: int = Field(-1, ge=-1, le=100_000_000, description="optimizer steps; above 0 it overrides epochs")
    per_device_train_batch_size: int = Field(1, ge=1, le=4096, description="micro-batch: sequences per worker and pass")
    gradient_accumulation_steps: int = Field(16, ge=1, le=65_536, description="passes per optimizer step")
    learning_rate: float = Field(2e-4, gt=0, le=10, description="peak learning rate")
    max_seq_length: int = Field(1024, ge=16, le=1_048_576, description="tokens a training sequence may have")
    logging_steps: int = Field(300, ge=1, description="optimizer steps between loss lines")
    save_steps: int = Field(500, ge=1, description="optimizer steps between checkpoints")
    save_total_limit: int = Field(1, ge=1, description="checkpoints kept")
    save_strategy: Literal["steps", "epoch", "no"] = Field("steps", description="when checkpoints are written")
    lr_scheduler_type: Scheduler = Field("cosine", description="shape of the learning rate after warm-up")
    warmup_steps: int = Field(3000, ge=0, description="optimizer steps until the learning rate reaches its peak")
    lora_rank: int = Field(64, ge=1, le=4096, description="rank of the adapter's matrices")
    lora_alpha: float = Field(16, gt=0, le=65_536, description="the adapter is scaled by alpha / rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout in front of the adapter")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    disable_tqdm: bool = Field(False, description="no progress bar in the worker's log")
    optim: Optimizer = Field("paged_adamw_32bit", description="optimizer")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="seed of weights, order and dropout")
    fp16: bool = Field(True, description="16-bit floats with loss scaling")
    bf16: bool = Field(False, description="bfloat16 (Ampere and later)")
    report_to: Literal["tensorboard", "none"] = Field("tensorboard", description="tracker beside the native metrics")
    dataloader_num_workers: int = Field(0, ge=0, le=64, description="processes that feed batches")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW weight decay")
    max_grad_norm: float = Field(0.3, ge=0, le=1e6, description="gradient clipping; 0 turns it off")
    remove_unused_columns: bool = Field(False, description="accepted for compatibility; there are no unused columns")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="AdamW epsilon")


# ------------------------------------------------------------------------------------------- what statements mean


class Intent(Frozen):
    span: Annotated[Span | None, Field(exclude=True, repr=False)] = None

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True, populate_by_name=True
    )


class LoadOptions(Options):
    """Options of `load`, for the formats executed here."""

    infer_schema: bool = Field(True, description="types from all rows; false: every csv column is a string")
    header: bool = Field(True, description="csv: the first line names the columns")
    sep: str | None = Field(None, validation_alias=_aliases("sep", "delimiter"), description="csv: separator")
    quote: str | None = Field(None, description="csv: quote character")
    escape: str | None = Field(None, description="csv: escape character")
    multi_line: bool = Field(False, description="accepted for compatibility; arrays and lines are both recognised")
    encoding: str = Field(
        "utf-8", validation_alias=_aliases("encoding", "charset"), description="utf-8, utf-16, gb18030, …"
    )
    mode: Annotated[str, BeforeValidator(_lower)] = Field(
        "failfast",
        pattern="^(failfast|permissive|dropmalformed|path)$",
        description="malformed rows: failfast stops at the line, dropmalformed goes on with a count; delta: path",
    )
    wholetext: bool = Field(
        False, validation_alias=_aliases("wholetext", "wholeText"), description="text: one row a file instead of a line"
    )
    version_as_of: int | None = Field(None, ge=0, description="delta: a version")
    timestamp_as_of: str | None = Field(None, description="delta: the version at that time")


class LoadTable(Intent):
    """`load json.`path` where … as t`"""

    kind: Literal["load"] = "load"
    format: str
    path: str
    options: LoadOptions = LoadOptions()
    table: str


class Query(Intent):
    """`select … as t`: the body goes to the engine unchanged unless it calls a model."""

    kind: Literal["select"] = "select"
    body: str
    table: str


class SaveOptions(Options):
    """Options of `save`."""

    file_num: int | None = Field(None, ge=1, le=10_000, description="number of files written")
    mode: Literal["path"] | None = Field(None, description="delta: the name is a path")
    header: bool = Field(True, description="csv: write column names")
    sep: str | None = Field(None, validation_alias=_aliases("sep", "delimiter"), description="csv: separator")
    comment: str | None = Field(None, max_length=10_000, description="model: a note kept with the version")


SaveMode = Literal["overwrite", "append", "ignore", "errorifexists"]


class SaveTable(Intent):
    """`save overwrite t as delta.`db.t` partitionBy c`"""

    kind: Literal["save"] = "save"
    table: str
    mode: SaveMode = "errorifexists"
    format: str
    path: str
    options: SaveOptions = SaveOptions()
    partition_by: tuple[str, ...] = ()


class SetOptions(Options):
    type: Literal["text", "sql", "defaultParam", "conf", "shell"] = Field("text", description="how the value is read")
    mode: Literal["compile", "runtime"] = Field("runtime", description="sql: when the query runs")
    scope: Literal["request", "session"] = Field("request", description="how long the variable lives")
    visible: str | None = Field(None, description="un_select hides the variable from select")


class SetVariable(Intent):
    """`set name = "value"`"""

    kind: Literal["set"] = "set"
    name: str
    value: str
    options: SetOptions = SetOptions()


class Resources(Frozen):
    """What the person asked of the machines; None means not said."""

    num_gpus: float | None = Field(None, ge=0, le=100_000)
    num_cpus: float | None = Field(None, ge=0, le=1_000_000)
    custom: dict[str, float] = {}  # `resource.master=0.01` -> {"master": 0.01}: node pinning
    allow_fewer: bool = False


class ModelRef(Frozen):
    """Where a model comes from: a directory (or `builtin:tiny-chat`), or a model table of the catalog."""

    directory: str | None = None
    table: str | None = None


class Finetune(Intent):
    """`run command as LLM.`` where …` with `action="finetune"` (the default)."""

    kind: Literal["finetune"] = "finetune"
    name: str | None = None
    family: str  # `llama2` of `sft/llama2`; `auto` trusts config.json
    model: ModelRef
    input_table: str
    output_table: str | None = None
    local_path_prefix: str | None = None
    detached: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    resources: Resources = Resources()
    training: TrainingOptions = TrainingOptions()


class Deploy(Intent):
    """`run command as LLM.`` where action="infer" …`"""

    kind: Literal["deploy"] = "deploy"
    function: str
    family: str
    model: ModelRef
    reconnect: bool = False
    replicas: int = Field(1, ge=1, le=1000)
    backend: Literal["transformers"] = "transformers"
    quantization: Literal["none", "4bit", "8bit"] = "none"
    local_path_prefix: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    resources: Resources = Resources()
    generation: dict[str, Any] = {}  # defaults of the function: max_new_tokens, temperature, …


class ModelAdmin(Intent):
    """`!byzerllm model remove|exists "name"`: an undeployed function or a stopped job, as in the original."""

    kind: Literal["model_admin"] = "model_admin"
    action: Literal["remove", "exists"]
    name: str


class Setup(Intent):
    """`!byzerllm setup sft;` resets the defaults of a mode, `!byzerllm setup "k=v";` sets one key."""

    kind: Literal["setup"] = "setup"
    mode: Literal["single", "sft", "sfft", "data", "retrieval"] | None = None
    key: str | None = None
    value: str | None = None


class Show(Intent):
    """`!show tables|jobs|models|functions|…`"""

    kind: Literal["show"] = "show"
    what: str
    args: tuple[str, ...] = ()


class Kill(Intent):
    """`!kill job`"""

    kind: Literal["kill"] = "kill"
    name: str


class Describe(Intent):
    """`!desc table`"""

    kind: Literal["describe"] = "describe"
    table: str


class Unsupported(Intent):
    """A statement that is read and typed but not executed by this version."""

    kind: Literal["unsupported"] = "unsupported"
    statement: str  # what the person would call it: `register`, `!delta`, `run … as TableRepartition`


AnyIntent = (
    LoadTable
    | Query
    | SaveTable
    | SetVariable
    | Finetune
    | Deploy
    | ModelAdmin
    | Setup
    | Show
    | Kill
    | Describe
    | Unsupported
)


# --------------------------------------------------------------------- what travels to workers, as JSON documents


class BaseModelRef(Frozen):
    """A base model on a node: its directory, its content hash (root of the file hashes) and its lake address."""

    directory: str
    root_hash: str | None = None
    uri: str | None = None


class TrainingRequest(Frozen):
    """`request.json` of a job directory: all that `training.finetune` needs besides the rows.

    `training` is dumped with `exclude_unset`, so that what the user gave stays distinguishable from defaults.
    """

    format_version: Literal[1] = 1
    name: str
    family: str
    base: BaseModelRef
    training: TrainingOptions = TrainingOptions()
    trust_remote_code: bool = False
    allow_pickle: bool = False
