"""Whether joined data are fit to learn from, and how their counts are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from beam_jobs.join import CONTRADICTS
from beam_jobs.plan import REQUEST, Plan
from beam_jobs.sinks import read_arrow
from beam_jobs.steps import REASON
from beam_jobs.validate import OF_LOGARITHM
from recsys.errors import UserError
from recsys.spec.records import ActionLabel, Spec, TimeSplit
from recsys.spec.schema import OWNER_KEY

_SHOWN = 3
_MANY_DUPLICATES = 0.01
_MANY_UNMATCHED = 0.5
_MANY_EARLY, _MANY_LATE = 0.01, 0.1
_MISSES = ("actions_without_impression", "actions_before_impression", "actions_after_window")
_FEW_REQUESTS = 100
"""Requests up to which a split without rows is their fault, more likely than chance."""


def require_good_records(counts: dict[str, int], plan: Plan, dead_letter: Path) -> None:
    """Refuse a log of which more is bad than `data.bad_records` allows.

    Raises:
        UserError: Names the log, how many rows have each fault, and the first examples.
    """
    allowed = plan.spec.data.bad_records
    for source in plan.sources:
        read = counts.get(f"read.{source.name}", 0)
        reasons = {
            name.split(REASON, 1)[1]: count
            for name, count in counts.items()
            if name.startswith(f"bad.{source.name}{REASON}")
        }
        bad = sum(reasons.values())
        if bad and bad > allowed * read:
            letters = ds.dataset(dead_letter).scanner(filter=pc.field("source") == source.name)
            first = letters.head(_SHOWN).to_pylist()
            listed = "; ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
            shown = "".join(f"\n              {x['reason']}: {_short(x['row'])}" for x in first)
            advice = ["Correct the log or the spec", *_advice(reasons, source.name)]
            raise UserError(
                f"Too many records of {source.name} are bad: {bad} of {read}.",
                where="data.bad_records",
                expected=f"at most {allowed:.2%}",
                found=f"{bad / max(read, 1):.2%} ({listed}){shown}",
                fix=", ".join([*advice, "or raise data.bad_records."]),
            )


def _advice(reasons: dict[str, int], source: str) -> Iterator[str]:
    """What in the spec may be at fault, by the reasons for which rows are bad."""
    time = "data.time" if source == "impressions" else f"data.actions.{source}.time"
    for end, place in (("is no time", time), ("is no date", "data.split.column")):
        if any(reason.endswith(end) for reason in reasons):
            yield f"set {place}.unit or {place}.format"
    if any(reason.endswith(CONTRADICTS) for reason in reasons):
        yield "leave one row of each id"
    if any(reason.endswith(OF_LOGARITHM) for reason in reasons):
        yield "give the task's loss log: false"


def _good_rows(counts: dict[str, int], source: str) -> int:
    """How many rows of a log or table are not bad."""
    bad = sum(n for name, n in counts.items() if name.startswith(f"bad.{source}{REASON}"))
    return counts.get(f"read.{source}", 0) - bad


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def doubtful_duplicates(counts: dict[str, int], plan: Plan) -> list[str]:
    """What there is to say of many equal rows, which may have been impressions of their own."""
    removed = counts.get("duplicates_removed", 0)
    read = counts.get("read.impressions", 0)
    if removed <= _MANY_DUPLICATES * read:
        return []
    if plan.spec.data.keys.impression:
        return [
            f"{removed:,} of {read:,} impressions equal another of their id in every column that "
            "is read and were removed: see whether the log holds files twice"
        ]
    columns = "every column"
    if plan.spec.data.time:
        of_days = plan.impressions.whole
        columns += " that tells rows apart" if of_days else " that is read"
    return [
        f"{removed:,} of {read:,} impressions equal another in {columns} and were removed; "
        "where they are impressions of their own, set data.duplicates: keep, or name their id "
        "by data.keys.impression"
    ]


def require_rows(rows: dict[str, int], counts: dict[str, int], spec: Spec, joined: Path) -> None:
    """Refuse a split without rows.

    Args:
        rows: Rows by split.
        counts: What the first pipeline counted.
        spec: The spec.
        joined: Where that pipeline wrote the joined rows.

    Raises:
        UserError: Names each split's rows, and the days that were found.
    """
    empty = [name for name, count in rows.items() if not count]
    if not empty:
        return
    days = sorted(name.removeprefix("day.") for name in counts if name.startswith("day."))
    outside = counts.get("outside_split", 0)
    found = ", ".join(f"{name} {count}" for name, count in rows.items())
    found += f", outside {outside}" if outside else ""
    found += f"; days {days[0]} to {days[-1]}" if days else "; no impressions"
    split = spec.data.split
    if isinstance(split, TimeSplit):
        expected = (
            f"rows to {split.train_to} (train), to {split.validation_to} (validation) and "
            f"{f'to {split.test_to}' if split.test_to else 'after that'} (test)"
        )
        fix = "Move the days of data.split into the range that was found."
    else:
        expected, fix = "rows in each split", "Give more rows, or larger fractions in data.split."
        requests = len(_requests(joined)) if spec.data.keys.request else 0
        if 0 < requests <= _FEW_REQUESTS:
            fix = (
                f"The split keeps the rows of a request together, and data.keys.request "
                f"({spec.data.keys.request}) has {requests} distinct "
                f"value{'s' * (requests > 1)}: name the column that tells requests apart, or none."
            )
    raise UserError(
        f"The split{'s' * (len(empty) > 1)} {' and '.join(empty)} "
        f"{'are' if len(empty) > 1 else 'is'} empty.",
        where="data.split",
        expected=expected,
        found=found,
        fix=fix,
    )


def require_known(rows: int, counts: dict[str, int], plan: Plan, folder: Path) -> list[str]:
    """Refuse a table of which no row is of an impression's user or item.

    Args:
        rows: Impressions that were joined.
        counts: What the first pipeline counted.
        plan: The plan.
        folder: The features folder, with its tables and the joined rows.

    Returns:
        What there is to say of a table that most impressions miss.

    Raises:
        UserError: Names the table, and ids on both sides.
    """
    warnings = []
    for owner, source in plan.tables.items():
        there = _good_rows(counts, source.name)
        missed = counts.get(f"{owner}_rows_unmatched", 0)
        if there <= 0 or missed <= _MANY_UNMATCHED * rows:
            continue
        if missed < rows:
            warnings.append(
                f"{missed:,} of {rows:,} impressions have no row in the {source.name}: "
                "their columns of it are missing"
            )
            continue
        key = source.fields[0].column
        raise UserError(
            f"No impression has a row in the {source.name}.",
            where=f"data.tables.{owner}.key ({key}) and data.keys.{owner} "
            f"({getattr(plan.spec.data.keys, owner)})",
            expected="the same ids in both",
            found=f"{there:,} rows of the table, with ids such as "
            f"{_some(pq.read_table(folder / 'tables' / f'{owner}.parquet')[OWNER_KEY])}, and "
            f"{rows:,} impressions, with ids such as {_some(_joined(folder)[f'key:{owner}'])}",
            fix="Correct the key in the spec, or write the ids alike.",
        )
    return warnings


def _some(ids: pa.ChunkedArray) -> str:
    return ", ".join(repr(value) for value in ids.unique().slice(0, _SHOWN).to_pylist())


def _joined(folder: Path) -> pa.Table:
    return read_arrow(str(next(folder.rglob("*.arrow"))))


def require_matches(counts: dict[str, int], plan: Plan) -> None:
    """Refuse an action log of which no event follows an impression within the window.

    Args:
        counts: What the first pipeline counted.
        plan: The plan.

    Raises:
        UserError: Names the log, and how many of its events have an impression at all.
    """
    for task in plan.spec.tasks:
        if not isinstance(task.label, ActionLabel) or counts.get(f"actions_in_window.{task.name}"):
            continue
        log = task.label.action
        events = _good_rows(counts, log)
        if events <= 0:
            continue
        lost, early, late = (counts.get(f"{name}.{log}", 0) for name in _MISSES)
        raise UserError(
            f"No impression has the label {task.name!r}, though the log {log} has events.",
            where=f"tasks.{task.name}.label",
            expected=f"events up to {task.label.within} after their impression",
            found=f"{events} events, {lost} of them of no impression that was read, "
            f"{early} before theirs, {late} later",
            fix=f"Look at the units of data.actions.{log}.time and data.time, at `within`, and at "
            "the column of data.keys.impression in both logs.",
        )


def doubtful_actions(counts: dict[str, int], plan: Plan) -> list[str]:
    """What there is to say of events that come before their impression or after all windows."""
    warnings = []
    for log in plan.actions:
        events = _good_rows(counts, log)
        _, early, late = (counts.get(f"{name}.{log}", 0) for name in _MISSES)
        if early > _MANY_EARLY * events:
            warnings.append(
                f"{early:,} of {events:,} events of the log {log} come before their impression and "
                f"count for nothing: see whether data.actions.{log}.time and data.time are of one "
                "clock, zone and unit"
            )
        if late > _MANY_LATE * events:
            warnings.append(
                f"{late:,} of {events:,} events of the log {log} come after the window of their "
                "label and count for nothing: see whether `within` is long enough"
            )
    return warnings


def without_label(
    labels: dict[str, dict[str, float]], counts: dict[str, int], spec: Spec
) -> list[str]:
    """What there is to say of actions that were in time and yet are no row's label.

    Args:
        labels: Means of the labels by split and task; none of a split without rows.
        counts: What the first pipeline counted.
        spec: The spec.
    """
    warnings = []
    for task in spec.tasks:
        inside = counts.get(f"actions_in_window.{task.name}", 0)
        if not inside or any(of.get(task.name) for of in labels.values()):
            continue
        repaired = counts.get(f"conversion_without_given.{task.name}", 0)
        reasons = [f"{repaired:,} lack the task that is given"] if repaired else []
        if repaired < inside:
            others = "the others" if repaired else "they"
            reasons.append(f"{others} are of days outside of data.split")
        warnings.append(
            f"{inside:,} events of the label {task.name!r} were in time, and no row has it: "
            + ", ".join(reasons)
        )
    return warnings


def unlearnable(labels: dict[str, dict[str, float]], spec: Spec) -> list[str]:
    """Tasks of which no training row is a positive."""
    train = labels.get("train", {})
    return [t.name for t in spec.tasks if not t.is_regression and train.get(t.name) == 0]


def _requests(joined: Path) -> set[str]:
    found: set[str] = set()
    for path in joined.rglob("*.arrow"):
        found.update(read_arrow(str(path))[REQUEST].unique().to_pylist())
    return found


def tidy(counts: dict[str, int]) -> dict[str, Any]:
    """The counts as the manifest has them: groups by the name before the dot.

    >>> tidied = tidy({"read.click": 5, "bad.click\\x1fx is missing": 1, "outside_split": 2})
    >>> tidied["read"], tidied["bad_records"], tidied["outside_split"]
    ({'click': 5}, {'x is missing': 1}, 2)
    """
    tidied: dict[str, Any] = {}
    for name, count in sorted(counts.items()):
        group, _, rest = name.partition(".")
        if group == "bad":
            reasons = tidied.setdefault("bad_records", {})
            reason = rest.split(REASON, 1)[1]
            reasons[reason] = reasons.get(reason, 0) + count
        elif group == "duplicates_removed" and rest:
            tidied.setdefault("table_duplicates_removed", {})[rest] = count
        elif rest:
            tidied.setdefault(group, {})[rest] = count
        else:
            tidied[name] = count
    tidied.setdefault("duplicates_removed", 0)
    tidied.setdefault("bad_records", {})
    tidied.setdefault("outside_split", 0)
    return tidied
