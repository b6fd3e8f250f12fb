from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from byzer_ft.catalog import Catalog
from byzer_ft.errors import ConflictError, EngineError, NotFoundError


@pytest.fixture
def catalog(tmp_path: Path):
    catalog = Catalog(f"sqlite:///{tmp_path / 'deep' / 'catalog.sqlite'}")
    yield catalog
    catalog.close()


def test_a_job_goes_through_its_states(catalog: Catalog) -> None:
    catalog.add_job(uid="u1", owner="ann", name="sft-a", directory="/j/a", output_table="helper", sql="run …")
    assert catalog.job("ann", "sft-a").state == "queued"
    catalog.update_job("u1", state="running")
    started = catalog.job("ann", "sft-a").started_at
    catalog.update_job("u1", state="running", progress={"step": 3})
    catalog.update_job("u1", state="failed", reason="loss is NaN at step 4", tail="Traceback …")
    row = catalog.job("ann", "sft-a")
    assert (row.state, row.reason, row.progress, row.started_at) == (
        "failed",
        "loss is NaN at step 4",
        {"step": 3},
        started,
    )
    assert row.ended_at is not None and row.ended_at >= (started or 0)


def test_a_name_in_use_is_refused_and_free_again_afterwards(catalog: Catalog) -> None:
    catalog.add_job(uid="u1", owner="ann", name="x", directory="/j")
    with pytest.raises(ConflictError, match="already queued or running"):
        catalog.add_job(uid="u2", owner="ann", name="x", directory="/j")
    catalog.add_job(uid="u3", owner="bob", name="x", directory="/j")  # another owner's name is another name
    catalog.update_job("u1", state="succeeded")
    catalog.add_job(uid="u2", owner="ann", name="x", directory="/j")
    assert catalog.job("ann", "x").uid == "u2"


def test_an_unknown_job_lists_what_exists(catalog: Catalog) -> None:
    catalog.add_job(uid="u1", owner="ann", name="sft-tickets", directory="/j")
    with pytest.raises(NotFoundError) as caught:
        catalog.job("ann", "sft-ticket")
    assert caught.value.hint == "did you mean `sft-tickets`?"


def test_a_model_of_a_newer_job_is_not_finished_by_the_older(catalog: Catalog) -> None:
    catalog.put_model("ann", "helper", state="pending", job_uid="old")
    catalog.put_model("ann", "helper", state="pending", job_uid="new")
    catalog.finish_model("old", state="failed", reason="stopped")
    assert catalog.model("ann", "helper").state == "pending"
    catalog.finish_model("new", state="ready", directory="/d")
    assert catalog.model("ann", "helper").directory == "/d"


def test_functions_are_case_insensitive_and_owned(catalog: Catalog) -> None:
    catalog.put_function("ann", "Chat", application="app", deployment={}, function={"name": "chat"})
    assert catalog.function("ann", "CHAT").application == "app"
    assert catalog.function("bob", "chat") is None
    assert catalog.drop_function("ann", "cHaT") and not catalog.drop_function("ann", "chat")


def test_two_processes_write_at_once_without_loss(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    script = (
        "import sys; from byzer_ft.catalog import Catalog; c = Catalog(sys.argv[1])\n"
        "for i in range(40): c.put_model('ann', f'{sys.argv[2]}{i}', state='ready')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, url, tag]) for tag in "ab"]
    assert [p.wait(120) for p in running] == [0, 0]
    catalog = Catalog(url)
    assert len(catalog.models("ann")) == 80
    catalog.close()


def test_a_newer_catalog_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    Catalog(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as db:
        db.execute(sa.text("update meta set value = '99'"))
    engine.dispose()
    with pytest.raises(EngineError, match="format version 99"):
        Catalog(url)


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EngineError, match="cannot be used"):
        Catalog(f"sqlite:///{tmp_path / 'c.sqlite'}")


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        Catalog("nodb://me:secret@host/x")
    assert "secret" not in str(caught.value) + str(caught.value.hint)
