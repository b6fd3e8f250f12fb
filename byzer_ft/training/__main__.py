"""`python -m byzer_ft.training request.json`: a training request as a file -> an adapter directory, no cluster needed.

The file has the keys of a TrainingRequest, and `data` (staged Parquet shards with their manifest) and `out_dir`.
Without those two it is the `request.json` of a job directory: finetune_data and finetune_model beside it are meant.
Runs under `torchrun` and `accelerate launch` too. Exit status: 0 done, 1 failed, 130 stopped by Ctrl-C (at a step
boundary, with a checkpoint).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from byzer_ft.errors import ByzerError, Cancelled, OptionError
from byzer_ft.intents import TrainingRequest
from byzer_ft.training import finetune


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m byzer_ft.training", description=__doc__)
    parser.add_argument("request", type=Path, help="a JSON file")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from this checkpoint directory")
    parser.add_argument("--events", action="store_true", help="print every event as a line of JSON")
    given = parser.parse_args(arguments)
    wishes: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: wishes.append(n))
    try:
        request, data, out_dir = read_request(given.request)
        result = finetune(
            request,
            data,
            out_dir,
            _print_event if given.events else _print_line,
            should_stop=lambda: bool(wishes),
            resume_from=given.resume,
        )
        if result["state"] == "stopped":
            hint = f"--resume {result['checkpoint']} goes on" if result["checkpoint"] else "it kept no checkpoints"
            raise Cancelled(f"stopped at step {result['steps']}", hint=hint)
    except ByzerError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


def read_request(path: Path) -> tuple[TrainingRequest, Path, Path]:
    """The request, where its rows are and where the result goes; relative paths begin at the file's directory."""
    try:
        values = json.loads(path.read_text("utf-8"))
        home = path.absolute().parent
        data = home / values.pop("data", "finetune_data")
        out_dir = home / values.pop("out_dir", "finetune_model")
        return TrainingRequest.model_validate(values), data, out_dir
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise OptionError(f"{path}: {wrong}", hint=f"keys: {', '.join(TrainingRequest.model_fields)}") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OptionError(f"{path} cannot be read as a training request: {error}") from None


def _print_line(event: dict[str, Any]) -> None:
    if event["event"] == "line":
        print(event["text"], flush=True)
    elif event["event"] == "done":
        print(f"the adapter is in {event['final']}", flush=True)


def _print_event(event: dict[str, Any]) -> None:
    print(json.dumps(event, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
