"""Which days choose and test, for `recsys spec infer`: by their rows, not by their number alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np

FEWEST_DAYS = 4
"""Days that a split by time takes: two to train on, and one each to choose and to test by."""
FEWEST_ROWS = 0.05
"""Rows to choose by, and to test by, at least."""
MOST_ROWS = 0.6
"""Rows that may be held out; where days are so uneven that more were, chance divides."""
ENOUGH = 10
"""Positives of each label to choose by, and to test by, where a few more days give them."""
MOST_DAYS = 0.2
"""Days up to which a split is widened for the sake of positives."""
STRAY = 0.02
"""Rows of a common day below which one at the end of the log is none."""
FAR, FEW = 365, 0.05
"""Days without rows beyond which so small a share of all rows is strays as well."""
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Split:
    """How rows are divided.

    Attributes:
        held: Rows that are held out, bool [rows]; None where chance takes them.
        until: The last days of the parts by their names in the spec; none where chance divides.
        days: Whether counters have a past to count: enough days with rows.
        early: How many rows lie before the first day with many, and that day.
        late: How many lie after the last one, and that day.
        why_not: Why no days divide rows that have some.
        few: Positives of labels of which chance may leave none in a part.
        lacking: Labels, each with a part that has no positive of it.
        full: Labels, each with a part that has positives of it alone.
    """

    held: np.ndarray | None = None
    until: dict[str, date] = field(default_factory=dict)
    days: bool = False
    early: tuple[int, date] | None = None
    late: tuple[int, date] | None = None
    why_not: str = ""
    few: dict[str, int] = field(default_factory=dict)
    lacking: list[tuple[str, str]] = field(default_factory=list)
    full: list[tuple[str, str]] = field(default_factory=list)


def split(day: np.ndarray | None, labels: dict[str, np.ndarray]) -> Split:
    """How to divide rows.

    Args:
        day: Days since the epoch, float64 [rows], NaN where there is none; or None.
        labels: Float [rows] by name, NaN where missing.
    """
    if day is None:
        return Split(few=_few(labels))
    known = ~np.isnan(day)
    days, place = np.unique(day[known].astype(np.int64), return_inverse=True)
    rows = np.bincount(place, minlength=len(days))
    first, last = _common(days, rows)
    before, after = int(rows[:first].sum()), int(rows[last + 1 :].sum())
    early = (before, _date(days[first])) if before else None
    late = (after, _date(days[last])) if after else None
    if last - first + 1 < FEWEST_DAYS:
        why = f"{last - first + 1} days have rows; {FEWEST_DAYS} are needed"
        return Split(early=early, late=late, why_not=why, few=_few(labels))
    ones = {
        name: np.bincount(place, weights=values[known] > 0.5, minlength=len(days))
        for name, values in labels.items()
    }
    tenth = max(1, (last - first + 1) // 10)
    test = _begin(rows, ones, first, last, tenth)
    validation = _begin(rows, ones, first, test - 1, tenth)
    if rows[validation : last + 1].sum() > MOST_ROWS * rows.sum() or validation - first < 2:
        why = "a few days have most of the rows"
        return Split(None, {}, True, early, late, why, _few(labels))
    until = {"train_to": _date(days[validation - 1]), "validation_to": _date(days[test - 1])}
    if last + 1 < len(days):
        until["test_to"] = _date(days[last])
    ends = {"training": (0, validation), "validation": (validation, test), "test": (test, last + 1)}
    zeros = {
        name: np.bincount(place, weights=values[known] <= 0.5, minlength=len(days))
        for name, values in labels.items()
    }
    lacking, full = (
        [
            (name, part)
            for name, own in counts.items()
            for part, (begin, end) in ends.items()
            if not own[begin:end].any()
        ]
        for counts in (ones, zeros)
    )
    held = day >= days[validation]
    full = [found for found in full if found not in lacking]  # a part may be all blank
    return Split(held, until, True, early, late, lacking=lacking, full=full)


def _few(labels: dict[str, np.ndarray]) -> dict[str, int]:
    counts = {name: int((values > 0.5).sum()) for name, values in labels.items()}
    return {name: count for name, count in counts.items() if count < 10 * ENOUGH}


def _common(days: np.ndarray, rows: np.ndarray) -> tuple[int, int]:
    """The first and last day that are no strays: neither nearly empty nor years from the others."""
    part = np.cumsum(np.diff(days, prepend=days[:1]) > FAR)
    of_part = np.bincount(part, weights=rows)
    near = (of_part >= FEW * rows.sum())[part]
    enough = np.flatnonzero(near & (rows >= STRAY * np.median(rows)))
    return (int(enough[0]), int(enough[-1])) if len(enough) else (0, len(rows) - 1)


def _begin(rows: np.ndarray, ones: dict[str, np.ndarray], first: int, last: int, tenth: int) -> int:
    """The first of the days that choose or test, of which `last` is the last."""
    at = last - tenth + 1
    share = FEWEST_ROWS * rows.sum()
    while at > first + 1 and rows[at : last + 1].sum() < share:
        at -= 1
    widest = max(first + 1, last - MOST_DAYS * (last - first + 1) + 1)
    while at - 1 >= widest and any(own[at : last + 1].sum() < ENOUGH for own in ones.values()):
        at -= 1
    return at


def _date(day: np.integer) -> date:
    return _EPOCH + timedelta(int(day))
