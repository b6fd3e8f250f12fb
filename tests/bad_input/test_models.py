"""Model directories that are missing, unsafe or of another kind: refused by `load`, fine-tune and deployment alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from byzer_ft.errors import AccessError, ByzerError, ModelError, NotFoundError
from tests.bad_input.conftest import Desk
from tests.test_modeldir import make

ROWS = "select 'question' as instruction, 'answer' as output as sft_rows;"
LOAD = "load model.`{model}` as loaded;"
FINETUNE = (
    'run command as LLM.`` where pretrainedModelType="sft/{family}" and localModelDir="{model}" '
    'and inputTable="sft_rows" and outputTable="helper" {more};'
)
INFER = (
    'run command as LLM.`` where action="infer" and pretrainedModelType="custom/{family}" '
    'and localModelDir="{model}" and udfName="helper_chat" {more};'
)
WAYS = {"load": LOAD, "finetune": FINETUNE, "infer": INFER}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[..., str]:
    """way(model, family="auto", more=""): a statement that opens a model, in each of the three forms there are."""

    def statement(model: Path | str, family: str = "auto", more: str = "") -> str:
        return WAYS[request.param].format(model=model, family=family, more=more)

    return statement


@pytest.fixture(scope="module", autouse=True)
def rows(desk: Desk) -> None:
    desk.session.sql(ROWS)


@pytest.fixture(autouse=True)
def nothing_is_left(desk: Desk) -> None:
    yield
    assert desk.rows("!show models;") == [] and desk.rows("!show functions;") == []


def test_a_missing_directory_names_its_neighbours(desk: Desk, way: Callable[..., str]) -> None:
    (desk.folder / "models" / "Llama-2-7b-chat").mkdir(parents=True, exist_ok=True)
    given = desk.folder / "models" / "Llama-2-7b-chta"
    desk.refused(way(given), NotFoundError, f"{given} does not exist", "did you mean `Llama-2-7b-chat`?", at=(1, 1))
    desk.refused(way("builtin:tiny-chatt"), NotFoundError, "'tiny-chatt'", "did you mean `tiny-chat`?")


def test_a_hub_id_is_looked_up_in_the_local_cache_only(
    desk: Desk, way: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    desk.refused(
        way("Qwen/Qwen3-8B"), NotFoundError, "Qwen/Qwen3-8B is no directory here", "downloads are off",
        "hf download Qwen/Qwen3-8B --local-dir Qwen3-8B", "localModelDir",
    )  # fmt: skip
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "abc"
    make(snapshot, **{"config.json": {"model_type": "qwen3"}})
    if way("x").startswith("load"):
        assert desk.rows(way("Qwen/Qwen3-8B"))[0]["place"] == str(snapshot)
        desk.session._models.forget("loaded")
    else:  # found: what is refused now is the family that does not fit
        desk.refused(way("Qwen/Qwen3-8B", "llama2"), ModelError, "is a 'qwen3' model")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": None}, ["is not a model: config.json is missing", "model.safetensors"]),
        ({"model.safetensors": None}, ["no weights (*.safetensors) beside config.json", "it has: config.json"]),
        ({"config.json": b"{"}, ["config.json cannot be read"]),
        ({"config.json": {}}, ["config.json has no model_type"]),
        ({"model.safetensors": b"version https://git-lfs"}, ["is not a safetensors file", "git lfs pull"]),
        ({"model.safetensors": b"\x10\0\0\0\0\0\0\0{}"}, ["is not a safetensors file", "copy it again"]),
        (
            {"model.safetensors.index.json": {"weight_map": {"a": "gone-1-of-2.safetensors"}}},
            ["is incomplete: 1 of 1 weight files are missing", "gone-1-of-2.safetensors"],
        ),
    ],
)
def test_a_directory_that_is_no_model_shows_what_it_has(
    desk: Desk, way: Callable[..., str], tmp_path: Path, files: dict[str, object], words: list[str]
) -> None:
    model = make(tmp_path / "m", **files)
    desk.refused(way(model), ModelError, str(model), *words, at=(1, 1))


def test_a_file_is_not_a_directory(desk: Desk, way: Callable[..., str], tmp_path: Path) -> None:
    file = make(tmp_path / "m") / "config.json"
    desk.refused(way(file), ModelError, "is a file, not a model directory", f"name its directory: {file.parent}")


def test_the_tokenizer_may_be_missing_until_it_is_trained_or_deployed(
    desk: Desk, way: Callable[..., str], tmp_path: Path
) -> None:
    model = make(tmp_path / "m", **{"tokenizer.json": None, "tokenizer_config.json": None})
    if way("x").startswith("load"):
        assert desk.rows(way(model))[0]["kind"] == "full"
        desk.session._models.forget("loaded")
    else:
        desk.refused(way(model), ModelError, "has no tokenizer", "tokenizer.model", "tokenizer_config.json")


def test_pickle_only_weights_need_two_people(desk: Desk, way: Callable[..., str], tmp_path: Path) -> None:
    model = make(tmp_path / "m", **{"model.safetensors": None, "pytorch_model.bin": b"never unpickled"})
    words = ("pytorch_model.bin", "run code", "convert them to safetensors", "BYZER_FT_ALLOW_PICKLE=true")
    desk.refused(way(model), AccessError, *words, 'allowPickle="true"')
    if not way("x").startswith("load"):
        error = desk.refused(way(model, more='and allowPickle="true"'), AccessError, *words)
        assert 'allowPickle="true"' not in str(error.hint), "half of it is given already"


def test_code_of_a_model_needs_two_people(desk: Desk, way: Callable[..., str], tmp_path: Path) -> None:
    config = {"model_type": "baichuan", "auto_map": {"AutoModel": "modeling_baichuan.BaichuanForCausalLM"}}
    trap = b"import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
    model = make(tmp_path / "m", **{"config.json": config, "modeling_baichuan.py": trap})
    words = ("its own Python code (auto_map in config.json)", "BYZER_FT_TRUST_REMOTE_CODE=true")
    desk.refused(way(model), AccessError, *words, 'trustRemoteCode="true"')
    if not way("x").startswith("load"):
        error = desk.refused(way(model, more='and trustRemoteCode="true"'), AccessError, *words)
        assert 'trustRemoteCode="true"' not in str(error.hint)
    assert not (model / "ran").exists()


def test_the_administrator_alone_is_not_enough(
    make_desk: Callable[..., Desk], way: Callable[..., str], tmp_path: Path
) -> None:
    trusting = make_desk(allow_pickle=True, trust_remote_code=True)
    trusting.session.sql(ROWS)
    pickled = make(tmp_path / "p", **{"model.safetensors": None, "pytorch_model.bin": b""})
    coded = make(tmp_path / "c", **{"config.json": {"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}})
    trusting.refused(way(pickled), AccessError, 'allowPickle="true"')
    trusting.refused(way(coded), AccessError, 'trustRemoteCode="true"')


@pytest.mark.parametrize("statement", ["finetune", "infer"])
def test_both_together_open_the_door(make_desk: Callable[..., Desk], tmp_path: Path, statement: str) -> None:
    """What is refused then is only the cluster, which this test puts out of reach: everything before it passed."""
    desk = make_desk(allow_pickle=True, trust_remote_code=True, ray_address="nowhere.invalid:1")
    desk.session.sql(ROWS)
    config = {"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}
    files = {"model.safetensors": None, "pytorch_model.bin": b"", "config.json": config}
    model = make(tmp_path / "p", **files)
    more = 'and allowPickle="true" and trustRemoteCode="true"'
    with pytest.raises(ByzerError) as caught:
        desk.session.sql(WAYS[statement].format(model=model, family="llama2", more=more))
    assert "nowhere.invalid" in caught.value.render()


@pytest.mark.parametrize("statement", ["finetune", "infer"])
def test_a_checkpoint_of_another_family(desk: Desk, tmp_path: Path, statement: str) -> None:
    model = make(tmp_path / "m", **{"config.json": {"model_type": "qwen3"}})
    error = desk.refused(
        WAYS[statement].format(model=model, family="llama2", more=""),
        ModelError, f"{model} is a 'qwen3' model, and the statement says 'llama2'", "llama models",
    )  # fmt: skip
    assert f'"{"sft" if statement == "finetune" else "custom"}/qwen3"' in str(error.hint), error.hint


def test_links_are_followed_to_allowed_targets_only(
    make_desk: Callable[..., Desk], way: Callable[..., str], tmp_path: Path
) -> None:
    """As in a hub snapshot, whose files are links into `blobs`: inside the roots they work, outside they do not."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    model = make(inside / "m")
    outside.mkdir()
    desk = make_desk(allowed_roots=(inside,), home=inside / "home")
    desk.session.sql(ROWS)
    (model / "model.safetensors").rename(inside / "blob")
    (model / "model.safetensors").symlink_to(inside / "blob")
    assert desk.rows(LOAD.format(model=model))[0]["kind"] == "full"
    desk.session._models.forget("loaded")
    (inside / "blob").rename(outside / "blob")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(outside / "blob")
    error = desk.refused(way(model), AccessError, "a link in the model directory", "is outside the allowed roots")
    assert str(inside) in str(error.hint)
    (inside / "whole").symlink_to(outside, target_is_directory=True)
    desk.refused(way(inside / "whole"), AccessError, "is outside the allowed roots")


def test_an_adapter_may_not_name_a_base_outside(make_desk: Callable[..., Desk], tmp_path: Path) -> None:
    from tests.test_modeldir import safetensors

    inside = tmp_path / "inside"
    secret = make(tmp_path / "outside" / "base")
    adapter = inside / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(safetensors())
    desk = make_desk(allowed_roots=(inside,), home=inside / "home")
    desk.session.sql(ROWS)
    for base in (str(secret), f"file://{secret}", "../../outside/base", f"{inside}/../outside/base"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        for statement in (LOAD, INFER):
            with pytest.raises((AccessError, NotFoundError)) as caught:
                desk.session.sql(statement.format(model=adapter, family="auto", more=""))
            assert "config.json" not in caught.value.render()


def test_an_unknown_model_table_lists_what_exists(desk: Desk, tmp_path: Path) -> None:
    desk.session.sql(f"load model.`{make(tmp_path / 'm')}` as tiny;")
    by_table = 'run command as LLM.`` where {0}pretrainedModelType="{1}/auto" and model="tinny" and {2};'
    for script in (
        by_table.format("", "sft", 'inputTable="sft_rows"'),
        by_table.format('action="infer" and ', "custom", 'udfName="f"'),
    ):
        desk.refused(script, NotFoundError, "there is no model table 'tinny'", "did you mean `tiny`?")
    desk.session._models.forget("tiny")


def test_a_function_that_is_not_deployed_cannot_be_reconnected_or_removed(desk: Desk) -> None:
    script = 'run command as LLM.`` where action="infer" and reconnect="true" and udfName="nobody";'
    desk.refused(script, NotFoundError, "there is no deployed function 'nobody'", "functions: none")
    desk.refused('!byzerllm model remove "nobody";', NotFoundError, "no function or job 'nobody'", "functions: none")
    desk.refused("!kill nobody;", NotFoundError, "there is no job 'nobody'", "jobs: none")
