"""Join what was shown with what followed and with what is known of users and items.

Plain functions on the Arrow tables of one shard; rows come in the order in which they were
read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.plan import (
    DAY,
    IMPRESSION,
    REST,
    ROW,
    TABLE_KEY,
    TIME,
    Owner,
    Plan,
    has_any,
    known,
    raw,
)
from beam_jobs.validate import DEAD_LETTER, MS_PER_DAY, dead_letters, missing_label
from recsys.spec.records import ActionLabel, ColumnLabel
from recsys.spec.schema import label_column

Counts = dict[str, int]
CONTRADICTS = "is there twice, with different values"


@dataclass(frozen=True)
class Joined:
    """A shard after a join: its rows, dead letters, and what was counted."""

    rows: pa.Table
    dead: pa.Table = field(default_factory=DEAD_LETTER.empty_table)
    counts: Counts = field(default_factory=dict)


def _codes(table: pa.Table, columns: list[str]) -> np.ndarray:
    """A number for each distinct combination of the columns' values, int64 [rows]."""
    codes = np.zeros(len(table), dtype=np.int64)
    for name in columns:
        values = table[name].combine_chunks()
        if pa.types.is_floating(values.type):
            values = values.view(pa.int32() if values.type == pa.float32() else pa.int64())
        own = pc.dictionary_encode(values).indices.to_numpy()
        codes, _ = pd.factorize(codes * (int(own.max(initial=0)) + 1) + own)
    return codes


def _first_of(codes: np.ndarray) -> np.ndarray:
    """True where a code stands for the first time, bool [rows]."""
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first


def deduplicate(table: pa.Table, source: str, key: str | None, column: str = "") -> Joined:
    """Keep the first of rows that are equal in all columns.

    `rest` stands for the columns that nothing reads. It counts where a row has no time, or one
    that is a day: of two events at one moment, what else is written of them is no difference.

    Rows that share the column `key` but differ otherwise contradict each other: the first is
    kept, the others are dead letters, which name it as the log's own `column`.
    """
    if REST in table.column_names and TIME in table.column_names:
        is_day = table[TIME].to_numpy() % MS_PER_DAY == 0
        table = _set(table, REST, pa.array(np.where(is_day, table[REST].to_numpy(), 0)))
    first = _first_of(_codes(table, [name for name in table.column_names if name != ROW]))
    table = table.drop_columns([REST]) if REST in table.column_names else table
    counts = {"duplicates_removed": int((~first).sum())}
    kept = table.filter(pa.array(first)) if counts["duplicates_removed"] else table
    if key is None or not len(kept):
        return Joined(kept, counts=counts)
    alone = _first_of(_codes(kept, [key]))
    if alone.all():
        return Joined(kept, counts=counts)
    others = kept.filter(pa.array(~alone)).drop_columns([ROW]).to_pylist()
    reason = f"{column} {CONTRADICTS}"
    dead = dead_letters(source, [reason] * len(others), others)
    return Joined(kept.filter(pa.array(alone)), dead, counts)


def attribute(shown: pa.Table, actions: dict[str, pa.Table], plan: Plan) -> Joined:
    """Label impressions by the actions that followed them within the tasks' windows.

    Args:
        shown: Impressions, no impression id twice.
        actions: Events by log, with `key:impression` and `key:time` (ms).
        plan: The plan; its tasks are labelled in the order of the funnel.

    Returns:
        The impressions with `label:<task>` of every task, and `known:<task>` (ms) of those
        that histories and counters ask for. A label whose given task did not happen is
        repaired to 0 and counted; one that is blank where it did makes its row a dead letter.
    """
    spec = plan.spec
    windows = {name: _window_ms(plan, name) for name in actions}
    own: dict[str, np.ndarray] = {}
    moment: dict[str, np.ndarray] = {}
    time = shown[TIME].to_numpy() if TIME in shown.column_names else np.zeros(len(shown), np.int64)
    counts: Counts = {}
    matched: dict[str, np.ndarray] = {}
    delays: dict[str, np.ndarray] = {}
    for name, events in actions.items():
        found = pc.index_in(
            events[IMPRESSION].combine_chunks(), value_set=shown[IMPRESSION].combine_chunks()
        )
        matched[name] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        unknown = int((matched[name] < 0).sum())
        delay = _delays(time, matched[name], events, _unit_ms(plan, name))
        found_ones = {
            f"actions_without_impression.{name}": unknown,
            f"actions_before_impression.{name}": int((delay < 0).sum()),
            f"actions_after_window.{name}": int((delay > windows[name]).sum()),
        }
        counts |= {count: number for count, number in found_ones.items() if number}
        delays[name] = delay
    for task in spec.tasks:
        if isinstance(task.label, ActionLabel):
            log = task.label.action
            inside = (delays[log] >= 0) & (delays[log] <= task.label.within_seconds * 1000)
            own[task.name], moment[task.name] = _follows(
                time, matched[log][inside], actions[log][TIME].to_numpy()[inside]
            )
            if inside.any():
                counts[f"actions_in_window.{task.name}"] = int(inside.sum())
        else:
            own[task.name] = shown[label_column(task.name)].to_numpy()
            moment[task.name] = time
    original, reasons = shown, np.full(len(shown), "", dtype=object)
    for task in spec.tasks:
        label, at = own[task.name], moment[task.name]
        for ancestor in spec.chain(task.name)[:-1]:
            happened = own[ancestor.name] > 0
            broken = int(((label != 0) & ~np.isnan(label) & ~happened).sum())
            if broken:
                name = f"conversion_without_given.{task.name}"
                counts[name] = counts.get(name, 0) + broken
            label = np.where(happened, label, 0)
            at = np.maximum(at, moment[ancestor.name])
        if isinstance(task.label, ColumnLabel):
            reasons[np.isnan(label) & (reasons == "")] = missing_label(task.label.column)
        shown = _set(shown, label_column(task.name), pa.array(label.astype(np.float32)))
        if task.name in plan.tracked:
            shown = _set(shown, known(task.name), pa.array(at))
    if TIME in shown.column_names and DAY not in shown.column_names:
        days = np.floor_divide(time, MS_PER_DAY).astype(np.int32)
        shown = shown.append_column(DAY, pa.array(days))
    bad = reasons != ""
    if not bad.any():
        return Joined(shown, counts=counts)
    letters = original.drop_columns([ROW]).filter(pa.array(bad)).to_pylist()
    dead = dead_letters("impressions", reasons[bad].tolist(), letters)
    return Joined(shown.filter(pa.array(~bad)), dead, counts)


def _window_ms(plan: Plan, log: str) -> int:
    """The longest window in which a task waits for an action of the log; no end where none does."""
    labels = [t.label for t in plan.spec.tasks if isinstance(t.label, ActionLabel)]
    return max((1000 * of.within_seconds for of in labels if of.action == log), default=2**62)


def _unit_ms(plan: Plan, log: str) -> int:
    """The unit in which a log's times are counted; of ISO text, seconds, where it has no more."""
    time = plan.spec.data.actions[log].time
    assert time is not None
    if time.format is None:
        return 1000 if time.unit in ("s", "iso") else 1
    return next((ms for letters, ms in _UNITS_MS if has_any(time.format, letters)), MS_PER_DAY)


_UNITS_MS = (("f", 1), ("ScTXs", 1000), ("MR", 60_000), ("HI", 3_600_000))
"""The letters of a pattern by the finest unit that they write."""


def _delays(time: np.ndarray, matched: np.ndarray, events: pa.Table, unit: int) -> np.ndarray:
    """By how many ms each event follows its impression; NaN where it has none, float64 [events].

    An event that is written in a coarser unit than its impression was rounded down, and may have
    followed it where it seems to come less than a unit before: that counts as at once.
    """
    at = events[TIME].to_numpy()
    if not len(time):
        return np.full(len(at), np.nan)
    delay = np.where(matched >= 0, at - time[np.maximum(matched, 0)], np.nan)
    rounded = (at % unit == 0) & (delay < 0) & (delay > -unit)
    return np.where(rounded, 0, delay)


def _follows(
    time: np.ndarray, matched: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which impressions an event of those in the window followed, and when the first one did."""
    first = np.full(len(time), np.iinfo(np.int64).max)
    np.minimum.at(first, matched, at)
    happened = first != np.iinfo(np.int64).max
    return happened.astype(np.float32), np.where(happened, np.maximum(first, time), time)


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def join_table(rows: pa.Table, table: pa.Table | None, owner: Owner) -> Joined:
    """Add a user's or item's columns to its impressions; defaults where there is no such key.

    Args:
        rows: Impressions with `key:<owner>`.
        table: `key` (no key twice) and the raw columns, or None where the spec has no table.
        owner: Whose table it is.
    """
    if table is None:
        return Joined(rows)
    found = pc.index_in(
        rows[f"key:{owner}"].combine_chunks(), value_set=table[TABLE_KEY].combine_chunks()
    )
    for name in table.column_names:
        if name in (TABLE_KEY, ROW):
            continue
        values = table[name].combine_chunks().take(found)
        default = "" if pa.types.is_string(values.type) else float("nan")
        rows = _set(rows, name, pc.fill_null(values, pa.scalar(default, values.type)))
    missing = found.null_count
    return Joined(rows, counts={f"{owner}_rows_unmatched": missing} if missing else {})


def latest(rows: pa.Table, owner: Owner, columns: list[str]) -> pa.Table:
    """The newest values of each key among the impressions: `key` and the job's columns."""
    names = [raw(column) for column in columns]
    table = rows.select([f"key:{owner}", *names]).rename_columns([TABLE_KEY, *names])
    time = rows[TIME].to_numpy() if TIME in rows.column_names else np.zeros(len(rows), np.int64)
    order = np.lexsort((rows[ROW].to_numpy(), time))[::-1]
    newest = table.take(pa.array(order))
    return newest.filter(pa.array(_first_of(_codes(newest, [TABLE_KEY]))))
