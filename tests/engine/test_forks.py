"""A process with a running engine starts other processes, Ray's among them: none may die on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os, subprocess, sys
from pathlib import Path
from byzer_ft.engine import SparkEngine
from byzer_ft.intents import Query
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings

engine = SparkEngine(load_settings(home=Path(sys.argv[1])), PathGuard(None), Path(sys.argv[1]) / "s", print)
engine.query(Query(body="select explode(sequence(1, 1000)) as n", table="t"), None)
engine.arrow("t")
# A preexec_fn, as Ray has one, makes Python fork instead of spawning.
ended = [subprocess.run(["true"], preexec_fn=os.getpid, stderr=subprocess.DEVNULL).returncode for _ in range(100)]
engine.close()
print(sum(1 for code in ended if code != 0))
"""


def test_no_child_aborts_in_a_fork_handler(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0"
