"""Divide tables by the hash of a column, so that rows which belong together meet in one shard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from beam_jobs.plan import ROW


def stable_hash(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Hash of each string, uint64 [rows]; the same on every machine and in every run."""
    text = (
        values.to_numpy(zero_copy_only=False)
        if isinstance(values, pa.Array)
        else (values.to_numpy())
    )
    return pd.util.hash_array(np.asarray(text, dtype=object))


def fractions(values: np.ndarray) -> np.ndarray:
    """Hashes as numbers in [0, 1), float64 [rows]."""
    return (values >> np.uint64(11)).astype(np.float64) / 2.0**53


def partition(table: pa.Table, column: str, shards: int) -> Iterator[tuple[int, pa.Table]]:
    """The table's rows by hash of a string column: (shard, its rows), no shard without rows."""
    yield from by_shard(table, (stable_hash(table[column]) % np.uint64(shards)).astype(np.int64))


def by_shard(table: pa.Table, shard: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """The table's rows by their shard (int64 [rows]), in ascending order of shards."""
    if not len(table):
        return
    order = np.argsort(shard, kind="stable")
    numbers, starts = np.unique(shard[order], return_index=True)
    bounds = [*starts.tolist(), len(table)]
    for number, start, end in zip(numbers.tolist(), bounds[:-1], bounds[1:], strict=True):
        # A copy, not a slice: a pickled slice carries the whole table.
        yield number, table.take(pa.array(order[start:end]))


def gather(tables: list[pa.Table]) -> pa.Table:
    """Join the parts of a shard in the order in which their rows were read."""
    table = pa.concat_tables(tables)
    rows = table[ROW].to_numpy()
    if len(rows) > 1 and (np.diff(rows) < 0).any():
        table = table.take(pa.array(np.argsort(rows, kind="stable")))
    return table.combine_chunks()
