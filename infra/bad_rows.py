"""Rows that the feature job will set apart or take for one, for `recsys spec infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.columns import Column, missing
from infra.owners import codes
from infra.tables import Read
from recsys.raw import canonical
from recsys.spec.records import Data
from recsys.spec.schema import RawColumn

ALLOWED = Data.model_fields["bad_records"].default
"""Share of bad records above which the feature job stops, if the spec does not say another."""


@dataclass(frozen=True)
class Bad:
    """A share of the rows, and what they have: in a column, or anywhere."""

    share: float
    what: str
    column: str = ""


@dataclass(frozen=True)
class BadRows:
    """Rows that will be bad records.

    Attributes:
        kinds: What makes them so, blank labels aside.
        ragged: Lines of too few or too many fields.
        share: Of all lines, those that are bad for any reason.
    """

    kinds: list[Bad]
    ragged: int
    share: float


def bad_rows(
    read: Read,
    keys: Sequence[Column],
    numbers: Sequence[Column],
    blank: Sequence[np.ndarray],
    day: np.ndarray | None,
) -> BadRows:
    """The bad records of a table.

    Args:
        read: The table.
        keys: The columns of users and items.
        numbers: The columns of features that are numbers.
        blank: Where each label is missing that should be there, bool [rows].
        day: The day of each row, NaN where it has none; or None without time.
    """
    kinds = []
    bad = np.zeros(len(read.table), dtype=bool)

    def add(rows: np.ndarray, what: str, column: str = "") -> None:
        if rows.any():
            kinds.append(Bad(rows.mean(), what, column))
        np.logical_or(bad, rows, out=bad)

    for column in keys:
        add(missing(read.table[column.name]), "no", column.name)
    for column in numbers:
        values = read.table[column.name]
        _, strange = canonical(values, RawColumn(column.name, "float32", "context"))
        what = "a text that is no number in"
        if pa.types.is_floating(values.type):
            infinite = np.isinf(values.to_numpy()).any()
            what = "an infinite" if infinite else "too large a number in"
        add(strange, what, column.name)
    if day is not None:
        add(np.isnan(day), "no time that can be read")
    for rows in blank:
        np.logical_or(bad, rows, out=bad)
    return BadRows(kinds, read.ragged, (bad.sum() + read.ragged) / (len(bad) + read.ragged))


def repeated(table: pa.Table) -> float:
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
