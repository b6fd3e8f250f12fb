"""Sequences and a model with an adapter -> a trained adapter: transformers' Trainer with our batches and our watch.

The Trainer keeps what it is good at (accumulation, mixed precision, schedules, DDP, resuming). Ours are the order of
the sequences (a function of seed and epoch alone, so that a resumed run goes on where the broken one was), batches
padded to their own longest sequence, checkpoints that are complete or absent, and a watch that looks at every
optimizer step on all ranks together: loss, tokens, the wish to stop. Knows nothing of files of rows or of templates.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from byzer_ft.errors import JobError
from byzer_ft.training.config import Device, Resolved
from byzer_ft.training.data import Encoded, Sequences
from byzer_ft.training.model import CHECKPOINT_ASIDE

_TOTALS = "byzer_ft_totals.json"  # in each checkpoint: what the watch has counted so far
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    local_size: int

    @staticmethod
    def here() -> World:
        """From the process group, or from what torchrun, accelerate and Ray Train put into the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        rank, size, local = (int(os.environ.get(n, d)) for n, d in zip(names, (0, 1, 1), strict=True))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return World(rank, size, min(local, size))

    def sum(self, values: list[float], device: Any) -> list[float]:
        """The sums over all ranks; every rank must call it at the same place."""
        if self.size == 1 or not torch.distributed.is_initialized():
            return values
        tensor = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def wait(self) -> None:
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()


# -------------------------------------------------------------------------------------------------------- batches


class Rows(Dataset):
    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> Encoded:
        return self.sequences[i]


class ByLength(Sampler):
    """A random order in which neighbours have similar lengths, so that batches need little padding.

    It depends on seed and epoch alone. `epoch` is set by the watch when an epoch begins.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        if self.batch > 1:
            group = self.batch * 50
            parts = [order[i : i + group] for i in range(0, len(order), group)]
            order = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in parts])
            batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
            # A short last batch stays last; the others change places, or each group would begin with its longest.
            tail = [batches.pop()] if len(batches[-1]) < self.batch else []
            order = np.concatenate([*(batches[i] for i in rng.permutation(len(batches))), *tail])
        return iter(order.tolist())


class Collate:
    """Encoded rows -> tensors, padded to the longest of them. No mask where nothing is padded."""

    def __init__(self, pad: int, multiple: int) -> None:
        self.pad, self.multiple = pad, multiple

    def __call__(self, rows: list[Encoded]) -> dict[str, torch.Tensor]:
        longest = max(len(r.ids) for r in rows)
        if len(rows) > 1:
            longest = -(-longest // self.multiple) * self.multiple
        ids = np.full((len(rows), longest), self.pad, np.int64)
        labels = np.full((len(rows), longest), -100, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n], mask[i, :n] = row.ids, 1
            labels[i, :n] = np.where(row.target, row.ids, -100)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        return batch if mask.all() else batch | {"attention_mask": torch.from_numpy(mask)}


# ---------------------------------------------------------------------------------------------------------- watch


@dataclass
class Window:
    """What was seen since the last progress event."""

    loss: float = 0.0
    steps: int = 0
    tokens: float = 0.0
    since: float = field(default_factory=time.monotonic)


class Watch(TrainerCallback):
    """Looks at each optimizer step: reports progress, stops on request, and ends a run whose loss is no number."""

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool] | None,
        world: World,
        sampler: ByLength,
    ) -> None:
        self.report, self.should_stop, self.world, self.sampler = report, should_stop, world, sampler
        self.step_loss: Any = 0.0  # summed over the micro-batches of one step; a tensor on the device
        self.step_tokens: Any = 0
        self.grad_norm: Any = None
        self.totals = {"loss": 0.0, "steps": 0, "tokens": 0.0, "sequences": len(sampler)}
        self.stopped = False
        self.window = Window()
        self.began, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first_step, self.window = time.monotonic(), state.global_step, Window()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        wish = bool(self.should_stop and self.should_stop())
        wish_sum, loss, tokens = self.world.sum(
            [float(wish), float(self.step_loss), float(self.step_tokens)], args.device
        )
        loss /= self.world.size
        self.step_loss, self.step_tokens = 0.0, 0
        if not math.isfinite(loss):
            raise JobError(
                f"the loss is {loss} at step {state.global_step} of {state.max_steps}",
                hint="lower `sft.float.learning_rate`"
                + (', or give `sft.bool.bf16`="true" where the device has it' if args.fp16 else ""),
            )
        for counted in (self.totals, self.window.__dict__):
            counted["loss"] += loss
            counted["tokens"] += tokens
            counted["steps"] += 1
        if wish_sum:
            self.stopped = state.global_step < state.max_steps
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
        due = time.monotonic() - self.window.since >= _PROGRESS_SECONDS or self.totals["steps"] == 1
        if due and not control.should_log:
            self._progress(state, self.window.loss / self.window.steps, lr_scheduler.get_last_lr()[0])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        found = logs or {}
        logs = {k: round(v, 4) if k in ("loss", "epoch", "grad_norm", "train_loss") else v for k, v in found.items()}
        logs.pop("total_flos", None)
        if "train_loss" in logs:
            # The Trainer counts the steps of a resumed run, but only the losses since it was resumed.
            logs["train_loss"] = round(self.train_loss, 4)
        self.report({"event": "line", "text": str(logs)})
        if "loss" in logs:
            self._progress(state, found["loss"], found["learning_rate"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = str(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.report({"event": "checkpoint", "step": state.global_step, "path": path})

    @property
    def train_loss(self) -> float:
        return self.totals["loss"] / max(1, self.totals["steps"])

    def _progress(self, state: Any, loss: float, learning_rate: float) -> None:
        now = time.monotonic()
        done = max(1, state.global_step - self.first_step)
        norm = None if self.grad_norm is None else float(self.grad_norm)
        self.report(
            {
                "event": "progress",
                "step": state.global_step,
                "total_steps": state.max_steps,
                "epoch": round(state.epoch or 0.0, 4),
                "loss": round(loss, 6),
                "learning_rate": learning_rate,
                "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
                "tokens_per_second": round(self.window.tokens / max(1e-6, now - self.window.since), 1),
                "eta_seconds": round((now - self.began) / done * (state.max_steps - state.global_step), 1),
            }
        )
        self.window = Window()


# -------------------------------------------------------------------------------------------------------- trainer


class Tuner(Trainer):
    def __init__(self, *args: Any, watch: Watch, sampler: ByLength, world: World, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch, self._sampler, self._world = watch, sampler, world

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        return self._sampler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's own walks over all parameters for each micro-batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        mask = inputs.get("attention_mask")
        self.watch.step_tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch.step_loss += loss
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.watch.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.watch.grad_norm

    def _get_output_dir(self, trial: Any) -> str:
        return str(_writing(self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written aside and renamed: a checkpoint that can be seen is complete."""
        root, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        aside = _writing(root)
        try:
            if self._world.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            self._world.wait()
            super()._save_checkpoint(model, trial)
            self._world.wait()
            if self._world.rank == 0:
                (aside / name / _TOTALS).write_text(json.dumps(self.watch.totals), "utf-8")
                shutil.rmtree(root / name, ignore_errors=True)
                (aside / name).rename(root / name)
                for old in checkpoints(root)[: -self.args.save_total_limit]:
                    shutil.rmtree(old)
        finally:
            if self._world.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
        self._world.wait()


def _writing(out_dir: str | Path) -> Path:
    return Path(out_dir) / CHECKPOINT_ASIDE


def checkpoints(out_dir: Path) -> list[Path]:
    """The complete checkpoints in a directory, the oldest first."""
    found = [p for p in out_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted((p for p in found if (p / "trainer_state.json").is_file()), key=lambda p: int(p.name[11:]))


# Options that TrainingArguments knows by the same name and with the same meaning.
_SAME = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("logging_steps", "save_steps", "save_total_limit", "save_strategy", "lr_scheduler_type", "warmup_steps"),
    *("disable_tqdm", "optim", "seed", "fp16", "bf16", "dataloader_num_workers", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)


def make_trainer(
    adapter: Any,
    tokenizer: Any,
    sequences: Sequences,
    resolved: Resolved,
    *,
    out_dir: Path,
    device: Device,
    world: World,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] | None,
) -> Tuner:
    options = resolved.options
    sampler = ByLength(sequences.lengths, options.per_device_train_batch_size, options.seed)
    watch = Watch(report, should_stop, world, sampler)
    arguments = TrainingArguments(
        output_dir=str(out_dir),
        **{name: getattr(options, name) for name in _SAME},
        remove_unused_columns=False,
        report_to="none",
        use_cpu=device.kind == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.kind == "cuda",
        logging_nan_inf_filter=False,
        label_names=["labels"],
        log_level="error",
        log_level_replica="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process, one GPU: never torch's DataParallel
    tuner = Tuner(
        model=adapter,
        args=arguments,
        train_dataset=Rows(sequences),
        data_collator=Collate(tokenizer.pad_token_id, 8 if device.kind == "cuda" else 1),
        processing_class=tokenizer,
        callbacks=[watch],
        watch=watch,
        sampler=sampler,
        world=world,
    )
    from transformers.trainer_callback import PrinterCallback

    tuner.remove_callback(PrinterCallback)  # the watch reports what it would print
    if options.report_to == "tensorboard" and world.rank == 0:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        tuner.add_callback(TensorBoardCallback(SummaryWriter(str(out_dir.parent / "logging"))))
    return tuner


def restore_totals(tuner: Tuner, checkpoint: Path) -> None:
    """What the watch had counted when a checkpoint was written. Refuses a checkpoint of other rows."""
    try:
        totals = json.loads((checkpoint / _TOTALS).read_text("utf-8"))
        sequences = totals["sequences"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{checkpoint} is not a checkpoint of this program: {error}",
            hint=f"complete ones: {', '.join(p.name for p in checkpoints(checkpoint.parent)) or 'none'}",
        ) from None
    if sequences != tuner.watch.totals["sequences"]:
        raise JobError(
            f"{checkpoint} was trained on {sequences} sequences, and there are {tuner.watch.totals['sequences']} now",
            hint="resume with the rows and the max_seq_length that the run began with, or start a new one",
        )
    tuner.watch.totals |= totals
