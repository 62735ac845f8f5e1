"""Rows that the feature job will set apart or take for one, for `recsys spec infer` to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from infra.owners import codes
from infra.tables import Column, Read, missing
from recsys.raw import canonical
from recsys.spec.records import Data
from recsys.spec.schema import RawColumn

ALIKE = 0.01
"""Rows equal to another from which nobody can think that each was written twice."""


def bad_rows(
    read: Read,
    keys: Sequence[Column],
    numbers: Sequence[Column],
    labels: dict[str, np.ndarray],
    given: dict[str, str | None],
    day: np.ndarray | None,
) -> list[str]:
    """What is to be said of bad records, and of the job's refusal where there are too many.

    Args:
        read: The table.
        keys: The columns of users and items.
        numbers: The columns of features that are numbers.
        labels: Float [rows] by name, NaN where missing.
        given: The label before each, where there is one.
        day: The day of each row, NaN where it has none; or None without time.
    """
    table, notes = read.table, []
    bad = np.zeros(len(table), dtype=bool)
    for column in keys:
        none = missing(table[column.name])
        if none.any():
            notes.append(_said(f"{none.mean():.2%} of the rows have no {column.name!r}"))
        bad |= none
    for column in numbers:
        values = table[column.name]
        _, strange = canonical(values, RawColumn(column.name, "float32", "context"))
        if strange.any():
            what = "a text that is no number in"
            if pa.types.is_floating(values.type):
                infinite = np.isinf(values.to_numpy())
                what = "an infinite" if infinite.any() else "too large a number in"
            notes.append(_said(f"{strange.mean():.2%} of the rows have {what} {column.name!r}"))
        bad |= strange
    for name, values in labels.items():
        parent = given.get(name)
        bad |= np.isnan(values) & (labels[parent] > 0.5 if parent else True)
    if day is not None:
        none = np.isnan(day)
        if none.any():
            notes.append(_said(f"{none.mean():.2%} of the rows have no time that can be read"))
        bad |= none
    if read.ragged:
        notes.append(_said(f"{read.ragged:,} lines have too few or too many fields"))
    share = (bad.sum() + read.ragged) / (len(bad) + read.ragged)
    most = Data.model_fields["bad_records"].default
    if share > most:
        allowed = min(1.0, math.ceil(100 * share + 1) / 100)
        notes += [
            f"  # In all {share:.2%} are bad records, and above {most:.0%} it stops: filter",
            "  # or fill these rows, or let them be set apart:",
            f"  # bad_records: {allowed}",
        ]
    return notes


def _said(what: str) -> str:
    return f"  # {what}; the feature job calls them bad records."


def alike(table: pa.Table, of_day: bool) -> list[str]:
    """What is to be said, and written, of rows that equal others in all columns.

    Args:
        table: The whole table.
        of_day: Whether it tells the time of the day, which makes equal rows one.
    """
    share = 0.0 if of_day else _repeated(table)
    if share <= ALIKE:
        return []
    return [
        f"  # {share:.0%} of the rows equal another one in all columns, and none tells the moment:",
        "  # each counts.",
        "  duplicates: keep",
    ]


def _repeated(table: pa.Table) -> float:
    """The share of rows that equal another one before them."""
    rows = np.arange(len(table))
    group = np.zeros(len(table), dtype=np.int64)
    for name in table.column_names:
        if not len(rows):
            return 0.0
        values = table[name]
        if pa.types.is_nested(values.type):
            values = pa.chunked_array([canonical(values, RawColumn(name, "string", "context"))[0]])
        own = codes(values.take(pa.array(rows)))
        pairs = group * (own.max(initial=0) + 2) + own + 1
        _, group, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        # A row that differs already need not be compared in the other columns.
        several = counts[group] > 1
        rows, group = rows[several], group[several]
    return (len(rows) - len(np.unique(group))) / max(1, len(table))
