"""Histories: a user's past items, as they were known at the end of the day before.

Plain functions on the Arrow table of one user shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from beam_jobs.plan import DAY, ROW, TIME, USER, Plan, known, raw
from beam_jobs.validate import MS_PER_DAY
from recsys.spec.records import Feature, History
from recsys.spec.schema import LIST_SEPARATOR, label_column

_OFFSET_MS = 15 * 60_000
"""Of what clocks' distances from UTC are multiples."""
Bounds = tuple[int, int]
"""Of many rows, the most and the least that `day` is ahead of `key:time`, in ms."""


def clock_bounds(rows: pa.Table) -> Bounds:
    """What rows say of the clock by which their days are counted."""
    begin = rows[DAY].to_numpy().astype(np.int64) * MS_PER_DAY - rows[TIME].to_numpy()
    return int(begin.max()), int(begin.min())


def widest(bounds: Iterable[Bounds]) -> Bounds:
    """The bounds of all rows together; of none, those of UTC."""
    found = list(bounds)
    if not found:
        return 0, 1 - MS_PER_DAY
    return max(most for most, _ in found), min(least for _, least in found)


def clock_of(bounds: Bounds) -> int | None:
    """By how many ms a clock is ahead of UTC that fits all rows; None where none does.

    A row of local day `day` says: at least `day - key:time`, and less than a day more. Where that
    leaves a choice, it is the later clock, for a history may know too little, but not ahead.
    """
    most, least = bounds
    ahead = (least + MS_PER_DAY - 1) // _OFFSET_MS * _OFFSET_MS
    return ahead if ahead >= most else None


def known_day(
    rows: pa.Table, task: str | None, clock: int | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """When and on which day a positive of the task was known (int64 ms and days, [rows]).

    An action that follows its impression on a later day is known on that day only.

    Args:
        rows: Impressions with `day` and `key:time`, and `known` of the task.
        task: The task; None for what was known with the impression.
        clock: By how many ms the days' clock is ahead of UTC; None where clocks change, and what
            follows an impression may be of the next day.
    """
    day = rows[DAY].to_numpy().astype(np.int64)
    time = rows[TIME].to_numpy()
    if task is None:
        return time, day
    at = rows[known(task)].to_numpy()
    if clock is None:
        later = day - np.floor_divide(time - at, MS_PER_DAY)
    else:
        later = np.floor_divide(at + clock, MS_PER_DAY)
    return at, np.where(at > time, later, day)


@dataclass(frozen=True)
class Histories:
    """One history feature of a shard: a value a row, and one a user as of the end of all data."""

    rows: pa.Array
    users: pa.Table


def histories(rows: pa.Table, feature: Feature, plan: Plan, clock: int | None = 0) -> Histories:
    """The history of each row's user to the end of the day before, latest first.

    Args:
        rows: All impressions of some users, with `key:user`, `day`, `key:time`, the raw column of
            the feature that the history is `of`, and the label and `known` of its action.
        feature: The history feature.
        plan: The plan.
        clock: As for `known_day`.

    Returns:
        Strings joined by `,`, at most `max_length` parts each, [rows]; and a table with
        `key` and the history's raw column.
    """
    encode = feature.encode
    assert isinstance(encode, History)
    users, names = pd.factorize(rows[USER].to_numpy())
    values = rows[raw(plan.spec.feature(encode.of).raw)].to_numpy()
    at, day_known = known_day(rows, encode.action, clock)
    happened = values != ""
    if encode.action is not None:
        happened &= rows[label_column(encode.action)].to_numpy() > 0
    events = np.flatnonzero(happened)
    order = np.lexsort((rows[ROW].to_numpy()[events], at[events], day_known[events], users[events]))
    events = events[order]
    begins = np.searchsorted(users[events], np.arange(len(names)))
    # One number that sorts by user and then by day finds where a row's past ends.
    days = rows[DAY].to_numpy().astype(np.int64)
    low = min(days.min(initial=0), day_known.min(initial=0))
    span = max(days.max(initial=0), day_known.max(initial=0)) - low + 2
    past = users[events] * span + (day_known[events] - low)
    asked = users * span + (days - low)
    distinct, back = np.unique(asked, return_inverse=True)
    items = values[events]
    texts = [
        LIST_SEPARATOR.join(items[max(begin, end - encode.max_length) : end][::-1])
        for begin, end in zip(
            begins[distinct // span].tolist(), np.searchsorted(past, distinct).tolist(), strict=True
        )
    ]
    ends = [*begins[1:].tolist(), len(events)] if len(names) else []
    final = [
        LIST_SEPARATOR.join(items[max(begin, end - encode.max_length) : end][::-1])
        for begin, end in zip(begins.tolist(), ends, strict=True)
    ]
    return Histories(
        pa.array(texts, pa.string()).take(pa.array(back.reshape(-1))),
        pa.table(
            {"key": pa.array(names, pa.string()), raw(feature.name): pa.array(final, pa.string())}
        ),
    )
