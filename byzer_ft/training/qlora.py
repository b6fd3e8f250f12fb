"""Staged rows + a base model -> a LoRA adapter directory. One function, the same for one process and for many.

Every rank reads and tokenises all rows by itself: nobody waits for rank 0 until a time-out, and all come to the same
sequences. Only rank 0 reports and writes. Knows nothing of SQL, Ray or Delta.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ByzerError, ModelError
from byzer_ft.intents import TrainingRequest
from byzer_ft.modeldir import ModelDir, open_model_dir
from byzer_ft.paths import PathGuard
from byzer_ft.settings import load_settings
from byzer_ft.training import Report
from byzer_ft.training.config import Device, Resolved, resolve, sequence_limit
from byzer_ft.training.data import DataReport, Encoder, Sequences, prepare

if TYPE_CHECKING:
    from byzer_ft.training.trainer import World


def finetune(
    request: TrainingRequest,
    data: Path,
    out_dir: Path,
    report: Report,
    *,
    should_stop: Callable[[], bool] | None = None,
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """QLoRA on the rows in `data`; see `byzer_ft.training.finetune`."""
    _stay_offline()
    model = _base_model(request)
    import torch

    from byzer_ft.training import model as models
    from byzer_ft.training.trainer import World

    world = World.here()
    say = report if world.rank == 0 else _silent
    _own_threads(world.local_size)
    device = _device()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if world.rank == 0:
            models.remove_leftovers(out_dir)
        with _quiet():
            return _run(request, model, data, out_dir, world, device, say, should_stop, resume_from)
    except ByzerError:
        raise
    except Exception as error:
        explained = models.explain(error, out_dir)
        if explained is None:
            raise
        raise explained from error
    finally:
        if device.kind == "cuda":
            torch.cuda.empty_cache()


def _run(
    request: TrainingRequest,
    model: ModelDir,
    data: Path,
    out_dir: Path,
    world: World,
    device: Device,
    say: Report,
    should_stop: Callable[[], bool] | None,
    resume_from: Path | None,
) -> dict[str, Any]:
    """The stages, one after the other."""
    from transformers import set_seed

    from byzer_ft.training import model as models
    from byzer_ft.training.trainer import make_trainer, restore_totals

    tokenizer, template, specials, choices = models.load_tokenizer(model)
    limit = sequence_limit(request.training, model.config)
    sequences, rows = prepare(data, Encoder(tokenizer, template, specials), limit[0])
    _check_vocabulary(sequences, model)
    resolved = resolve(
        request.training,
        sequences=len(sequences),
        world_size=world.size,
        device=device,
        limit=limit,
        tensorboard=_installed("tensorboard"),
        terminal=os.isatty(2),
    )
    _announce(say, request, model, resolved, rows, data, template, [*model.notices, *choices], device, world.size)

    set_seed(resolved.options.seed)
    base = models.load_base(model, device, resolved.precision)
    adapter, layers = models.add_adapter(base, resolved.options)
    _line(say, _parameters(adapter, layers))
    tuner = make_trainer(
        adapter,
        tokenizer,
        sequences,
        resolved,
        out_dir=out_dir,
        device=device,
        world=world,
        report=say,
        should_stop=should_stop,
    )
    if resume_from is not None:
        restore_totals(tuner, Path(resume_from))
        _line(say, f"resuming from {resume_from}")
    _line(say, "*** starting training ***")
    trained = tuner.train(resume_from_checkpoint=str(resume_from) if resume_from else None)

    metrics = _metrics(say, tuner, trained.metrics)
    result = {"steps": tuner.state.global_step, "metrics": metrics, "data": rows.event()}
    if tuner.watch.stopped:
        return {"state": "stopped", "checkpoint": _last_checkpoint(out_dir), **result}
    final = out_dir / "final"
    if world.rank == 0:
        summary = {"options": resolved.options.model_dump(), "metrics": metrics, "layers": layers}
        summary |= {"steps": tuner.state.global_step, "rows": rows.rows_in, "world_size": world.size}
        models.save_final(out_dir, adapter, tokenizer, request=request, model=model, template=template, summary=summary)
    world.wait()
    say({"event": "done", "final": str(final)})
    return {"state": "succeeded", "final": str(final), **result}


def _stay_offline() -> None:
    """No downloads and no telemetry, whatever the libraries' defaults are. Before any of them is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that our libraries cause in each other, and that nobody who reads a log can mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`[a-z_]*gradient_checkpointing[a-z_]*` is deprecated", FutureWarning)  # peft
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)  # announced by us
        yield


def _base_model(request: TrainingRequest) -> ModelDir:
    settings = load_settings()
    roots = settings.allowed_roots
    guard = PathGuard(None if roots is None else (*roots, settings.cache_root))
    model = open_model_dir(
        request.base.directory,
        guard=guard,
        settings=settings,
        family=request.family,
        allow_pickle=request.allow_pickle,
        trust_remote_code=request.trust_remote_code,
        need_tokenizer=True,
    )
    if model.has_adapter:
        raise ModelError(
            f"{request.base.directory} is an adapter: training starts from a base model",
            hint=f"name its base: {model.base_directory}",
        )
    return model


def _own_threads(local_size: int) -> None:
    """As many threads as this worker owns: OMP_NUM_THREADS where it is set (Ray does), else its share of the CPUs."""
    import torch

    given = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(given) if given.isdigit() and int(given) else max(1, _cpus() // local_size))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device() -> Device:
    import torch

    if not torch.cuda.is_available():
        return Device("cpu", "CPU")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # `including_emulation=False`: an emulated bfloat16 is slower than fp16 with loss scaling.
    return Device("cuda", torch.cuda.get_device_name(), bf16=torch.cuda.is_bf16_supported(including_emulation=False))


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _check_vocabulary(sequences: Sequences, model: ModelDir) -> None:
    size = model.config.get("vocab_size")
    if isinstance(size, int) and sequences.highest_id >= size:
        raise ModelError(
            f"the tokenizer in {model.directory} makes token {sequences.highest_id}, but the model knows {size} tokens",
            hint="tokenizer and weights are of different models",
        )


# ------------------------------------------------------------------------------------------------------ reporting


def _announce(
    say: Report,
    request: TrainingRequest,
    model: ModelDir,
    resolved: Resolved,
    rows: DataReport,
    data: Path,
    template: Any,
    choices: list[str],
    device: Device,
    world_size: int,
) -> None:
    """The configuration first, then the rows, then the same in words for the log."""
    say(
        {
            "event": "config",
            "name": request.name,
            "values": resolved.values,
            "total_steps": resolved.total_steps,
            "base": str(model.directory),
            "model_type": model.model_type,
            "template": {"name": template.name, "source": template.source},
            "device": device.name,
            "precision": resolved.precision,
            "quantization": "nf4, double quantisation",
            "world_size": world_size,
            "choices": choices,
        }
    )
    say(rows.event())
    _line(say, f"Loading data: {data}")
    _line(say, f"there are {rows.rows_in} data in dataset")
    for line in rows.lines(resolved["max_seq_length"]):
        _line(say, line)
    for name, entry in resolved.values.items():
        if entry["source"] in ("adapted", "inherited"):
            _line(say, f"{name} = {entry['value']} ({entry['source']}: {entry['reason']})")
    for choice in choices:
        _line(say, choice)
    for warning in resolved.warnings:
        say({"event": "warning", "text": warning})
        _line(say, f"warning: {warning}")


def _parameters(adapter: Any, layers: list[str]) -> str:
    trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    return f"training {trained:,} parameters: LoRA on {', '.join(layers)}"


def _metrics(say: Report, tuner: Any, found: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        "epoch": round(tuner.state.epoch or 0.0, 4),
        "train_loss": tuner.watch.train_loss,
        "train_runtime": found["train_runtime"],
        "train_samples_per_second": found["train_samples_per_second"],
        "train_steps_per_second": found["train_steps_per_second"],
    }
    _line(say, "***** train metrics *****")
    for name, value in metrics.items():
        _line(say, f"  {name:<24} = {_duration(value) if name == 'train_runtime' else round(value, 4):>10}")
    metrics["tokens"] = int(tuner.watch.totals["tokens"])
    say({"event": "metrics", **metrics})
    return metrics


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{rest:05.2f}"


def _last_checkpoint(out_dir: Path) -> str | None:
    from byzer_ft.training.trainer import checkpoints

    found = checkpoints(out_dir)
    return str(found[-1]) if found else None


def _line(say: Report, text: str) -> None:
    say({"event": "line", "text": text})


def _silent(event: dict[str, Any]) -> None:
    """Ranks other than 0 report nothing."""
