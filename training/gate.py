"""The gate: whether a challenger may serve. Pure functions of numbers, and values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.spec.records import Gate, Spec
from recsys.spec.schema import conditional_name


@dataclass(frozen=True)
class Promote:
    """The challenger passes.

    Attributes:
        version: The version it was published as; 0 before that.
        path: Where it lies, or None before that.
        notes: What was compared, with numbers, and what was waived.
        already: Whether this very run was published before, so that nothing was done.
    """

    version: int = 0
    path: Path | None = None
    notes: tuple[str, ...] = ()
    already: bool = False


@dataclass(frozen=True)
class Reject:
    """The challenger does not pass, for these reasons, each with its numbers."""

    reasons: tuple[str, ...]


Decision = Promote | Reject

_ROUNDING = 1e-9
"""What the difference of two floats may be off by: 0.75 - 0.74 is more than 0.01."""


def decide(metrics: Mapping[str, Any], champion: Mapping[str, Any] | None, spec: Spec) -> Decision:
    """Judge a challenger by its metrics, and the champion's on the same rows.

    Every task's own output is judged: AUC at least `gate.min_auc`, ECE at most
    `gate.max_ece`, and AUC at most `gate.max_auc_drop` below the champion's. A task that the
    champion does not have is judged by the first two alone; a regression by none, and neither is
    a task of weight 0 whose gate is the default, of which a note is made. A task that only the
    champion has is lost to those who ask for it, which is a reason against.

    >>> from recsys.spec import loads
    >>> spec = loads('''
    ... name: shop
    ... data: {impressions: log.csv, keys: {user: user, item: item}, split: {test: 0.1}}
    ... features: [{name: user, owner: user, encode: vocabulary}]
    ... tasks: [{name: click, label: {column: click}, gate: {min_auc: 0.7}}]
    ... ''')
    >>> decide({"rows": 9, "tasks": {"click": {"auc": 0.65, "ece": 0.0}}}, None, spec).reasons
    ('click: AUC 0.6500 is below the gate of 0.7000',)
    """
    reasons: list[str] = []
    notes: list[str] = []
    if not metrics.get("rows"):
        reasons.append("the challenger was evaluated on no rows")
    others = (champion or {}).get("tasks", {})
    if others and not any(task.name in others for task in spec.tasks):
        reasons.append(
            f"the champion ({', '.join(others)}) has no task in common with the challenger "
            f"({', '.join(task.name for task in spec.tasks)}): these are models of different things"
        )
    elif lost := _tasks(others) - {task.name for task in spec.tasks}:
        reasons.append(
            f"{', '.join(sorted(lost))}: the challenger has no such task, and the champion has"
        )
    for task in spec.tasks:
        if task.is_regression:
            continue
        if task.weight == 0.0 and task.gate == Gate():
            notes.append(f"{task.name}: not judged, as its weight is 0 and its gate sets no limit")
            continue
        mine, theirs = metrics.get("tasks", {}).get(task.name), others.get(task.name)
        if mine is None:
            reasons.append(f"{task.name}: the challenger has no metrics")
            continue
        auc, ece, gate = mine.get("auc"), mine.get("ece"), task.gate
        if auc is None:
            reasons.append(f"{task.name}: AUC is not defined, for want of both labels")
        elif gate.min_auc is not None and auc < gate.min_auc:
            mine_said, least = _apart(auc, gate.min_auc)
            reasons.append(f"{task.name}: AUC {mine_said} is below the gate of {least}")
        if gate.max_ece is not None and (ece is None or ece > gate.max_ece):
            shown, most = (
                ("not defined", f"{gate.max_ece:.4f}") if ece is None else _apart(ece, gate.max_ece)
            )
            reasons.append(f"{task.name}: ECE {shown} is above the gate of {most}")
        before = None if theirs is None else theirs.get("auc")
        if auc is None or before is None:
            continue
        if before - auc > gate.max_auc_drop + _ROUNDING:
            drop, most = _apart(before - auc, gate.max_auc_drop)
            reasons.append(
                f"{task.name}: AUC {auc:.4f} is {drop} below the champion's "
                f"{before:.4f}; at most {most} is allowed"
            )
        else:
            notes.append(f"{task.name}: AUC {auc:.4f}, the champion's {before:.4f}")
    return Reject(tuple(reasons)) if reasons else Promote(notes=tuple(notes))


def _apart(found: float, limit: float) -> tuple[str, str]:
    """Two numbers in as many digits as tell them apart, four at least.

    >>> _apart(0.65, 0.7), _apart(0.69996, 0.7)
    (('0.6500', '0.7000'), ('0.69996', '0.70000'))
    """
    digits = next((n for n in range(4, 17) if f"{found:.{n}f}" != f"{limit:.{n}f}"), 4)
    return f"{found:.{digits}f}", f"{limit:.{digits}f}"


def _tasks(answers: Iterable[str]) -> set[str]:
    """The tasks among a model's answers, of which some are of one task given another."""
    names = set(answers)
    return names - {conditional_name(task, given) for task in names for given in names}
