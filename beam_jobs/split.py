"""Divide rows into train, validation and test: by day, or by a stable hash."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

from beam_jobs.partition import fractions, stable_hash
from beam_jobs.plan import DAY, IDENTITY, IMPRESSION, REQUEST, ROW
from recsys.spec.records import FractionSplit, Spec, TimeSplit
from recsys.spec.schema import SPLITS
from recsys.splitmix import mixed

OUTSIDE = len(SPLITS)
_EPOCH = date(1970, 1, 1)


def split_of(rows: pa.Table, spec: Spec) -> np.ndarray:
    """The number of each row's split (0 train, 1 validation, 2 test, 3 outside), int64 [rows]."""
    split = spec.data.split
    if isinstance(split, FractionSplit):
        return _by_hash(rows, split)
    return _by_day(rows[DAY].to_numpy(), split)


def _by_day(day: np.ndarray, split: TimeSplit) -> np.ndarray:
    bounds = [(split.train_to - _EPOCH).days, (split.validation_to - _EPOCH).days]
    if split.test_to is not None:
        bounds.append((split.test_to - _EPOCH).days)
    return np.searchsorted(np.array(bounds), day, side="left")


def _by_hash(rows: pa.Table, split: FractionSplit) -> np.ndarray:
    share = fractions(mixed(rows[IDENTITY].to_numpy(), split.seed))
    return np.where(share < split.test, 2, np.where(share < split.test + split.validation, 1, 0))


def identity(rows: pa.Table) -> np.ndarray:
    """Hash of the request, else of the impression, else of all that was read, uint64 [rows]."""
    for name in (REQUEST, IMPRESSION):
        if name in rows.column_names:
            return stable_hash(rows[name])
    total = np.zeros(len(rows), dtype=np.uint64)
    for name in sorted(set(rows.column_names) - {ROW}):
        values = rows[name].combine_chunks()
        if pa.types.is_string(values.type):
            own = stable_hash(values)
        else:
            own = values.to_numpy(zero_copy_only=False).astype(np.float64).view(np.uint64)
        with np.errstate(over="ignore"):
            total = mixed(total * np.uint64(31) + own, 1)
    return total
