"""Small model directories and damaged tables, made on the spot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from byzer_ft.lake import ModelMeta

FULL = ModelMeta(kind="full", family="llama")


def make_model(directory: Path, seed: int = 0, size: int = 3000) -> Path:
    """A directory with a config, weights of `size` random bytes, an empty file and names that need care."""
    files = {
        "config.json": b'{"model_type": "llama"}',
        "weights.bin": random.Random(seed).randbytes(size),
        "子目录/权重 'q\" 1.bin": b"\x00\xff" * 50,
        "sub/dir/empty": b"",
        "sub/same.bin": b'{"model_type": "llama"}',
    }
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def edit_manifest(table: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the only manifest of `table` as an attacker would: the row's own hash is right again afterwards."""
    (path,) = table.glob("manifest-*.parquet")
    rows = pq.ParquetFile(path).read()
    row = next(r for r in rows.to_pylist() if r["part"] == -1)
    document = json.loads(row["value"])
    change(document)
    row["value"] = json.dumps(document).encode()
    row |= {"size": len(row["value"]), "hash": blake3(row["value"]).hexdigest()}
    pq.write_table(pa.Table.from_pylist([row], schema=rows.schema), path)


def flip(path: Path, around: bytes) -> None:
    """Flips one bit in the middle of `around`, which must be in the file."""
    data = bytearray(path.read_bytes())
    at = data.index(around) + len(around) // 2
    data[at] ^= 0x10
    path.write_bytes(data)
