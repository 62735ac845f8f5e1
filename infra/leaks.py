"""Columns that tell a label because they are filled after it, for `recsys spec infer`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.tables import Column, missing

MATCH = 0.99
"""Share of rows with a value that have the label, and of those with the label that have a value."""
TELLING = 0.995
"""AUC of one column alone above which it cannot have been known before."""
FEWEST = 30
"""Rows with the label, and without, from which this is judged."""
MOST_GROUPS = 50
"""Categories whose order by the label's rate is not yet learned by heart."""


@dataclass(frozen=True)
class Truth:
    """A label over the rows where it is judged: all, or those where the label before it is 1."""

    name: str
    rows: np.ndarray
    ones: np.ndarray


def truths(labels: dict[str, np.ndarray], given: dict[str, str | None]) -> list[Truth]:
    """Labels (float [rows], NaN where missing) over all rows, and over those of their parents."""
    found = []
    for name, values in labels.items():
        parent = given[name]
        # Blank where the parent did not happen says that it did not happen either.
        known = ~np.isnan(values) | (parent is not None)
        found.append(Truth(name, known, values > 0.5))
        if parent is not None:
            found.append(Truth(name, labels[parent] > 0.5, values > 0.5))
    return [
        truth
        for truth in found
        if min((truth.ones & truth.rows).sum(), (~truth.ones & truth.rows).sum()) >= FEWEST
    ]


def leak(values: pa.ChunkedArray, column: Column, labels: list[Truth]) -> str:
    """Why a column seems to be known only after one of the labels; '' where it does not."""
    absent = missing(values)
    if column.kind != "list" and (column.kind == "number" or column.known <= MOST_GROUPS):
        groups, order = _groups(values, absent)
    else:
        groups, order = absent.astype(np.int64), 0
    for truth in labels:
        here, ones = ~absent[truth.rows], truth.ones[truth.rows]
        both = (here & ones).sum()
        if not here.all() and both > MATCH * here.sum() and both > MATCH * ones.sum():
            return f"it is there where {truth.name!r} is 1, and nowhere else"
        area = _area(groups[truth.rows], order, ones)
        if area > TELLING:
            return f"alone it tells {truth.name!r} (AUC {area:.3f})"
    return ""


def doubt(values: pa.ChunkedArray, labels: list[Truth]) -> str:
    """The label that nearly all rows with a value have, of which others have none; '' if none.

    Such a column may be filled after the label, as a review is, or by chance of what was logged.
    """
    there = ~missing(values)
    for truth in labels:
        here, ones = there[truth.rows], truth.ones[truth.rows]
        if here.sum() >= FEWEST and ones.mean() < 0.5 and ones[here].mean() > MATCH:
            return truth.name
    return ""


def _groups(values: pa.ChunkedArray, absent: np.ndarray) -> tuple[np.ndarray, int]:
    """A number for each value, by size, from 1; 0 where missing. And how many there are."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_string(values.type):
        codes = pc.fill_null(values, "").combine_chunks().dictionary_encode().indices.to_numpy()
        codes = codes.astype(np.int64)
    else:
        numbers = pc.fill_null(values, 0).to_numpy()
        codes = np.unique(numbers, return_inverse=True)[1].astype(np.int64)
    return np.where(absent, 0, codes + 1), int(codes.max(initial=0)) + 1


def _area(groups: np.ndarray, count: int, ones: np.ndarray) -> float:
    """AUC of the groups: by their order either way, or by the label's rate where they are few."""
    rows = np.bincount(groups, minlength=count + 1).astype(np.float64)
    good = np.bincount(groups, weights=ones, minlength=count + 1)
    if (rows > 0).sum() <= MOST_GROUPS:
        order = np.argsort(good / np.maximum(rows, 1))
        return _ranked(good[order], (rows - good)[order])
    bad = rows - good
    # Missing values come before all others, then after them.
    areas = [_ranked(good, bad), _ranked(np.roll(good, -1), np.roll(bad, -1))]
    return max(max(area, 1.0 - area) for area in areas)


def _ranked(good: np.ndarray, bad: np.ndarray) -> float:
    before = np.cumsum(bad) - bad
    return float((good * (before + bad / 2)).sum() / (good.sum() * bad.sum()))
