"""Fine-tunes that go wrong after their statement was accepted: real jobs on Ray, started side by side, looked at once.

A worker or an actor that is killed with SIGKILL, and one that is killed each time, are in tests/jobs/test_jobs.py
(`test_a_killed_worker_and_a_killed_actor_carry_on_from_the_last_checkpoint`,
`test_a_worker_that_is_killed_each_time_fails_the_job`); tokenizers without an end-of-text token, one by one, in
tests/training/test_finetune.py (`test_a_tokenizer_without_eos_takes_the_templates_end_of_turn`,
`test_a_tokenizer_without_any_end_is_refused`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from byzer_ft.errors import ConflictError, JobError, ResourceError
from byzer_ft.session import Session
from byzer_ft.settings import load_settings
from tests.tiny import write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(300)]

RUN = (
    'run command as LLM.`` where pretrainedModelType="sft/llama2" and name="{name}" and localModelDir="{model}" '
    'and inputTable="{rows}" and outputTable="{name}_out" and num_cpus="1" and detached="true" '
    'and max_steps="1" and gradient_accumulation_steps="1" and max_seq_length="64" {more};'
)


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"conversation": [{"human": q, "assistant": a} for q, a in pairs], "system": ""}


GOOD = [turns(("please explain", "the safety rules"))] * 4
MIXED = [
    *GOOD,
    turns(("please", "data"), ("explain the rules", "")),
    turns(("please", ""), ("explain", "data")),
    turns() | {"system": "You are a helpful assistant."},
    turns(("please explain", "because")),
]


@dataclass
class Ended:
    """A job that has ended: its row in `!show jobs`, its events, its directory."""

    row: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def directory(self) -> Path:
        return Path(self.row["directory"])

    @property
    def lines(self) -> str:
        return "\n".join(str(e["text"]) for e in self.events if e["event"] == "line")

    @property
    def final(self) -> Path:
        return self.directory / "finetune_model" / "final"


@pytest.fixture(scope="module")
def small_disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path] | None]:
    """Real file systems with little room, for one purpose each; None where this machine does not let us mount any."""
    disks: dict[str, Path] = {}
    try:
        for name, size in (("staging", "300k"), ("checkpoint", "700k"), ("final", "300k"), ("tables", "1m")):
            place = tmp_path_factory.mktemp("disk") / name
            place.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
                break
            disks[name] = place
        yield disks if len(disks) == 4 else None
    finally:
        for place in disks.values():
            subprocess.run(["umount", "--lazy", str(place)], check=False)


@pytest.fixture
def disks(small_disks: dict[str, Path] | None) -> dict[str, Path]:
    if small_disks is None:
        pytest.skip("this machine does not let this user mount a small file system")
    return small_disks


@pytest.fixture(scope="module")
def session(
    ray_cluster: str,
    models: dict[str, Path],
    small_disks: dict[str, Path] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Session]:
    """Its roots hold rows, models and small disks; its home, where jobs go by default, lies outside of them."""
    folder, home = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("home")
    roots = (folder, models["fine"].parent, models["nan"].parent, *(small_disks or {}).values())
    settings = load_settings({}, home=home, ray_address=ray_cluster, allow_pickle=True, allowed_roots=roots)
    with Session(settings, notice=lambda _: None) as session:
        for name, rows in (("good", GOOD), ("mixed", MIXED), ("bad", MIXED[4:7])):
            session.sql(f"load json.`{write_jsonl(folder / f'{name}.jsonl', rows)}` as {name};")
        yield session


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real models, one with a weight that is no number, one with pickled weights; all without pad and template."""
    import torch
    from safetensors.torch import load_file, save_file

    made, folder = {"fine": tiny_llama}, tmp_path_factory.mktemp("models")
    for name in ("nan", "pickled"):
        made[name] = folder / name
        shutil.copytree(tiny_llama, made[name])
    weights = load_file(made["nan"] / "model.safetensors")
    torch.save(weights, made["pickled"] / "pytorch_model.bin")
    (made["pickled"] / "model.safetensors").unlink()
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, made["nan"] / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def ended(session: Session, models: dict[str, Path], small_disks: dict[str, Path] | None) -> dict[str, Ended]:
    """All jobs, started one after the other and then waited for."""
    often = 'and save_steps="1" and `sft.int.lora_rank`="{rank}"'
    never = 'and save_strategy="no" and `sft.int.lora_rank`="{rank}"'
    started = {}

    def start(name: str, model: str = "fine", rows: str = "good", more: str = never.format(rank=4)) -> None:
        started[name] = session.sql(RUN.format(name=name, model=models[model], rows=rows, more=more))

    start("mixed", "pickled", "mixed", never.format(rank=4) + ' and allowPickle="true"')
    with pytest.raises(ConflictError) as conflict:
        start("mixed")
    assert "a job named 'mixed' is already" in conflict.value.message
    assert "!byzerllm model remove mixed;" in str(conflict.value.hint)
    start("all_bad", rows="bad")
    start("nan", model="nan")
    if small_disks is not None:
        start("checkpoint", more=often.format(rank=64) + f' and localPathPrefix="{small_disks["checkpoint"]}/jobs"')
        start("final", more=never.format(rank=64) + f' and localPathPrefix="{small_disks["final"]}/jobs"')
    events = {name: list(result) for name, result in started.items()}
    rows = {row["name"]: row for row in session.sql("!show jobs;").rows()}
    return {name: Ended(rows[name], found) for name, found in events.items()}


def _no_half_model(session: Session, job: Ended) -> None:
    """Neither `final` nor anything that looks like it, a row that says why, and every use of the table says it too."""
    assert not job.final.exists() and not list(job.directory.glob("finetune_model/final*"))
    assert json.loads((job.directory / "result.json").read_text("utf-8"))["state"] == "failed"
    table = f"{job.row['name']}_out"
    assert session.sql(f"select state, reason from {table} as looked_at;").rows() == [
        {"state": "failed", "reason": job.row["reason"]}
    ]
    for use in (
        f"save overwrite {table} as delta.`ai_model.{table}`;",
        f'run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto" and model="{table}" '
        'and udfName="never";',
    ):
        with pytest.raises(JobError) as caught:
            session.sql(use)
        assert f"model table '{table}' was not made: job {job.row['name']} failed" in caught.value.message
        assert str(job.row["reason"]) in caught.value.message and caught.value.span is not None
    assert session.sql("!show functions;").rows() == []


def test_rows_that_cannot_be_used_are_counted_and_shown(ended: dict[str, Ended]) -> None:
    """From pickled weights, which the statement and the settings of this session allow, and the worker too then."""
    job = ended["mixed"]
    assert job.row["state"] == "succeeded", job.row["reason"]
    data = next(e for e in job.events if e["event"] == "data")
    assert (data["rows_in"], data["used"], data["dropped"]) == (8, 5, 3)
    found = {reason: (entry["count"], entry["examples"][0]["row"]) for reason, entry in data["reasons"].items()}
    assert found == {"ends_with_user": (1, 5), "two_user_turns": (1, 6), "system_only": (1, 7)}
    assert "there are 8 data in dataset" in job.lines
    assert "3 of 8 rows are not used:" in job.lines
    for said in ("no answer to the last question", "two questions in a row", "a system message without a question"):
        assert said in job.lines


def test_a_tokenizer_without_pad_and_template_gets_both_and_keeps_them(ended: dict[str, Ended]) -> None:
    job = ended["mixed"]
    choices = "\n".join(next(e for e in job.events if e["event"] == "config")["choices"])
    assert "the tokenizer has no chat template: `llama2` is used" in choices
    assert "the tokenizer has no pad token: unk '<unk>' is used" in choices
    saved = json.loads((job.final / "tokenizer_config.json").read_text("utf-8"))
    assert saved["pad_token"] == "<unk>"
    template = job.final / "chat_template.jinja"
    assert "[INST]" in (template.read_text("utf-8") if template.is_file() else saved["chat_template"])


def test_when_every_row_is_bad_the_job_says_why(session: Session, ended: dict[str, Ended]) -> None:
    job = ended["all_bad"]
    assert job.row["state"] == "failed" and "none of the 3 rows" in job.row["reason"]
    for reason in ("1 x ends_with_user", "1 x two_user_turns", "1 x system_only"):
        assert reason in job.row["reason"]
    _no_half_model(session, job)


def test_a_loss_that_is_no_number_fails_with_the_step_and_a_hint(session: Session, ended: dict[str, Ended]) -> None:
    job = ended["nan"]
    assert job.row["state"] == "failed" and "the loss is nan at step 1 of 1" in job.row["reason"]
    with pytest.raises(JobError) as caught:
        session.sql("save overwrite nan_out as delta.`ai_model.nan`;")
    assert "lower `sft.float.learning_rate`" in str(caught.value.hint)
    _no_half_model(session, job)


@pytest.mark.parametrize("name", ["checkpoint", "final"])
def test_a_disk_that_is_full_while_it_trains(
    session: Session, ended: dict[str, Ended], disks: dict[str, Path], name: str
) -> None:
    job = ended[name]
    assert job.row["state"] == "failed", job.row
    assert "disk is full" in job.row["reason"] or "No space left" in job.row["reason"]
    assert not list(job.directory.glob("finetune_model/checkpoint-*"))
    _no_half_model(session, job)


def test_a_disk_that_is_full_while_staging(
    session: Session, ended: dict[str, Ended], models: dict[str, Path], disks: dict[str, Path]
) -> None:
    """The statement itself fails; the folder is gone, and the model table of that name is the one of before."""
    before = session.sql("select * from mixed_out as looked_at;").rows()
    assert before[0]["kind"] == "adapter"
    session.sql(
        "select concat(uuid(), uuid(), uuid()) as instruction, uuid() as output "
        "from (select explode(sequence(1, 20000)) as n) as many;"
    )
    more = f'and localPathPrefix="{disks["staging"]}/jobs"'
    script = RUN.format(name="staged", model=models["fine"], rows="many", more=more)
    with pytest.raises(ResourceError) as caught:
        session.sql(script.replace("staged_out", "mixed_out"))
    assert "No space left" in caught.value.message and "free some disk space" in str(caught.value.hint)
    row = next(row for row in session.sql("!show jobs;").rows() if row["name"] == "staged")
    assert row["state"] == "failed" and "No space left" in row["reason"]
    assert list((disks["staging"] / "jobs").iterdir()) == []
    assert session.sql("select * from mixed_out as looked_at;").rows() == before
    assert session.sql("select count(*) as n from many as again;").rows() == [{"n": 20000}]


@pytest.mark.parametrize("form", ["json", "parquet", "csv", "delta"])
def test_a_disk_that_is_full_while_a_table_is_saved(session: Session, disks: dict[str, Path], form: str) -> None:
    place = disks["tables"] / form
    where = ' where mode="path"' if form == "delta" else ""
    session.sql(f"select 'kept' as instruction, 'x' as output as old; save overwrite old as {form}.`{place}`{where};")
    session.sql(
        "select concat(uuid(), uuid(), uuid()) as instruction, uuid() as output "
        "from (select explode(sequence(1, 20000)) as n) as many;"
    )
    before = {p for p in disks["tables"].rglob("*") if p.is_file()}
    with pytest.raises(ResourceError) as caught:
        session.sql(f"save overwrite many as {form}.`{place}`{where};")
    assert "disk" in caught.value.render() and caught.value.span is not None
    assert {p for p in disks["tables"].rglob("*") if p.is_file()} == before
    again = session.sql(f"load {form}.`{place}`{where} as again; select instruction from again as out;")
    assert again.rows() == [{"instruction": "kept"}]
    shutil.rmtree(place)
