"""Statistics of raw columns, labels and times, in one pass and merged in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.partition import stable_hash
from beam_jobs.plan import TIME, Plan, raw
from recsys.spec.schema import label_column

MOST_COUNTED = 20_000
TOP = 20
SKETCH = 1024


@dataclass
class NumberStats:
    """Count, mean, spread and range of a number column."""

    count: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    @staticmethod
    def of(values: np.ndarray) -> NumberStats:
        """Statistics of float32 [rows], NaN where missing."""
        there = values[~np.isnan(values)].astype(np.float64)
        stats = NumberStats(len(values), len(values) - len(there))
        if len(there):
            stats.mean = float(there.mean())
            stats.squares = float(((there - stats.mean) ** 2).sum())
            stats.min, stats.max = float(there.min()), float(there.max())
        return stats

    def merged(self, other: NumberStats) -> NumberStats:
        """Both together (Chan et al., 1983, for the squares)."""
        a, b = self.count - self.missing, other.count - other.missing
        n = max(a + b, 1)
        gap = other.mean - self.mean
        return NumberStats(
            self.count + other.count,
            self.missing + other.missing,
            self.mean + gap * b / n,
            self.squares + other.squares + gap * gap * a * b / n,
            min(self.min, other.min),
            max(self.max, other.max),
        )

    def report(self) -> dict[str, Any]:
        """As written to statistics.json."""
        there = self.count - self.missing
        if not there:
            return {"kind": "number", "count": self.count, "missing": self.missing}
        return {
            "kind": "number",
            "count": self.count,
            "missing": self.missing,
            "mean": self.mean,
            "std": math.sqrt(self.squares / there),
            "min": self.min,
            "max": self.max,
        }


@dataclass
class TextStats:
    """Count, missing, commonest values and distinct values of a string column.

    Distinct values are exact up to `SKETCH`, then estimated from the smallest hashes
    (Bar-Yossef et al., 2002). Values are counted exactly up to `MOST_COUNTED` distinct ones a
    part; beyond that the rarest are forgotten.
    """

    count: int = 0
    missing: int = 0
    values: dict[str, int] = field(default_factory=dict)
    smallest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @staticmethod
    def of(values: pa.ChunkedArray) -> TextStats:
        """Statistics of strings, '' where missing."""
        counted = pc.value_counts(values.combine_chunks())
        texts, counts = counted.field(0), counted.field(1).to_pylist()
        table = dict(zip(texts.to_pylist(), counts, strict=True))
        missing = table.pop("", 0)
        there = pc.filter(texts, pc.not_equal(texts, ""))
        hashes = np.unique(stable_hash(there))[:SKETCH] if len(there) else np.zeros(0, np.uint64)
        return TextStats(len(values), missing, _largest(table, MOST_COUNTED), hashes)

    def merged(self, other: TextStats) -> TextStats:
        """Both together."""
        values = dict(self.values)
        for text, count in other.values.items():
            values[text] = values.get(text, 0) + count
        smallest = np.unique(np.concatenate([self.smallest, other.smallest]))[:SKETCH]
        return TextStats(
            self.count + other.count,
            self.missing + other.missing,
            _largest(values, MOST_COUNTED),
            smallest,
        )

    def report(self) -> dict[str, Any]:
        """As written to statistics.json."""
        distinct = len(self.smallest)
        if distinct == SKETCH:
            distinct = round((SKETCH - 1) / (float(self.smallest[-1]) / 2.0**64))
        return {
            "kind": "string",
            "count": self.count,
            "missing": self.missing,
            "distinct": distinct,
            "top": _largest(self.values, TOP),
        }


def _largest(values: dict[str, int], most: int) -> dict[str, int]:
    if len(values) <= most and most != TOP:
        return values
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0]))[:most])


@dataclass
class SplitStats:
    """All that the manifest and statistics.json say of a split."""

    rows: int = 0
    positives: dict[str, float] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    columns: dict[str, NumberStats | TextStats] = field(default_factory=dict)

    @staticmethod
    def of(table: pa.Table, plan: Plan) -> SplitStats:
        """Statistics of a shard's rows."""
        stats = SplitStats(len(table))
        for task in plan.spec.tasks:
            label = table[label_column(task.name)].to_numpy().astype(np.float64)
            stats.positives[task.name] = float(label.sum())
        if TIME in table.column_names and len(table):
            span = pc.min_max(table[TIME])
            stats.first, stats.last = span["min"].as_py(), span["max"].as_py()
        for column in plan.raw:
            values = table[raw(column.name)]
            stats.columns[column.name] = (
                TextStats.of(values)
                if column.dtype == "string"
                else NumberStats.of(values.to_numpy())
            )
        return stats

    def merged(self, other: SplitStats) -> SplitStats:
        """Both together."""
        if not self.rows or not other.rows:
            return other if not self.rows else self
        assert (self.first is None) == (other.first is None)
        return SplitStats(
            self.rows + other.rows,
            {name: self.positives[name] + other.positives[name] for name in self.positives},
            None if self.first is None or other.first is None else min(self.first, other.first),
            None if self.last is None or other.last is None else max(self.last, other.last),
            {
                name: stats.merged(other.columns[name])  # type: ignore[arg-type]
                for name, stats in self.columns.items()
            },
        )
