"""Logits of a batch -> the next token of each row, by that row's own parameters. Knows nothing of models or queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from byzer_ft.serving.protocol import Generation


class Row(Protocol):
    """What drawing a token needs of a row."""

    ids: list[int]
    made: list[int]
    finish: str | None
    generator: torch.Generator | None

    @property
    def settings(self) -> Generation: ...


def pick(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """The next token of each row, by that row's own parameters; -1 where the logits are NaN."""
    for i, row in enumerate(rows):
        if row.settings.repetition_penalty != 1.0:
            _penalize(logits[i], row)
    tokens = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if row.settings.temperature > 0 and row.finish is None]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [rows[i] for i in drawn])
    return tokens.masked_fill(logits.isnan().any(-1), -1)


def _penalize(scores: torch.Tensor, row: Row) -> None:
    seen = torch.tensor(sorted(set(row.ids) | set(row.made)), device=scores.device)
    old, penalty = scores[seen], row.settings.repetition_penalty
    scores[seen] = torch.where(old > 0, old / penalty, old * penalty)


def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]

    settings = [row.settings for row in rows]
    # A temperature near zero would overflow; at 1e-4 the likeliest token is drawn anyway.
    scaled = logits / column([max(s.temperature, 1e-4) for s in settings])
    odds, order = scaled.softmax(-1).nan_to_num(0.0).sort(-1, descending=True)
    size = odds.shape[-1]
    rank = torch.arange(size, device=logits.device)[None]
    drop = odds.cumsum(-1) - odds >= column([s.top_p for s in settings])
    drop |= rank >= column([s.top_k or size for s in settings])
    drop |= odds < odds[:, :1] * column([s.min_p for s in settings])
    drop[:, 0] = False
    odds = odds.masked_fill(drop, 0.0)
    odds[:, 0].clamp_(min=1e-30)  # a row of NaN is reported by its caller, but must not stop the others here
    places = torch.multinomial(odds, 1)
    for i, row in enumerate(rows):
        if row.generator is not None:
            places[i] = torch.multinomial(odds[i], 1, generator=row.generator)
    return order.gather(-1, places)[:, 0]
