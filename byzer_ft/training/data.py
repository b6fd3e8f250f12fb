"""Staged Parquet shards -> tokenised training sequences, and a report in which every row is accounted for.

A conversation that is too long is cut between turns into pieces that fit, each beginning with a question and keeping
the system message. A single turn that still does not fit is shortened: the answer keeps at least half of the room; a
question loses its beginning (the request is at its end), a system message its end, and keeps half of the prompt; what
is lost of an answer is its tail, with the end-of-turn token, so that the model does not learn to stop there.
Knows nothing of models, optimizers or devices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byzer_ft.chat import (
    REASONS,
    ChatTemplate,
    Conversation,
    Message,
    Rendered,
    RowError,
    Specials,
    conversation,
    detect,
    prompt,
    render,
)
from byzer_ft.errors import DataError, JobError

_COLUMNS = ("conversation", "instruction", "input", "output", "history", "system")
_BATCH = 512
_EXAMPLES = 3
_REASONS = REASONS | {
    "cut": "longer than max_seq_length: cut between turns into pieces",
    "truncated": "a single turn is longer than max_seq_length: shortened",
}


class Encoded(NamedTuple):
    ids: np.ndarray  # int32
    target: np.ndarray  # bool: this token carries the loss


# ------------------------------------------------------------------------------------------------------- encoding


class Encoder:
    """Conversations as token ids. The ids of every first prompt are those that inference makes of it.

    A text is tokenised in segments that are cut where answers begin and end, so no token straddles a border. Only a
    tokenizer that puts a blank before each text (SentencePiece's way) gets the whole text, and its offsets tell
    which tokens are answers.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, specials: Specials) -> None:
        self.template, self.specials = template, specials
        self._slow = None if getattr(tokenizer, "is_fast", False) else tokenizer
        if self._slow is None:
            self._fast = tokenizer.backend_tokenizer
            self._fast.no_truncation()  # tokenizer.json may carry either from its own training
            self._fast.no_padding()
            first = self._fast.encode("hello", add_special_tokens=False).tokens[:1]
            self.whole = bool(first) and first[0].startswith(("▁", "Ġ"))
        else:
            self.whole = False

    def conversations(self, many: Sequence[Conversation]) -> list[Encoded | RowError]:
        """One result a conversation; a RowError where the template cannot render it."""
        results: list[Encoded | RowError | None] = []
        rendered: list[Rendered] = []
        for one in many:
            try:
                rendered.append(render(one, self.template, self.specials))
                results.append(None)
            except RowError as error:
                results.append(error)
        encoded = iter(self._encode(rendered))
        return [next(encoded) if result is None else result for result in results]

    def one(self, messages: Sequence[Message]) -> Encoded:
        return self._encode([render(Conversation(tuple(messages)), self.template, self.specials)])[0]

    def prompt_length(self, messages: Sequence[Message]) -> int:
        return len(self._ids([prompt(messages, self.template, self.specials)])[0])

    def _encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        return self._encode_whole(rendered) if self.whole else self._encode_segments(rendered)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._slow is not None:
            return [self._slow(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [e.ids for e in self._fast.encode_batch(list(texts), add_special_tokens=False)]

    def _encode_segments(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        cut = [list(_segments(r)) for r in rendered]
        ids = iter(self._ids([text for segments in cut for text, _ in segments]))
        out = []
        for segments in cut:
            parts = [(next(ids), answer) for _, answer in segments]
            out.append(
                Encoded(
                    np.concatenate([np.asarray(p, np.int32) for p, _ in parts]),
                    np.concatenate([np.full(len(p), answer) for p, answer in parts]),
                )
            )
        return out

    def _encode_whole(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        out = []
        for r, e in zip(
            rendered, self._fast.encode_batch([r.text for r in rendered], add_special_tokens=False), strict=True
        ):
            offsets = np.asarray(e.offsets, np.int64).reshape(-1, 2)
            reached = np.maximum.accumulate(np.concatenate([[0], offsets[:-1, 1]]))
            # Byte-level tokenizers report a token without its leading blank: it begins where the last one ended.
            starts = np.minimum(offsets[:, 0], reached)
            target = np.zeros(len(starts), bool)
            straddles = False
            for begin, end in r.spans:
                target |= (starts >= begin) & (starts < end)
                straddles |= bool(((starts < begin) & (offsets[:, 1] > begin)).any())
            out.append(self._encode_segments([r])[0] if straddles else Encoded(np.asarray(e.ids, np.int32), target))
        return out


def _segments(rendered: Rendered) -> Iterator[tuple[str, bool]]:
    at = 0
    for begin, end in rendered.spans:
        yield rendered.text[at:begin], False
        yield rendered.text[begin:end], True
        at = end


# -------------------------------------------------------------------------------------------------------- fitting


def fit(whole: Encoded, one: Conversation, encoder: Encoder, limit: int) -> tuple[list[Encoded], int]:
    """The pieces of a conversation that has more than `limit` tokens, and how many turns were shortened.

    Raises RowError where not one token of an answer fits.
    """
    head = [one.messages[0]] if one.system is not None else []
    turns = one.turns
    pairs = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    costs = _costs(whole, len(pairs))
    head_cost = len(encoder._ids([one.system])[0]) if one.system else 0
    pieces: list[Encoded] = []
    shortened = at = 0
    while at < len(pairs):
        end, total = at + 1, costs[at] + (head_cost if at else 0)
        while end < len(pairs) and total + costs[end] <= limit:
            total += costs[end]
            end += 1
        # The costs are an estimate (a first turn may be written differently); the encoding decides.
        piece = encoder.one([*head, *(m for pair in pairs[at:end] for m in pair)])
        while len(piece.ids) > limit and end > at + 1:
            end -= 1
            piece = encoder.one([*head, *(m for pair in pairs[at:end] for m in pair)])
        if len(piece.ids) > limit:
            piece = _shorten(piece, [*head, *pairs[at]], encoder, limit)
            shortened += 1
        pieces.append(piece)
        at = end
    return pieces, shortened


def _costs(whole: Encoded, pairs: int) -> list[int]:
    """Tokens of each question with its answer."""
    ends = np.flatnonzero(np.diff(np.concatenate([whole.target, [False]]).astype(np.int8)) == -1) + 1
    if len(ends) != pairs:
        return [-(-len(whole.ids) // pairs)] * pairs
    return np.diff(np.concatenate([[0], ends])).tolist()


def _shorten(piece: Encoded, messages: list[Message], encoder: Encoder, limit: int) -> Encoded:
    asked = int(piece.target.argmax())
    answer = len(piece.ids) - asked
    room = limit - min(answer, max(limit - asked, limit // 2))
    if asked > room:
        *head, user, assistant = messages
        if head:
            system = head[0]["content"]
            bare = _asked(encoder, "", "?")
            share = bare + max(0, room - bare) // 2
            kept = _longest(len(system), share, lambda n: _asked(encoder, system[:n], "?"))
            head = [{"role": "system", "content": system[:kept]}] if system[:kept].strip() else []
        text, system = user["content"], head[0]["content"] if head else ""
        kept = _longest(len(text), room, lambda n: _asked(encoder, system, text[len(text) - n :] or "?"))
        question = {"role": "user", "content": text[len(text) - kept :] or "?"}
        piece = encoder.one([*head, question, assistant])
    piece = Encoded(piece.ids[:limit], piece.target[:limit])
    if not piece.target.any():
        raise RowError("does_not_fit")
    return piece


def _asked(encoder: Encoder, system: str, user: str) -> int:
    head = [{"role": "system", "content": system}] if system.strip() else []
    return encoder.prompt_length([*head, {"role": "user", "content": user}])


def _longest(upper: int, room: int, tokens: Any) -> int:
    """The greatest n <= upper with tokens(n) <= room, by halving; 0 where none is."""
    lower = 0
    while lower < upper:
        middle = (lower + upper + 1) // 2
        if tokens(middle) <= room:
            lower = middle
        else:
            upper = middle - 1
    return lower


# ----------------------------------------------------------------------------------------------------- the report


@dataclass
class DataReport:
    """What became of the rows: `rows_in == used + dropped`, always."""

    rows_in: int = 0
    conversations: int = 0
    used: int = 0
    pieces: int = 0
    overlong: int = 0
    cut: int = 0
    truncated: int = 0
    dropped: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest: int = 0
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, reason: str, row: int, text: str, detail: str = "") -> None:
        entry = self.reasons.setdefault(reason, {"count": 0, "meaning": _REASONS[reason], "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append({"row": row, "text": text} | ({"detail": detail} if detail else {}))

    def event(self) -> dict[str, Any]:
        return {"event": "data"} | dict(self.__dict__)

    def lines(self, limit: int) -> Iterator[str]:
        """For the job's log, after the guide's own line."""
        if self.overlong:
            yield (
                f"{self.overlong} of {self.rows_in} rows are longer than {limit} tokens (the longest has "
                f"{self.longest}): {self.cut} were cut between turns, {self.truncated} single turns were shortened; "
                f"there are {self.pieces} sequences to train on"
            )
        if self.dropped:
            yield f"{self.dropped} of {self.rows_in} rows are not used:"
        for reason, entry in self.reasons.items():
            if reason in ("cut", "truncated"):
                continue
            rows = ", ".join(str(e["row"]) for e in entry["examples"])
            more = ", …" if entry["count"] > len(entry["examples"]) else ""
            yield f"  {entry['count']} x {reason} ({entry['meaning']}): row {rows}{more}"


class Sequences:
    """All training sequences in two flat arrays: a dataset for torch that holds no Python object per token."""

    def __init__(self, pieces: Sequence[Encoded]) -> None:
        self.lengths = np.asarray([len(p.ids) for p in pieces], np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([p.ids for p in pieces]) if pieces else np.zeros(0, np.int32)
        self._target = np.concatenate([p.target for p in pieces]) if pieces else np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Encoded:
        end = self._ends[i]
        begin = end - self.lengths[i]
        return Encoded(self._ids[begin:end], self._target[begin:end])

    @property
    def highest_id(self) -> int:
        return int(self._ids.max())


# ------------------------------------------------------------------------------------------------------- reading


def prepare(data: Path, encoder: Encoder, limit: int) -> tuple[Sequences, DataReport]:
    """Reads, checks, renders, tokenises and fits all rows. Raises DataError where not one can be used."""
    report = DataReport()
    pieces: list[Encoded] = []
    for rows in _row_batches(data):
        _prepare_batch(rows, encoder, limit, report, pieces)
    report.pieces = len(pieces)
    report.tokens = sum(len(p.ids) for p in pieces)
    report.target_tokens = sum(int(p.target.sum()) for p in pieces)
    if report.rows_in != report.used + report.dropped:
        raise JobError(f"{report.rows_in} rows came in, {report.used} were used and {report.dropped} dropped")
    if not pieces:
        _refuse(report)
    return Sequences(pieces), report


def _prepare_batch(
    rows: list[dict[str, Any]], encoder: Encoder, limit: int, report: DataReport, pieces: list[Encoded]
) -> None:
    first = report.rows_in + 1
    report.rows_in += len(rows)
    good: list[tuple[int, dict[str, Any], Conversation]] = []
    for number, row in enumerate(rows, first):
        try:
            good.append((number, row, conversation(row)))
        except RowError as error:
            report.dropped += 1
            report.note(error.reason, number, _preview(row), error.message)
    report.conversations += len(good)
    encoded = encoder.conversations([one for _, _, one in good])
    for (number, row, one), whole in zip(good, encoded, strict=True):
        try:
            pieces += _usable(whole, one, encoder, limit, report, number, row)
            report.used += 1
        except RowError as error:
            report.dropped += 1
            report.note(error.reason, number, _preview(row), error.message)


def _usable(
    whole: Encoded | RowError,
    one: Conversation,
    encoder: Encoder,
    limit: int,
    report: DataReport,
    number: int,
    row: dict[str, Any],
) -> list[Encoded]:
    if isinstance(whole, RowError):
        raise whole
    if not whole.target.any():
        raise RowError("no_target")
    report.longest = max(report.longest, len(whole.ids))
    if len(whole.ids) <= limit:
        return [whole]
    report.overlong += 1
    found, shortened = fit(whole, one, encoder, limit)
    found = [p for p in found if p.target.any()]
    if len(found) > 1:
        report.cut += 1
        report.note("cut", number, _preview(row), f"{len(whole.ids)} tokens, {len(found)} pieces")
    if shortened:
        report.truncated += shortened
        report.note("truncated", number, _preview(row), f"{shortened} of its turns")
    return found


def _refuse(report: DataReport) -> None:
    if not report.rows_in:
        raise DataError("the input table is empty: there is nothing to train on")
    found = [f"{e['count']} x {reason}: {e['meaning']}" for reason, e in report.reasons.items()]
    examples = [f"row {x['row']}: {x['text']}" for e in report.reasons.values() for x in e["examples"]][:_EXAMPLES]
    raise DataError(
        f"none of the {report.rows_in} rows can be trained on: {'; '.join(found)}", hint="\n".join(examples)
    )


def _preview(row: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False, default=str)
    return text if len(text) <= 160 else text[:159] + "…"


def _row_batches(data: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in shards(data):
        try:
            file = pq.ParquetFile(shard)
            detect([(f.name, str(f.type)) for f in file.schema_arrow])
            wanted = [name for name in _COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"the staged rows in {shard} cannot be read: {error}", hint="stage them again") from None


def shards(data: Path) -> list[Path]:
    """The Parquet files that a complete staging holds; its manifest is written last."""
    manifest = data / "manifest.json"
    if not manifest.is_file():
        raise DataError(f"{data} holds no complete staging: manifest.json is missing", hint="stage the rows again")
    try:
        listed = json.loads(manifest.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{manifest} cannot be read: {error}", hint="stage the rows again") from None
    version = listed.get("format_version")
    if version != 1:
        raise DataError(f"{manifest} has format version {version}; this program reads 1", hint="upgrade byzer_ft")
    names = [str(shard["file"]) for shard in listed.get("shards", [])]
    broken = [name for name in names if Path(name).name != name or not (data / name).is_file()]
    if broken:
        raise DataError(f"{data} is incomplete: {', '.join(broken[:5])} is missing", hint="stage the rows again")
    return [data / name for name in names]
