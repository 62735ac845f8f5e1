"""Columns that tell a label because they are filled after it, for `recsys spec infer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.columns import Column, missing

MATCH = 0.99
"""Share of rows with a value that have the label, and of those with the label that have a value."""
TELLING = 0.995
"""AUC of one column alone above which it cannot have been known before."""
DOUBTFUL = 0.9
"""AUC of one column alone from which that is asked."""
FEWEST = 5
"""Rows with the label, and without, from which this is judged."""
HEARTY = 30
"""Rows with the label from which its rates by category are no chance of a few rows."""
SURE = 20.0
"""-log of the chance that all rows with a value have the label, above which it is none."""
MOST_GROUPS, FEW_GROUPS = 50, 5
"""Categories whose order by the label's rate is not yet learned by heart; with a rare label."""


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


@dataclass(frozen=True)
class Late:
    """Why a column seems to be known only after a label; `sure`, or else a doubt."""

    why: str
    sure: bool


def late(
    values: pa.ChunkedArray, column: Column, labels: list[Truth], of_moment: bool
) -> Late | None:
    """Whether a column seems to be known only after one of the labels.

    One of the user or the item that is there only where the label is 1 may be one user's or item's
    own; `of_moment` says that a column is of neither.
    """
    absent = missing(values)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if column.kind == "list":
        groups, order = absent.astype(np.int64), 0
    else:
        groups, order = _groups(values, absent)
    if _has_many(column):
        # One may stand for none, such as `no order`: all the others together are a group.
        usual = np.bincount(groups[~absent]).argmax()
        groups, order = np.where(absent, 0, np.where(groups == usual, 1, 2)), 2
    doubt = None
    filled = list(_filled(values, groups, absent, column))
    for truth in labels:
        ones = truth.ones[truth.rows]
        here = ~absent[truth.rows]
        both = (here & ones).sum()
        if not here.all() and both > MATCH * here.sum() and both > MATCH * ones.sum():
            return Late(f"it is there where {truth.name!r} is 1, and nowhere else", True)
        area = _area(groups[truth.rows], order, ones)
        if area > TELLING:
            return Late(f"alone it tells {truth.name!r} (AUC {area:.3f})", True)
        if area >= DOUBTFUL and doubt is None:
            doubt = Late(f"alone it tells {truth.name!r} well (AUC {area:.3f})", False)
    # Of a funnel, the last one that holds says the most.
    for truth in sorted(labels, key=lambda truth: truth.ones.sum()):
        ones = truth.ones[truth.rows]
        for there, what in filled:
            here = there[truth.rows]
            if not here.all() and within(here, ones):
                # A few rows may be one user's as well.
                sure = of_moment and bool(here.sum() >= HEARTY)
                found = Late(f"it is {what} only where {truth.name!r} is 1", sure)
                if found.sure:
                    return found
                doubt = doubt or found
    return doubt


def within(here: np.ndarray, ones: np.ndarray) -> bool:
    """Whether rows lie within a label's 1s, as nothing known before it does (bool [rows] each)."""
    rows, rate = here.sum(), ones.mean()
    share = ones[here].mean() if rows else 0.0
    if not 0 < rate < 1 or share <= max(MATCH, rate):
        return False
    # Chernoff's bound on the chance of so many; where nearly all rows have the label, it is near.
    strange = share * np.log(share / rate)
    if share < 1:
        strange += (1 - share) * np.log((1 - share) / (1 - rate))
    return bool(rows * strange > SURE)


def _has_many(column: Column) -> bool:
    """Whether it holds texts of so many values that their order by a label is learned by heart."""
    return column.kind == "text" and column.known > MOST_GROUPS


def _filled(
    values: pa.ChunkedArray, groups: np.ndarray, absent: np.ndarray, column: Column
) -> Iterator[tuple[np.ndarray, str]]:
    """Rows that have something, bool [rows]: a value, one other than 0, or than the usual one.

    Of a column that `_has_many`, the groups are its most frequent value, 1, and the others, 2.
    """
    yield ~absent, "there"
    if column.kind == "number":
        yield ~absent & (pc.fill_null(values, 0).to_numpy() != 0), "other than 0"
    if _has_many(column):
        yield groups == 2, "other than its most frequent value"
    elif column.kind in ("number", "text") and len(groups):
        counts = np.bincount(groups)
        usual = int(counts.argmax())
        if usual > 0 and 2 * counts[usual] > len(groups):
            yield ~absent & (groups != usual), "other than in most rows"


def _groups(values: pa.ChunkedArray, absent: np.ndarray) -> tuple[np.ndarray, int]:
    """A number for each value, by size, from 1; 0 where missing. And how many there are."""
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
    most = MOST_GROUPS if min(ones.sum(), (~ones).sum()) >= HEARTY else FEW_GROUPS
    if (rows > 0).sum() <= most:
        order = np.argsort(good / np.maximum(rows, 1))
        return _ranked(good[order], (rows - good)[order])
    bad = rows - good
    # Missing values come before all others, then after them.
    areas = [_ranked(good, bad), _ranked(np.roll(good, -1), np.roll(bad, -1))]
    return max(max(area, 1.0 - area) for area in areas)


def _ranked(good: np.ndarray, bad: np.ndarray) -> float:
    before = np.cumsum(bad) - bad
    return float((good * (before + bad / 2)).sum() / (good.sum() * bad.sum()))
