"""A model directory as someone named it -> a checked `ModelDir`, or an error that says what is missing.

Accepts a directory of `config.json` and safetensors, an adapter directory with its base, `builtin:NAME`, and the
name of a hub model that already lies in the local hub cache. Nothing is downloaded, no weights are read and none of
the model's code runs: only JSON files and the headers of the weight files are looked at.
Knows nothing of torch, templates' meaning, Ray or SQL.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from byzer_ft.errors import AccessError, ModelError, NotFoundError, OptionError, did_you_mean, listing
from byzer_ft.paths import PathGuard
from byzer_ft.settings import Settings

BUILTIN = "builtin:"
MARKER = "byzer_ft.json"  # in a directory that training wrote
MARKER_FORMAT = 1

# What a person calls a family -> the `model_type` of config.json that it stands for. `auto` takes any.
FAMILIES: dict[str, frozenset[str]] = {
    "llama2": frozenset({"llama"}),
    "llama3": frozenset({"llama"}),
    "llama": frozenset({"llama"}),
    "vicuna": frozenset({"llama"}),
    "yi": frozenset({"llama", "yi"}),
    "baichuan": frozenset({"baichuan"}),
    "baichuan2": frozenset({"baichuan"}),
    "chatglm": frozenset({"chatglm"}),
    "chatglm2": frozenset({"chatglm"}),
    "chatglm3": frozenset({"chatglm"}),
    "falcon": frozenset({"falcon", "RefinedWeb", "RefinedWebModel"}),
    "internlm": frozenset({"internlm", "internlm2", "internlm3"}),
    "internlm2": frozenset({"internlm2"}),
    "mistral": frozenset({"mistral"}),
    "mixtral": frozenset({"mixtral"}),
    "qwen": frozenset({"qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}),
    "qwen2": frozenset({"qwen2", "qwen2_moe"}),
    "qwen3": frozenset({"qwen3", "qwen3_moe"}),
    "auto": frozenset(),
}
# A chat family where only the architecture is known; every other family is called as its model_type.
_FAMILY_OF_TYPE = {"llama": "llama2", "chatglm": "chatglm2", "RefinedWeb": "falcon", "RefinedWebModel": "falcon"}

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "qwen.tiktoken")
_MAX_JSON = 64 * 2**20
_MAX_HEADER = 100_000_000  # the safetensors library's own bound


@dataclass(frozen=True)
class ModelDir:
    """A directory that holds a model, or an adapter whose base is `base`. `notices` are choices to announce."""

    directory: Path
    config: Mapping[str, Any] = field(repr=False)  # of the base, where this is an adapter
    model_type: str
    family: str  # as given, or derived from model_type where `auto` was given
    template: str | None = field(repr=False)  # the tokenizer's own chat template
    has_tokenizer: bool
    has_adapter: bool
    base: ModelDir | None  # None: the weights are here
    weights: tuple[Path, ...] = field(repr=False)
    pickle: bool  # the weights are pickle files, which both the statement and the administrator allowed
    remote_code: bool  # the model's own code may run, for the same two reasons
    marker: Mapping[str, Any] = field(default_factory=dict, repr=False)  # byzer_ft.json
    notices: tuple[str, ...] = ()

    @property
    def base_directory(self) -> Path:
        return self.base.directory if self.base else self.directory

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def open_model_dir(
    path: str,
    *,
    guard: PathGuard,
    settings: Settings,
    family: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    need_tokenizer: bool = False,
    base: str | None = None,
) -> ModelDir:
    """Finds and checks a model directory. `base`: where an adapter's base lies, if its caller knows better.

    Raises NotFoundError, AccessError or ModelError, each with what to do next.
    """
    directory, notices = _locate(path, guard)
    look = _Look(guard, settings, family.lower(), allow_pickle, trust_remote_code)
    found = look.adapter(directory, base) if (directory / "adapter_config.json").exists() else look.model(directory)
    if need_tokenizer and not found.has_tokenizer:
        raise ModelError(
            f"{path} has no tokenizer",
            hint=f"copy the tokenizer's files into it: one of {', '.join(_TOKENIZERS)}, and tokenizer_config.json",
        )
    look.check_family(found, path)
    return replace(found, notices=(*notices, *found.notices))


# ------------------------------------------------------------------------------------------------------- locating


def _locate(path: str, guard: PathGuard) -> tuple[Path, tuple[str, ...]]:
    if not path.strip():
        raise NotFoundError("the model directory is not named", hint="localModelDir is a directory, e.g. /models/x")
    if path.startswith(BUILTIN):
        return _builtin(path.removeprefix(BUILTIN)), ()
    if re.match(r"^(?!file:)[a-z0-9]+://", path, re.IGNORECASE):
        guard.resolve(path, what="model directory")
        raise ModelError(
            f"{path} is not a local directory", hint="copy it to a directory first, or keep it as a model table"
        )
    if not _exists(path, guard) and (found := _in_hub_cache(path)):
        guard.resolve(str(found), what="hub cache")
        return found, (f"{path} is taken from the local hub cache: {found}",)
    directory = Path(guard.resolve(path, what="model directory"))
    if directory.is_dir():
        return directory, ()
    if directory.exists():
        raise ModelError(f"{path} is a file, not a model directory", hint=f"name its directory: {directory.parent}")
    if _HUB_ID.fullmatch(path):
        raise NotFoundError(
            f"{path} is no directory here; as a hub name it is not in the local hub cache, and downloads are off",
            hint=f"on a machine with network: hf download {path} --local-dir {path.split('/')[1]}\n"
            "then copy that directory here and name it in localModelDir",
        )
    raise NotFoundError(f"model directory {path} does not exist", hint=_neighbours(directory))


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _exists(path: str, guard: PathGuard) -> bool:
    """Whether there is such a path that may be seen; one that may not be seen is refused later, by name."""
    try:
        return Path(guard.resolve(path)).exists()
    except AccessError:
        return False


def _builtin(name: str) -> Path:
    assets = Path(__file__).parent / "assets"
    known = sorted(p.parent.name for p in assets.glob("*/config.json"))
    if name not in known:
        raise NotFoundError(
            f"there is no built-in model {name!r}",
            hint=did_you_mean(name, known) or f"built-in models: {listing(BUILTIN + k for k in known)}",
        )
    return (assets / name).resolve()


def _in_hub_cache(name: str) -> Path | None:
    """The snapshot of a hub model that was downloaded earlier, in the layout of huggingface_hub."""
    if not _HUB_ID.fullmatch(name):
        return None
    # Variables of huggingface_hub, not ours: they say where its cache is.
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    entry = cache / ("models--" + name.replace("/", "--"))
    revision = entry / "refs" / "main"
    snapshots = sorted(p for p in (entry / "snapshots").glob("*") if (p / "config.json").exists())
    if revision.is_file():
        wanted = entry / "snapshots" / revision.read_text("utf-8").strip()
        snapshots = [p for p in snapshots if p == wanted] or snapshots
    return snapshots[-1] if snapshots else None


def _neighbours(directory: Path) -> str:
    parent = directory.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        names = [p.name for p in parent.iterdir() if p.is_dir()]
    except OSError:
        names = []
    wanted = directory.relative_to(parent).parts[0]
    near = did_you_mean(wanted, names)
    return near or f"directories in {parent}: {listing(names)}"


# ------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class _Look:
    """One look at a directory with the permissions it was asked under."""

    guard: PathGuard
    settings: Settings
    family: str
    allow_pickle: bool
    trust_remote_code: bool

    def model(self, directory: Path) -> ModelDir:
        """A directory with config.json and weights."""
        files = self._files(directory)
        if "config.json" not in files:
            raise ModelError(f"{directory} is not a model: config.json is missing", hint=_contents(directory, files))
        config = _json(directory / "config.json")
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or not model_type:
            raise ModelError(f"{directory}/config.json has no model_type", hint="it names the architecture: llama, …")
        tokenizer = _json(directory / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
        weights, pickle = self._weights(directory, files)
        remote_code = self._remote_code(directory, config, tokenizer)
        return ModelDir(
            directory=directory,
            config=config,
            model_type=model_type,
            family=_family(self.family, model_type),
            template=_template(directory, files, tokenizer),
            has_tokenizer=any(name in files for name in _TOKENIZERS) or (remote_code and bool(tokenizer)),
            has_adapter=False,
            base=None,
            weights=weights,
            pickle=pickle,
            remote_code=remote_code,
            marker=_marker(directory, files),
        )

    def adapter(self, directory: Path, base: str | None) -> ModelDir:
        """A LoRA directory: its base is looked for where training, the original and peft put it."""
        files = self._files(directory)
        adapter_config = _json(directory / "adapter_config.json")
        marker = _marker(directory, files)
        weights = directory / "adapter_model.safetensors"
        if weights.name not in files:
            raise ModelError(
                f"{directory} is an adapter without weights: adapter_model.safetensors is missing",
                hint=_contents(directory, files),
            )
        check_safetensors(weights)
        under = self._base(directory, adapter_config, marker, base)
        tokenizer = _json(directory / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
        return ModelDir(
            directory=directory,
            config=under.config,
            model_type=under.model_type,
            family=under.family if self.family != "auto" else str(marker.get("family") or under.family),
            template=_template(directory, files, tokenizer) or under.template,
            has_tokenizer=any(name in files for name in _TOKENIZERS) or under.has_tokenizer,
            has_adapter=True,
            base=under,
            weights=(weights,),
            pickle=under.pickle,
            remote_code=under.remote_code,
            marker=marker,
            notices=under.notices,
        )

    def _base(
        self, directory: Path, adapter_config: Mapping[str, Any], marker: Mapping[str, Any], base: str | None
    ) -> ModelDir:
        stored = marker.get("base") if isinstance(marker.get("base"), dict) else {}
        tried = []
        for place in (
            base,
            str(directory / "pretrained_model"),
            (stored or {}).get("directory"),
            adapter_config.get("base_model_name_or_path"),
        ):
            if not isinstance(place, str) or not place or place in tried:
                continue
            tried.append(place)
            try:
                found, notices = _locate(place, self.guard)
            except NotFoundError:
                continue
            return replace(self.model(found), notices=notices)
        raise NotFoundError(
            f"the base model of the adapter {directory} is not found; looked at: {', '.join(tried) or 'nothing'}",
            hint="put the base model's directory (or a link to it) beside the adapter as pretrained_model",
        )

    def _files(self, directory: Path) -> frozenset[str]:
        """The names in a directory. A link is followed only to a target under the allowed roots."""
        names = set()
        try:
            entries = list(directory.iterdir())
        except OSError as error:
            raise AccessError(f"{directory} cannot be read: {error.strerror}") from None
        for entry in entries:
            if entry.is_symlink():
                self.guard.resolve(str(entry), what="a link in the model directory,")
                if not entry.exists():
                    raise ModelError(f"{entry} is a link to nothing: {entry.readlink()}")
            names.add(entry.name)
        return frozenset(names)

    def _weights(self, directory: Path, files: frozenset[str]) -> tuple[tuple[Path, ...], bool]:
        """The weight files that a loader will read, each checked, and whether they are pickles."""
        if "model.safetensors.index.json" in files:
            index = _json(directory / "model.safetensors.index.json").get("weight_map")
            if not isinstance(index, dict) or not index:
                raise ModelError(f"{directory}/model.safetensors.index.json has no weight_map")
            names = sorted({str(name) for name in index.values()})
            missing = [name for name in names if name not in files]
            if missing:
                raise ModelError(
                    f"{directory} is incomplete: {len(missing)} of {len(names)} weight files are missing",
                    hint=f"missing: {listing(missing)}; copy the model again",
                )
        else:
            names = sorted(n for n in files if n.endswith(".safetensors") and not n.startswith("adapter_"))
        if names:
            for name in names:
                check_safetensors(directory / name)
            return tuple(directory / name for name in names), False
        pickles = sorted({p for pattern in _PICKLES for p in directory.glob(pattern) if p.name != "training_args.bin"})
        if not pickles:
            raise ModelError(
                f"{directory} is not a model: no weights (*.safetensors) beside config.json",
                hint=_contents(directory, files),
            )
        self._check_pickle(directory, pickles)
        return tuple(pickles), True

    def _check_pickle(self, directory: Path, pickles: list[Path]) -> None:
        if self.allow_pickle and self.settings.allow_pickle:
            return
        missing = [] if self.allow_pickle else ['the statement must say allowPickle="true"']
        missing += [] if self.settings.allow_pickle else ["the administrator must set BYZER_FT_ALLOW_PICKLE=true"]
        raise AccessError(
            f"{directory} has its weights as pickle files only ({listing(p.name for p in pickles)}), which run code "
            "when they are loaded",
            hint="convert them to safetensors elsewhere and copy those here; or, if you trust them: "
            + ", and ".join(missing),
        )

    def _remote_code(self, directory: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> bool:
        places = [n for n, c in (("config.json", config), ("tokenizer_config.json", tokenizer)) if c.get("auto_map")]
        if not places:
            return False
        if self.trust_remote_code and self.settings.trust_remote_code:
            return True
        missing = [] if self.trust_remote_code else ['the statement must say trustRemoteCode="true"']
        missing += (
            [] if self.settings.trust_remote_code else ["the administrator must set BYZER_FT_TRUST_REMOTE_CODE=true"]
        )
        raise AccessError(
            f"{directory} brings its own Python code (auto_map in {' and '.join(places)}), which would run here",
            hint="read its *.py files first; then " + ", and ".join(missing),
        )

    def check_family(self, found: ModelDir, path: str) -> None:
        if self.family not in FAMILIES:
            raise OptionError(
                f"unknown model family {self.family!r}",
                hint=did_you_mean(self.family, FAMILIES) or f"families: {listing(FAMILIES, limit=40)}",
            )
        if self.family == "auto" or found.model_type in FAMILIES[self.family]:
            return
        fitting = _family("auto", found.model_type)
        kind = fitting if fitting in FAMILIES else "auto"
        wanted = f'pretrainedModelType="sft/{kind}" to fine-tune it, "custom/{kind}" to deploy it'
        raise ModelError(
            f"{path} is a {found.model_type!r} model, and the statement says {self.family!r}, which is for "
            f"{listing(FAMILIES[self.family])} models",
            hint=f"write {wanted}; or name another directory",
        )


def check_safetensors(path: Path) -> None:
    """Reads the header only: its JSON must parse and the file must be exactly as long as it says."""
    size = path.stat().st_size
    copy_again = "the file is broken or its copy was cut off: copy it again"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            lfs = start.startswith(b"version ")
            raise ModelError(
                f"{path} is not a safetensors file ({size} bytes)",
                hint="it is a Git LFS pointer: run `git lfs pull` where it was cloned" if lfs else copy_again,
            )
        head = file.read(length)
    try:
        tensors = {k: v for k, v in json.loads(head).items() if k != "__metadata__"}
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        raise ModelError(f"{path} has a header that cannot be read", hint=copy_again) from None
    if not tensors:
        raise ModelError(f"{path} holds no tensors", hint=copy_again)
    if 8 + length + end != size:
        raise ModelError(f"{path} has {size} bytes where its header says {8 + length + end}", hint=copy_again)


def _family(family: str, model_type: str) -> str:
    return family if family != "auto" else _FAMILY_OF_TYPE.get(model_type, model_type)


def _template(directory: Path, files: frozenset[str], tokenizer: Mapping[str, Any]) -> str | None:
    """The tokenizer's chat template, wherever the generations of transformers have put it."""
    if "chat_template.jinja" in files:
        return (directory / "chat_template.jinja").read_text("utf-8") or None
    if "chat_template.json" in files:
        tokenizer = {**_json(directory / "chat_template.json"), **tokenizer}
    value = tokenizer.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value.strip() else None


def _marker(directory: Path, files: frozenset[str]) -> Mapping[str, Any]:
    if MARKER not in files:
        return {}
    marker = _json(directory / MARKER)
    version = marker.get("format_version")
    if not isinstance(version, int) or version > MARKER_FORMAT:
        raise ModelError(
            f"{directory}/{MARKER} has format version {version!r}; this program reads up to {MARKER_FORMAT}",
            hint="a newer byzer_ft wrote it: upgrade this one",
        )
    return marker


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelError(f"{path} is too large for what it should be ({path.stat().st_size} bytes)")
        value = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _contents(directory: Path, files: frozenset[str]) -> str:
    """What a directory holds instead of a model, and a model one level below it, if there is one."""
    below = next(_models_below(directory), None)
    found = f"it has: {listing(files, empty='no files')}"
    return f"{found}; {below} is a model" if below else f"{found}; a model has config.json and *.safetensors"


def _models_below(directory: Path) -> Iterator[Path]:
    for pattern in ("*/adapter_config.json", "*/config.json"):
        yield from (p.parent for p in sorted(directory.glob(pattern))[:1])
