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
    """How rows are divided, for the spec; and which are held out, bool [rows], or None by chance.

    Attributes:
        days: Whether counters have a past to count: enough days with rows.
        parts: The rows of training, validation and test, where days divide them.
    """

    line: str
    notes: list[str] = field(default_factory=list)
    held: np.ndarray | None = None
    days: bool = False
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def split(day: np.ndarray | None, labels: dict[str, np.ndarray]) -> Split:
    """How to divide rows.

    Args:
        day: Days since the epoch, float64 [rows], NaN where there is none; or None.
        labels: Float [rows] by name, NaN where missing.
    """
    fraction = "  split: {validation: 0.1, test: 0.1}"
    if day is None:
        return Split(fraction, _few(labels))
    known = ~np.isnan(day)
    days, place = np.unique(day[known].astype(np.int64), return_inverse=True)
    rows = np.bincount(place, minlength=len(days))
    first, last = _common(days, rows)
    notes = _strays(days, rows, first, last)
    if last - first + 1 < FEWEST_DAYS:
        few = f"  # No split by day: {last - first + 1} days have rows; {FEWEST_DAYS} are needed."
        return Split(fraction, [*notes, few, *_few(labels)])
    ones = {
        name: np.bincount(place, weights=values[known] > 0.5, minlength=len(days))
        for name, values in labels.items()
    }
    tenth = max(1, (last - first + 1) // 10)
    test = _begin(rows, ones, first, last, tenth)
    validation = _begin(rows, ones, first, test - 1, tenth)
    if rows[validation : last + 1].sum() > MOST_ROWS * rows.sum() or validation - first < 2:
        uneven = "  # No split by day: a few days have most of the rows."
        return Split(fraction, [*notes, uneven, *_few(labels)], days=True)
    bounds = [_date(days[validation - 1]), _date(days[test - 1])]
    line = f"  split: {{train_to: {bounds[0]}, validation_to: {bounds[1]}"
    if last + 1 < len(days):
        line += f", test_to: {_date(days[last])}"
    parts = {
        "training": day < days[validation],
        "validation": (day >= days[validation]) & (day < days[test]),
        "test": (day >= days[test]) & (day <= days[last]),
    }
    for name, values in labels.items():
        for part, of_part in parts.items():
            if not (values[of_part] > 0.5).any():
                notes.append(f"  # No row of the {part} split has {name!r}: choose other days.")
    return Split(line + "}", notes, day >= days[validation], True, parts)


def _few(labels: dict[str, np.ndarray]) -> list[str]:
    """What is to be said of labels of which chance may leave none in a split."""
    counts = {name: int((values > 0.5).sum()) for name, values in labels.items()}
    return [
        f"  # Only {count} rows have {name!r}: validation and test have about a tenth of them each."
        for name, count in counts.items()
        if count < 10 * ENOUGH
    ]


def _common(days: np.ndarray, rows: np.ndarray) -> tuple[int, int]:
    """The first and last day that are no strays: neither nearly empty nor years from the others."""
    part = np.cumsum(np.diff(days, prepend=days[:1]) > FAR)
    of_part = np.bincount(part, weights=rows)
    near = (of_part >= FEW * rows.sum())[part]
    enough = np.flatnonzero(near & (rows >= STRAY * np.median(rows)))
    return (int(enough[0]), int(enough[-1])) if len(enough) else (0, len(rows) - 1)


def _strays(days: np.ndarray, rows: np.ndarray, first: int, last: int) -> list[str]:
    notes = []
    if rows[:first].sum():
        count = rows[:first].sum()
        notes.append(
            f"  # {_rows(count)} before {_date(days[first])}, the first day with many: are their "
            "times right?"
        )
    if rows[last + 1 :].sum():
        count = rows[last + 1 :].sum()
        notes.append(
            f"  # {_rows(count)} after {_date(days[last])}, the last day with many: left out."
        )
    return notes


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


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _date(day: np.integer) -> date:
    return _EPOCH + timedelta(int(day))
