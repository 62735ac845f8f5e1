"""Statistics of raw columns, labels and times, in one pass and merged in any order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.partition import by_shard, stable_hash
from beam_jobs.plan import TIME, Plan, raw
from recsys.spec.schema import label_column

TOP = 20
SKETCH = 1024
COLUMN, VALUE, COUNT, HASH = "column", "value", "count", "hash"

_DIGITS = 24
"""Bits of a float32's mantissa."""
_UNIT = 148 + _DIGITS
"""Each float32 is a whole number of 2 ** -_UNIT."""


@dataclass
class NumberStats:
    """Count, mean, spread and range of a number column.

    Sums are exact, in whole numbers: of floats they would depend on the order of their terms.
    `total` counts units of 2 ** -_UNIT, and `squares` the squares of those.
    """

    count: int = 0
    missing: int = 0
    total: int = 0
    squares: int = 0
    min: float = math.inf
    max: float = -math.inf

    @staticmethod
    def of(values: np.ndarray) -> NumberStats:
        """Statistics of float32 [rows], NaN where missing."""
        there = values[~np.isnan(values)].astype(np.float32)
        stats = NumberStats(len(values), len(values) - len(there))
        if len(there):
            stats.total, stats.squares = _exact_sums(there)
            stats.min, stats.max = float(there.min()), float(there.max())
        return stats

    def merged(self, other: NumberStats) -> NumberStats:
        """Both together."""
        return NumberStats(
            self.count + other.count,
            self.missing + other.missing,
            self.total + other.total,
            self.squares + other.squares,
            min(self.min, other.min),
            max(self.max, other.max),
        )

    @property
    def mean(self) -> float:
        """Mean of the numbers that are not missing, of which there is one at least."""
        return self.total / ((self.count - self.missing) << _UNIT)

    def report(self) -> dict[str, Any]:
        """As written to statistics.json."""
        there = self.count - self.missing
        if not there:
            return {"kind": "number", "count": self.count, "missing": self.missing}
        spread = there * self.squares - self.total**2
        return {
            "kind": "number",
            "count": self.count,
            "missing": self.missing,
            "mean": self.mean,
            "std": math.sqrt(spread / (there**2 << (2 * _UNIT))),
            "min": self.min,
            "max": self.max,
        }


def _exact_sums(values: np.ndarray) -> tuple[int, int]:
    """Sum and sum of squares of float32 [rows], as `NumberStats` counts them."""
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(fraction.astype(np.float64), _DIGITS).astype(np.int64)
    place = exponent.astype(np.int64) + (_UNIT - _DIGITS)
    high, low = np.divmod(whole * whole, 1 << _DIGITS)
    # The sums by exponent are of whole numbers of 24 bits: doubles hold them for 2 ** 29 rows.
    total, above, below = (
        [int(each) for each in np.bincount(place, weights=part)] for part in (whole, high, low)
    )
    return (
        sum(each << at for at, each in enumerate(total)),
        sum(
            ((a << _DIGITS) + b) << (2 * at)
            for at, (a, b) in enumerate(zip(above, below, strict=True))
        ),
    )


@dataclass
class TextStats:
    """Count, missing and distinct values of a string column.

    Distinct values are exact up to `SKETCH`, then estimated from the smallest hashes
    (Bar-Yossef et al., 2002).
    """

    count: int = 0
    missing: int = 0
    smallest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @staticmethod
    def of(counts: pa.Table) -> TextStats:
        """Statistics of a column by its `count_values`."""
        missing = np.asarray(pc.equal(counts[VALUE], ""), dtype=bool)
        number = counts[COUNT].to_numpy()
        hashes = np.unique(counts[HASH].to_numpy()[~missing])[:SKETCH]
        return TextStats(int(number.sum()), int(number[missing].sum()), hashes)

    def merged(self, other: TextStats) -> TextStats:
        """Both together."""
        smallest = np.unique(np.concatenate([self.smallest, other.smallest]))[:SKETCH]
        return TextStats(self.count + other.count, self.missing + other.missing, smallest)

    def report(self, top: Mapping[str, int]) -> dict[str, Any]:
        """As written to statistics.json; `top` are the commonest values, by `commonest`."""
        distinct = len(self.smallest)
        if distinct == SKETCH:
            distinct = round((SKETCH - 1) / (float(self.smallest[-1]) / 2.0**64))
        return {
            "kind": "string",
            "count": self.count,
            "missing": self.missing,
            "distinct": distinct,
            "top": dict(top),
        }


def count_values(values: pa.ChunkedArray) -> pa.Table:
    """How often each string is there: `value`, `count` and `hash`, '' where missing."""
    counted = pc.value_counts(values.combine_chunks())
    texts, counts = counted.field(0), counted.field(1)
    return pa.table({VALUE: texts, COUNT: counts, HASH: pa.array(stable_hash(texts))})


def divided(counts: Mapping[str, pa.Table], parts: int) -> Iterator[tuple[int, pa.Table]]:
    """Counts of columns' values, by hash of the value: (part, `column`, `value`, `count`)."""
    for name, table in counts.items():
        table = table.filter(pc.not_equal(table[VALUE], ""))
        part = (table[HASH].to_numpy() % np.uint64(parts)).astype(np.int64)
        column = pa.array([name] * len(table), pa.string())
        yield from by_shard(table.drop_columns(HASH).add_column(0, COLUMN, column), part)


def commonest(tables: Iterable[pa.Table]) -> pa.Table:
    """The commonest values of each column, added up over tables of `divided`, in the same form.

    It takes all tables of a part, or what this answers of several parts.
    """
    sums = pa.concat_tables(tables).group_by([COLUMN, VALUE]).aggregate([(COUNT, "sum")])
    sums = sums.select([COLUMN, VALUE, f"{COUNT}_sum"]).rename_columns([COLUMN, VALUE, COUNT])
    order = [(COUNT, "descending"), (VALUE, "ascending")]
    found = []
    for name in pc.unique(sums[COLUMN]).to_pylist():
        column = sums.filter(pc.equal(sums[COLUMN], name))
        found.append(column.take(pc.select_k_unstable(column, TOP, order)))
    return pa.concat_tables(found)


@dataclass
class SplitStats:
    """All that the manifest and statistics.json say of a split."""

    rows: int = 0
    labels: dict[str, NumberStats] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    columns: dict[str, NumberStats | TextStats] = field(default_factory=dict)

    @staticmethod
    def of(table: pa.Table, plan: Plan, counts: Mapping[str, pa.Table]) -> SplitStats:
        """Statistics of a shard's rows; `counts` are those of its string columns."""
        stats = SplitStats(len(table))
        for task in plan.spec.tasks:
            label = table[label_column(task.name)].to_numpy()
            stats.labels[task.name] = NumberStats.of(label)
        if TIME in table.column_names and len(table):
            span = pc.min_max(table[TIME])
            stats.first, stats.last = span["min"].as_py(), span["max"].as_py()
        for column in plan.raw:
            stats.columns[column.name] = (
                TextStats.of(counts[column.name])
                if column.dtype == "string"
                else NumberStats.of(table[raw(column.name)].to_numpy())
            )
        return stats

    def merged(self, other: SplitStats) -> SplitStats:
        """Both together."""
        if not self.rows or not other.rows:
            return other if not self.rows else self
        assert (self.first is None) == (other.first is None)
        return SplitStats(
            self.rows + other.rows,
            {name: stats.merged(other.labels[name]) for name, stats in self.labels.items()},
            None if self.first is None or other.first is None else min(self.first, other.first),
            None if self.last is None or other.last is None else max(self.last, other.last),
            {
                name: stats.merged(other.columns[name])  # type: ignore[arg-type]
                for name, stats in self.columns.items()
            },
        )

    def report(self, top: pa.Table | None) -> dict[str, Any]:
        """As the manifest and statistics.json tell it; `top` are the `commonest` values, if any."""
        tops: dict[str, dict[str, int]] = {}
        for value in top.to_pylist() if top is not None else ():
            tops.setdefault(value[COLUMN], {})[value[VALUE]] = value[COUNT]
        return {
            "rows": self.rows,
            "labels": {name: stats.mean for name, stats in self.labels.items()},
            "time_range": None if self.first is None else [self.first, self.last],
            "columns": {
                name: stats.report(tops.get(name, {}))
                if isinstance(stats, TextStats)
                else stats.report()
                for name, stats in self.columns.items()
            },
        }
