"""Histories: a user's past items, as they were known at the end of the day before.

Plain functions on the Arrow table of one user shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from beam_jobs.plan import DAY, ROW, TIME, USER, Plan, known, raw
from beam_jobs.validate import MS_PER_DAY
from recsys.schema import LIST_SEPARATOR, label_column
from recsys.spec.records import Feature, History, TimeSplit

_OFFSET_MS = 15 * 60_000
"""Of what clocks' distances from UTC are multiples."""


def known_day(rows: pa.Table, task: str | None, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """When and on which day a positive of the task was known (int64 ms and days, [rows]).

    An action that follows its impression on a later day is known on that day only. Where days
    come from a column of local dates, their distance from UTC is what fits all rows; where that
    leaves a choice, the day is the later one, for a history may know too little, but not ahead.
    """
    day = rows[DAY].to_numpy().astype(np.int64)
    time = rows[TIME].to_numpy()
    if task is None:
        return time, day
    at = rows[known(task)].to_numpy()
    split = plan.spec.data.split
    if not (isinstance(split, TimeSplit) and split.column) or not len(at):
        return at, np.floor_divide(at, MS_PER_DAY)
    # A row shown at `time` on local day `day` leaves open by how much its clock is ahead of UTC:
    # at least `begin`, and less than a day more.
    begin = day * MS_PER_DAY - time
    ahead = (begin.min() + MS_PER_DAY - 1) // _OFFSET_MS * _OFFSET_MS
    if ahead >= begin.max():
        later = np.floor_divide(at + ahead, MS_PER_DAY)
    else:
        # Nothing fits all, as where clocks change: what follows may be of the next day.
        later = day - np.floor_divide(time - at, MS_PER_DAY)
    return at, np.where(at > time, later, day)


@dataclass(frozen=True)
class Histories:
    """One history feature of a shard: a value a row, and one a user as of the end of all data."""

    rows: pa.Array
    users: pa.Table


def histories(rows: pa.Table, feature: Feature, plan: Plan) -> Histories:
    """The history of each row's user to the end of the day before, latest first.

    Args:
        rows: All impressions of some users, with `key:user`, `day`, `key:time`, the raw column of
            the feature that the history is `of`, and the label and `known` of its action.
        feature: The history feature.
        plan: The plan.

    Returns:
        Strings joined by `,`, at most `max_length` parts each, [rows]; and a table with
        `key` and the history's raw column.
    """
    encode = feature.encode
    assert isinstance(encode, History)
    users, names = pd.factorize(rows[USER].to_numpy())
    values = rows[raw(plan.spec.feature(encode.of).raw)].to_numpy()
    at, day_known = known_day(rows, encode.action, plan)
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
