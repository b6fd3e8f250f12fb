"""The guide's three scripts as written, but for their paths, on rows and a Llama checkpoint that the test makes.

Rows: 33 MOSS conversations, every one longer than 512 tokens, as the guide's own rows are. Real Sail, Ray, QLoRA,
Delta and Serve; the checkpoint once without and once with a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from byzer_ft.session import Session
from byzer_ft.settings import load_settings
from tests.tiny import moss_rows, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(600)]

LOAD = """
load json.`{rows}` where
inferSchema="true"
as sft_data;
!byzerllm setup sft;
!byzerllm setup "num_gpus=4";
"""

FIRST = """
run command as LLM.`` where
and localPathPrefix="{jobs}"
-- 指定模型类型
and pretrainedModelType="sft/llama2"
-- 指定模型
and localModelDir="{model}"
and model="command"
-- 指定微调数据表
and inputTable="sft_data"
-- 输出新模型表
and outputTable="llama2_300"
-- 微调参数
and  detached="true"
and `sft.int.max_seq_length`="512";
"""

SECOND = """
load model.`{model}` as llama2_7b;
save overwrite llama2_7b as delta.`ai_model.llama2_7b_model`;
load delta.`ai_model.llama2_7b_model` as llama2_7b;
run command as LLM.`` where
and localPathPrefix="{jobs}"
and pretrainedModelType="sft/llama2"
and model="llama2_7b"
and inputTable="sft_data"
and outputTable="llama2_300"
and `sft.int.max_seq_length`="512";
save overwrite llama2_300 as delta.`ai_model.llama2_300`;
"""

DEPLOY = """
!byzerllm setup single;
!byzerllm setup "resource.master=0.01";
run command as LLM.`` where
action="infer"
and localPathPrefix="{jobs}/infer"
and localModelDir="{final}"
and pretrainedModelType="custom/llama2"
and udfName="llama2_chat"
and modelTable="command"
and max_new_tokens="8";
"""

ASK = """
select llama2_chat(llm_param(map("system_msg",'You are a helpful assistant.',"instruction",'推荐一部电影'))) as q as q1;
select llm_response_predict(q) as content from q1 as out;
"""

PLAIN = """
load json.`{questions}` as sft_data;
select llama2_chat(instruction) as answer from sft_data as out;
"""

RECONNECT = """
run command as LLM.`` where action="infer" and reconnect="true" and pretrainedModelType="custom/llama2"
and udfName="llama2_chat";
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's own 33 rows where they lie beside the checkout, else 33 that are as long."""
    own = Path(__file__).parents[3] / "shared" / "data" / "firefly_dummy_data.jsonl"
    if own.is_file():
        return own
    made = moss_rows(turn_words=(160, 260))
    return write_jsonl(tmp_path_factory.mktemp("guide") / "firefly_dummy_data.jsonl", made)


class Lines:
    """What the session said: every notice and every line of a job."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.events: list[dict[str, object]] = []

    def text(self) -> str:
        return "\n".join([*self.notices, *(str(e.get("text", "")) for e in self.events)])


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def session(home: Path, ray_cluster: str, lines: Lines) -> Iterator[Session]:
    with Session(
        load_settings(home=home, ray_address=ray_cluster), notice=lines.notices.append, show=lines.events.append
    ) as session:
        yield session
        for function in session.sql("!show functions;").rows():
            session.sql(f"!byzerllm model remove {function['name']};")


def test_the_first_script_trains_and_its_model_is_deployed_and_asked(
    session: Session, lines: Lines, tmp_path: Path, rows: Path, tiny_llama: Path
) -> None:
    import ray

    names = {"rows": rows, "jobs": tmp_path / "sft" / "jobs", "model": tiny_llama}
    job = session.sql((LOAD + FIRST).format(**names))
    assert job.job and job.job.startswith("sft-")
    actor = {"name": job.job, "namespace": f"byzer_ft.{session.settings.owner}"}
    assert actor in ray.util.list_named_actors(all_namespaces=True)
    assert any("4" in n and "GPU" in n and "CPU" in n for n in lines.notices), lines.notices
    events = list(job)
    said = [str(e.get("text")) for e in events if e["event"] == "line"]
    text = "\n".join(said)
    for line in (
        "Loading data: ",
        "there are 33 data in dataset",
        "*** starting training ***",
        "***** train metrics *****",
        f"[{job.job}] Train Actor is already finished. You can check the model in: ",
    ):
        assert line in text, text
    data = next(e for e in events if e["event"] == "data")
    assert data["rows_in"] == 33 and data["used"] == 33 and data["cut"] == 33 and data["pieces"] > 33

    row = session.sql("!show jobs;").rows()[0]
    assert (row["state"], row["name"]) == ("succeeded", job.job)
    final = Path(row["directory"]) / "finetune_model" / "final"
    assert (final / "adapter_model.safetensors").is_file()
    assert Path(row["directory"]).parent == (tmp_path / "sft" / "jobs").resolve()
    assert json.loads((Path(row["directory"]) / "result.json").read_text("utf-8"))["state"] == "succeeded"

    session.sql(DEPLOY.format(jobs=tmp_path, final=final))
    content = session.sql(RECONNECT + ASK).rows()
    assert len(content) == 1 and isinstance(content[0]["content"], str)

    questions = [{"instruction": "请问我是谁？"}, {"instruction": None}, {"instruction": "x"}, {"instruction": "x"}]
    path = write_jsonl(tmp_path / "q.jsonl", questions)
    answers = [row["answer"] for row in session.sql(PLAIN.format(questions=path)).rows()]
    assert answers[1] is None and answers[2] == answers[3] and all(isinstance(answers[i], str) for i in (0, 2))


def test_the_second_script_goes_through_the_lake(
    session: Session, lines: Lines, tmp_path: Path, rows: Path, tiny_llama_chat: Path
) -> None:
    names = {"rows": rows, "jobs": tmp_path / "jobs", "model": tiny_llama_chat}
    session.sql((LOAD + SECOND).format(**names))
    stored = session.sql("load delta.`ai_model.llama2_300` as tuned;").rows()
    assert stored[0]["kind"] == "adapter" and stored[0]["base_hash"]
    session.sql("load delta.`ai_model.llama2_7b_model` as base;")
    assert session.sql("!desc base;").rows()[0]["root_hash"] == stored[0]["base_hash"]
    session.sql(
        'run command as LLM.`` where action="infer" and pretrainedModelType="custom/llama2" '
        'and udfName="tuned_chat" and modelTable="tuned" and max_new_tokens="4";'
    )
    assert len(session.sql("select tuned_chat('你好') as a as out;").rows()) == 1
    before = session.sql("!show functions;").rows()[0]["application"]
    # The same function on another base: another application, and the old one goes.
    session.sql(
        'run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto" '
        'and udfName="tuned_chat" and localModelDir="builtin:tiny-chat" and max_new_tokens="4";'
    )
    assert len(session.sql("select tuned_chat('hello') as a as out;").rows()) == 1
    after = session.sql("!show functions;").rows()[0]["application"]
    standing = session._rooms.serving.status()
    assert after != before and after in standing and before not in standing
