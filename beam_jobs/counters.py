"""Counters: how often a task happened among past impressions that share some columns.

A shard of impressions asks for the pairs of key and day that it holds, with what happened in
each (`partial`). The shard of a key adds up the days and answers each pair with what was known
at the end of the day before (`answers`). The impressions take their answers up (`attach`).
Only distinct pairs travel, never rows. Plain functions; no Beam here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.history import known_day
from beam_jobs.plan import DAY, Plan, raw
from recsys.raw import canonical
from recsys.spec.records import Counter, Feature
from recsys.spec.schema import COUNTED, RawColumn, label_column

KEY, SHOWN, POSITIVES, ASKED, VALUE = "joint_key", "shown", "positives", "asked", "value"
_SEPARATOR = "\x1f"
_ESCAPED = (("\x1e", "\x1e0"), (_SEPARATOR, "\x1e1"))
"""How a value that holds the separator is written, so that no two lists of values are one key."""
Totals = dict[str, dict[int, tuple[int, int]]]
"""By counter feature, then by day: impressions of the day, and positives that it made known."""


def _encode(feature: Feature) -> Counter:
    assert isinstance(feature.encode, Counter)
    return feature.encode


def joint_key(rows: pa.Table, feature: Feature, plan: Plan) -> np.ndarray:
    """The values of the columns `by` as one string, object [rows]; `values_of` takes it apart."""
    joint: np.ndarray | None = None
    for by in plan.by(feature):
        text, _ = canonical(rows[by.column], RawColumn(by.name, "string", "context"))
        for plain, escaped in _ESCAPED:
            text = pc.replace_substring(text, plain, escaped)
        values = text.to_numpy(zero_copy_only=False)
        joint = values if joint is None else joint + _SEPARATOR + values
    assert joint is not None
    return joint


def values_of(key: str) -> list[str]:
    """The values that a joint key was made of."""
    values = key.split(_SEPARATOR)
    for plain, escaped in reversed(_ESCAPED):
        values = [value.replace(escaped, plain) for value in values]
    return values


def partial(rows: pa.Table, feature: Feature, plan: Plan, clock: int | None = 0) -> pa.Table:
    """What each key saw on each day: `joint_key`, `day`, `shown`, `positives`, `asked`.

    `asked` is true where rows of that key and day wait for an answer; `clock` is as for
    `beam_jobs.history.known_day`.
    """
    key = joint_key(rows, feature, plan)
    day = rows[DAY].to_numpy().astype(np.int64)
    task = _encode(feature).task
    frames = [pd.DataFrame({KEY: key, DAY: day, SHOWN: 1, POSITIVES: 0, ASKED: True})]
    if task is not None:
        positive = rows[label_column(task)].to_numpy() > 0
        when = known_day(rows, task, clock)[1] if task in plan.tracked else day
        frames.append(
            pd.DataFrame(
                {KEY: key[positive], DAY: when[positive], SHOWN: 0, POSITIVES: 1, ASKED: False}
            )
        )
    sums = (
        pd.concat(frames)
        .groupby([KEY, DAY], sort=True, as_index=False)
        .agg({SHOWN: "sum", POSITIVES: "sum", ASKED: "max"})
    )
    return pa.table(
        {
            KEY: pa.array(sums[KEY].to_numpy(dtype=object), pa.string()),
            DAY: pa.array(sums[DAY].to_numpy(np.int64)),
            SHOWN: pa.array(sums[SHOWN].to_numpy(np.int64)),
            POSITIVES: pa.array(sums[POSITIVES].to_numpy(np.int64)),
            ASKED: pa.array(sums[ASKED].to_numpy(bool)),
        }
    )


def totals(part: pa.Table, feature: Feature) -> Totals:
    """The sums of a partial over its keys, by day."""
    sums = part.group_by(DAY).aggregate([(SHOWN, "sum"), (POSITIVES, "sum")])
    both = zip(sums[f"{SHOWN}_sum"].to_pylist(), sums[f"{POSITIVES}_sum"].to_pylist(), strict=True)
    return {feature.name: dict(zip(sums[DAY].to_pylist(), both, strict=True))}


def add_totals(total: Totals, part: Totals) -> Totals:
    """Add a part to a total, in place: of many days, copies would take longer than all else."""
    for name, days in part.items():
        known = total.setdefault(name, {})
        for day, (shown, positives) in days.items():
            before = known.get(day, (0, 0))
            known[day] = (before[0] + shown, before[1] + positives)
    return total


@dataclass(frozen=True)
class Overall:
    """The rate over all keys to the end of each day; NaN before the first."""

    days: np.ndarray
    shown: np.ndarray
    positives: np.ndarray

    @staticmethod
    def of(sums: Totals, feature: str) -> Overall:
        """The rates of one counter feature."""
        rows = sorted((day, *both) for day, both in sums.get(feature, {}).items())
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return Overall(table[:, 0], table[:, 1].cumsum(), table[:, 2].cumsum())

    def before(self, day: np.ndarray) -> np.ndarray:
        """The rate to the end of the day before each day, float64 [days]."""
        at = np.searchsorted(self.days, day) - 1
        shown = np.where(at >= 0, self.shown[at] if len(self.shown) else 0, 0)
        positives = np.where(at >= 0, self.positives[at] if len(self.shown) else 0, 0)
        return np.where(shown > 0, positives / np.maximum(shown, 1), np.nan)

    @property
    def last_day(self) -> int:
        """The first day of which nothing is known yet."""
        return int(self.days[-1]) + 1 if len(self.days) else 0


def statistic(
    shown: np.ndarray, positives: np.ndarray, overall: np.ndarray, encode: Counter
) -> np.ndarray:
    """The counter's value, float32: a count, or the smoothed rate."""
    if encode.statistic == "impressions":
        return shown.astype(np.float32)
    if encode.statistic == "positives":
        return positives.astype(np.float32)
    weight = encode.prior_weight
    return ((positives + weight * overall) / (shown + weight)).astype(np.float32)


def answers(
    parts: list[tuple[int, pa.Table]], feature: Feature, overall: Overall
) -> tuple[list[tuple[int, pa.Table]], pa.Table]:
    """Answer what the shards of impressions asked about the keys of one counter shard.

    Args:
        parts: (shard of impressions, its partial), of the keys of this counter shard.
        feature: The counter feature.
        overall: Its rates over all keys.

    Returns:
        (shard of impressions, table of `joint_key`, `day` and `value`) and the table of
        `joint_key` and `value` as of the end of all data.
    """
    frame = pd.concat(
        [part.to_pandas().assign(shard=shard) for shard, part in parts], ignore_index=True
    )
    frame = frame.sort_values([KEY, DAY, "shard"], ignore_index=True)
    days = frame.groupby([KEY, DAY], sort=True, as_index=False)[[SHOWN, POSITIVES]].sum()
    upto = days.groupby(KEY)[[SHOWN, POSITIVES]].cumsum()
    before = upto - days[[SHOWN, POSITIVES]]
    encode = _encode(feature)
    days[VALUE] = statistic(
        before[SHOWN].to_numpy(),
        before[POSITIVES].to_numpy(),
        overall.before(days[DAY].to_numpy()),
        encode,
    )
    asked = frame[frame[ASKED]].merge(days[[KEY, DAY, VALUE]], on=[KEY, DAY], how="left")
    replies = [
        (int(shard), _table(group[KEY], group[VALUE], group[DAY]))
        for shard, group in asked.groupby("shard", sort=True)
    ]
    last = days.groupby(KEY, sort=True)[[SHOWN, POSITIVES]].sum()
    end = overall.before(np.full(len(last), overall.last_day))
    final = statistic(last[SHOWN].to_numpy(), last[POSITIVES].to_numpy(), end, encode)
    return replies, _table(last.index, final)


def _table(
    keys: pd.Series | pd.Index, values: pd.Series | np.ndarray, days: pd.Series | None = None
) -> pa.Table:
    columns = {KEY: pa.array(keys.to_numpy(dtype=object), pa.string())}
    if days is not None:
        columns[DAY] = pa.array(days.to_numpy(np.int64))
    columns[VALUE] = pa.array(np.asarray(values, dtype=np.float32))
    return pa.table(columns)


def default_of(feature: Feature, overall: Overall) -> float:
    """The value of a key that was never seen, as of the end of all data."""
    nothing = np.zeros(1)
    end = overall.before(np.array([overall.last_day]))
    return float(statistic(nothing, nothing, end, _encode(feature))[0])


def attach(rows: pa.Table, replies: dict[str, list[pa.Table]], plan: Plan) -> pa.Table:
    """Add each counter's raw column (float32) to the rows, from the answers to their shard."""
    for feature in plan.counters:
        table = pa.concat_tables(replies[feature.name]).to_pandas()
        keys = pd.MultiIndex.from_arrays([table[KEY], table[DAY]])
        wanted = pd.MultiIndex.from_arrays(
            [joint_key(rows, feature, plan), rows[DAY].to_numpy().astype(np.int64)]
        )
        values = table[VALUE].to_numpy(np.float32)[keys.get_indexer(wanted)]
        rows = rows.append_column(raw(feature.name), pa.array(values))
    return rows


def serving_table(finals: list[pa.Table], feature: Feature, plan: Plan) -> pa.Table:
    """The counter as of the end of all data: one string column a `by`, and `key:value`."""
    table = pa.concat_tables(finals).sort_by(KEY)
    parts = [values_of(key) for key in table[KEY].to_pylist()]
    columns = {
        by.name: pa.array([part[i] for part in parts], pa.string())
        for i, by in enumerate(plan.by(feature))
    }
    return pa.table({**columns, COUNTED: table[VALUE]})
