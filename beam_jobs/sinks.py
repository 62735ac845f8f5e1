"""Write files: each whole or not at all, under a name that a retried worker writes again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.spec.schema import ModelInput


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a Parquet file; readers see it whole or not at all."""
    _aside(path, lambda aside: pq.write_table(table, aside, compression="zstd"))


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write an Arrow IPC file, which is read back without decoding."""

    def write(aside: Path) -> None:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    _aside(path, write)


def read_arrow(path: str) -> pa.Table:
    """Read an Arrow IPC file; its pages are mapped, and come into memory as they are used."""
    with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _aside(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two attempts at one shard may run at once on a cluster; each has its own file aside.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def example_array(values: pa.Array, model_input: ModelInput) -> pa.Array:
    """A transformed feature as the examples hold it, from the lists that TF Transform answers.

    Returns:
        `id` int32, `ids` fixed-size list of int32, `number` float32, or `numbers` fixed-size
        list of float32, [rows].
    """
    kind = pa.int32() if model_input.kind in ("id", "ids") else pa.float32()
    flat = (
        values.flatten()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        else values
    )
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = flat.flatten()
    flat = flat.cast(kind)
    if model_input.kind in ("id", "number"):
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, model_input.length)
