"""Model directories as people name them: what is found, what is refused, and what the refusal says. No torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import AccessError, ModelError, NotFoundError, OptionError
from byzer_ft.modeldir import BUILTIN, ModelDir, check_safetensors, open_model_dir
from byzer_ft.paths import PathGuard
from byzer_ft.settings import Settings, load_settings


def safetensors(values: int = 4) -> bytes:
    """A real file of that format: one tensor of `values` floats."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (4 * values)


def make(directory: Path, **files: Any) -> Path:
    """A small valid Llama directory; `files` adds, changes or (None) removes files by name, `_` for the dot."""
    directory.mkdir(parents=True)
    content: dict[str, Any] = {
        "config.json": {"model_type": "llama", "vocab_size": 8},
        "model.safetensors": safetensors(),
        "tokenizer.json": {},
        "tokenizer_config.json": {"eos_token": "</s>"},
    } | files
    for name, value in content.items():
        if value is not None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            (directory / name).write_bytes(data)
    return directory


def look(
    path: Path | str, *, roots: list[Path] | None = None, settings: Settings | None = None, **how: Any
) -> ModelDir:
    return open_model_dir(str(path), guard=PathGuard(roots), settings=settings or load_settings({}), **how)


def test_a_model(tmp_path: Path) -> None:
    found = look(make(tmp_path / "m"), need_tokenizer=True)
    assert (found.model_type, found.family, found.has_adapter, found.pickle) == ("llama", "llama2", False, False)
    assert found.directory == found.base_directory == tmp_path / "m"
    assert found.template is None
    assert found.size == len(safetensors())


def test_file_urls_and_dots_are_understood(tmp_path: Path) -> None:
    make(tmp_path / "m")
    assert look(f"file://{tmp_path}/m").directory == tmp_path / "m"
    assert look(tmp_path / "x" / ".." / "m").directory == tmp_path / "m"


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "t"}]}}, None),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "d"}]}}, "d"),
        ({"chat_template.jinja": b"j", "tokenizer_config.json": {"chat_template": "a"}}, "j"),
        ({"chat_template.json": {"chat_template": "c"}}, "c"),
        ({"tokenizer_config.json": None}, None),
    ],
)
def test_where_chat_templates_are_kept(tmp_path: Path, files: dict[str, Any], template: str | None) -> None:
    assert look(make(tmp_path / "m", **files)).template == template


def test_the_tokenizer_may_be_missing_until_it_is_needed(tmp_path: Path) -> None:
    model = make(tmp_path / "m", **{"tokenizer.json": None, "tokenizer_config.json": None})
    assert not look(model).has_tokenizer
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        look(model, need_tokenizer=True)
    assert "tokenizer.model" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------------------- not there, or not


def test_a_missing_directory_names_its_nearest_neighbour(tmp_path: Path) -> None:
    make(tmp_path / "llama-2-7b")
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        look(tmp_path / "lama-2-7b")
    assert caught.value.hint == "did you mean `llama-2-7b`?"
    with pytest.raises(NotFoundError) as caught:
        look(tmp_path / "nothing" / "alike")
    assert "llama-2-7b" in (caught.value.hint or "")


def test_an_empty_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not named"):
        look(" ")


def test_a_directory_that_is_no_model_shows_what_it_has(tmp_path: Path) -> None:
    make(tmp_path / "hub" / "inner")
    with pytest.raises(ModelError, match=r"config\.json is missing") as caught:
        look(tmp_path / "hub")
    assert "inner is a model" in (caught.value.hint or "")


def test_a_configuration_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights") as caught:
        look(make(tmp_path / "m", **{"model.safetensors": None}))
    assert "tokenizer.json" in (caught.value.hint or "")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    make(tmp_path / "m")
    with pytest.raises(ModelError, match="is a file"):
        look(tmp_path / "m" / "model.safetensors")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"{}", b'{"model_type": 3}', b"[" * 100_000])
def test_a_broken_configuration(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        look(make(tmp_path / "m", **{"config.json": content}))


def test_object_stores_are_not_directories() -> None:
    with pytest.raises(ModelError, match="not a local directory"):
        look("s3://bucket/model")
    with pytest.raises(AccessError, match="'https' is not known"):
        look("https://example.org/model")


def test_builtin_models_are_listed() -> None:
    with pytest.raises(NotFoundError, match="no built-in model 'nothing-alike'") as caught:
        look(BUILTIN + "nothing-alike")
    assert "built-in models:" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="no built-in model"):
        look(BUILTIN + "../assets")


# ---------------------------------------------------------------------------------------------------- hub names


def test_a_hub_name_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="downloads are off") as caught:
        look("Qwen/Qwen3-8B")
    assert "hf download Qwen/Qwen3-8B --local-dir Qwen3-8B" in (caught.value.hint or "")


def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`Qwen/Qwen3-8B` in the layout of huggingface_hub: snapshots of links to blobs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    entry = tmp_path / "hf" / "hub" / "models--Qwen--Qwen3-8B"
    make(entry / "blobs", **{"config.json": {"model_type": "qwen3"}})
    for revision in ("aaaa", "bbbb"):
        (entry / "snapshots" / revision).mkdir(parents=True)
        for blob in (entry / "blobs").iterdir():
            (entry / "snapshots" / revision / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("aaaa", "utf-8")
    return entry


def test_a_hub_name_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = hub_cache(tmp_path, monkeypatch)
    found = look("Qwen/Qwen3-8B", family="qwen")
    assert found.directory == entry / "snapshots" / "aaaa"
    assert "local hub cache" in found.notices[0]


def test_the_hub_cache_too_must_lie_under_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path, monkeypatch)
    with pytest.raises(AccessError, match="outside the allowed roots"):
        look("Qwen/Qwen3-8B", roots=[tmp_path / "elsewhere"])
    assert look("Qwen/Qwen3-8B", roots=[tmp_path]).model_type == "qwen3"


# ------------------------------------------------------------------------------------------- roots, links and trust


def test_outside_the_roots(tmp_path: Path) -> None:
    make(tmp_path / "secret" / "m")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret" / "m")
    for path in ("secret/m", "open/../secret/m", "open/link", "open/nothing/../../secret/m"):
        with pytest.raises(AccessError, match="outside the allowed roots"):
            look(tmp_path / path, roots=[tmp_path / "open"])


def test_links_inside_are_followed_only_to_the_roots(tmp_path: Path) -> None:
    make(tmp_path / "blobs")
    (tmp_path / "open" / "m").mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "open" / "m" / file.name).symlink_to(file)
    assert look(tmp_path / "open" / "m", roots=[tmp_path]).model_type == "llama"
    with pytest.raises(AccessError, match="a link in the model directory"):
        look(tmp_path / "open" / "m", roots=[tmp_path / "open"])


def test_a_link_to_nothing(tmp_path: Path) -> None:
    model = make(tmp_path / "m")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to("gone")
    with pytest.raises(ModelError, match="link to nothing: gone"):
        look(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickle_only_needs_both_the_statement_and_the_administrator(tmp_path: Path, name: str) -> None:
    model = make(tmp_path / "m", **{"model.safetensors": None, name: b"\x80\x02"})
    allowed = load_settings({"BYZER_FT_ALLOW_PICKLE": "true"})
    with pytest.raises(AccessError, match="pickle files only") as caught:
        look(model)
    assert name in caught.value.message
    assert 'allowPickle="true"' in (caught.value.hint or "")
    assert "BYZER_FT_ALLOW_PICKLE" in (caught.value.hint or "")
    with pytest.raises(AccessError) as caught:
        look(model, allow_pickle=True)
    assert 'allowPickle="true"' not in (caught.value.hint or "")
    with pytest.raises(AccessError):
        look(model, settings=allowed)
    assert look(model, allow_pickle=True, settings=allowed).pickle


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    assert not look(make(tmp_path / "m", **{"pytorch_model.bin": b"\x80\x02"})).pickle


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_custom_code_needs_both(tmp_path: Path, name: str) -> None:
    content = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    model = make(tmp_path / "m", **{name: content})
    allowed = load_settings({"BYZER_FT_TRUST_REMOTE_CODE": "true"})
    with pytest.raises(AccessError, match="brings its own Python code") as caught:
        look(model)
    assert name in caught.value.message
    assert 'trustRemoteCode="true"' in (caught.value.hint or "")
    with pytest.raises(AccessError):
        look(model, trust_remote_code=True)
    with pytest.raises(AccessError):
        look(model, settings=allowed)
    assert look(model, trust_remote_code=True, settings=allowed).remote_code


# -------------------------------------------------------------------------------------------------------- families


def test_another_family_names_both(tmp_path: Path) -> None:
    model = make(tmp_path / "m", **{"config.json": {"model_type": "baichuan"}})
    with pytest.raises(ModelError, match=r"is a 'baichuan' model, and the statement says 'llama2'") as caught:
        look(model, family="llama2")
    assert '"sft/baichuan" to fine-tune it, "custom/baichuan" to deploy it' in (caught.value.hint or "")
    assert look(model, family="auto").family == "baichuan"
    assert look(model, family="Baichuan").family == "baichuan"


def test_a_type_without_a_family_of_its_own_takes_auto(tmp_path: Path) -> None:
    model = make(tmp_path / "m", **{"config.json": {"model_type": "gemma3"}})
    with pytest.raises(ModelError) as caught:
        look(model, family="llama2")
    assert '"sft/auto" to fine-tune it' in (caught.value.hint or "")


def test_an_unknown_family(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown model family 'baichaun'") as caught:
        look(make(tmp_path / "m"), family="baichaun")
    assert caught.value.hint == "did you mean `baichuan`?"


# -------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        safetensors()[:-1],
        safetensors() + b"\0",
        safetensors()[:40],
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 5) + b"{nope",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"w": 12}',
    ],
)
def test_broken_weights(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match="model.safetensors") as caught:
        look(make(tmp_path / "m", **{"model.safetensors": content}))
    assert "copy it again" in (caught.value.hint or "")


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(ModelError) as caught:
        look(make(tmp_path / "m", **{"model.safetensors": pointer}))
    assert "git lfs pull" in (caught.value.hint or "")


def test_what_safetensors_writes_is_accepted(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 5)), "b": np.ones(7, np.int8)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    check_safetensors(tmp_path / "x.safetensors")


def test_shards_must_all_be_there(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"model.safetensors": None, "model.safetensors.index.json": index, "model-1.safetensors": safetensors()}
    with pytest.raises(ModelError, match="1 of 2 weight files are missing") as caught:
        look(make(tmp_path / "m", **files))
    assert "model-2.safetensors" in (caught.value.hint or "")
    whole = look(make(tmp_path / "n", **files, **{"model-2.safetensors": safetensors(9)}))
    assert [w.name for w in whole.weights] == ["model-1.safetensors", "model-2.safetensors"]


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "secret.safetensors").write_bytes(safetensors())
    with pytest.raises(ModelError, match="missing"):
        look(make(tmp_path / "m", **{"model.safetensors.index.json": index}))


# -------------------------------------------------------------------------------------------------------- adapters


def adapter(directory: Path, base: str | None, **files: Any) -> Path:
    content: dict[str, Any] = {
        "config.json": None,
        "model.safetensors": None,
        "adapter_config.json": {"base_model_name_or_path": base},
        "adapter_model.safetensors": safetensors(),
    }
    return make(directory, **(content | files))


def test_an_adapter_finds_its_base_where_peft_wrote_it(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    found = look(adapter(tmp_path / "a", str(base)), family="llama2", need_tokenizer=True)
    assert found.has_adapter
    assert found.base_directory == base
    assert (found.directory, found.model_type) == (tmp_path / "a", "llama")
    assert found.weights == (tmp_path / "a" / "adapter_model.safetensors",)


def test_the_base_beside_an_adapter_comes_first(tmp_path: Path) -> None:
    far = make(tmp_path / "far")
    path = adapter(
        tmp_path / "a", "no/where", **{"byzer_ft.json": {"format_version": 1, "base": {"directory": str(far)}}}
    )
    assert look(path).base_directory == far
    near = make(path / "pretrained_model")
    assert look(path).base_directory == near
    told = make(tmp_path / "told")
    assert look(path, base=str(told)).base_directory == told


def test_an_adapter_without_its_base_lists_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(NotFoundError, match="base model of the adapter") as caught:
        look(adapter(tmp_path / "a", "meta-llama/Llama-2-7b"))
    assert "meta-llama/Llama-2-7b" in caught.value.message
    assert "pretrained_model" in (caught.value.hint or "")


def test_an_adapter_of_another_family(tmp_path: Path) -> None:
    base = make(tmp_path / "base", **{"config.json": {"model_type": "falcon"}})
    with pytest.raises(ModelError, match="'falcon' model"):
        look(adapter(tmp_path / "a", str(base)), family="llama2")


def test_an_adapter_without_weights(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    with pytest.raises(ModelError, match="adapter without weights"):
        look(adapter(tmp_path / "a", str(base), **{"adapter_model.safetensors": None}))


@pytest.mark.parametrize("version", [2, None, "1"])
def test_a_marker_of_a_newer_program(tmp_path: Path, version: Any) -> None:
    with pytest.raises(ModelError, match="format version"):
        look(make(tmp_path / "m", **{"byzer_ft.json": {"format_version": version}}))
