"""The one place where predictions of ours and of the peers become metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.benchmarks.quality.rows import Keys
from recsys import metrics
from recsys.spec.records import Spec
from recsys.spec.schema import conditional_name

Metrics = dict[str, dict[str, float | int | None]]


def score(spec: Spec, keys: Keys, probs: NDArray[Any]) -> dict[str, Metrics]:
    """Metrics of all rows, and of the slice under its name.

    Args:
        spec: The spec.
        keys: Labels, users and the slice.
        probs: float32 [rows, tasks]: p(task and all that it follows).

    Returns:
        By set of rows, then by task, and `<task>_given_<given>` on rows where that happened.
    """
    probs = np.clip(probs.astype(np.float64), 0.0, 1.0)
    found = {"all": _measure(spec, keys.labels, probs, keys.users)}
    if keys.slice_name:
        rows = keys.slice
        found[keys.slice_name] = _measure(spec, keys.labels[rows], probs[rows], keys.users[rows])
    return found


def _measure(spec: Spec, labels: NDArray[Any], probs: NDArray[Any], users: NDArray[Any]) -> Metrics:
    names = [task.name for task in spec.tasks]
    found: Metrics = {}
    for at, task in enumerate(spec.tasks):
        found[task.name] = metrics.task_metrics(labels[:, at], probs[:, at], users)
        if task.given is not None:
            parent = names.index(task.given)
            on = labels[:, parent] == 1
            given = probs[on, at] / np.maximum(probs[on, parent], 1e-9)
            found[conditional_name(task.name, task.given)] = metrics.task_metrics(
                labels[on, at], np.minimum(given, 1.0), users[on]
            )
    return found


def selection(spec: Spec, found: dict[str, Metrics]) -> float:
    """What everything is chosen by on validation: mean AUC of the tasks over all rows."""
    values = [found["all"][task.name]["auc"] for task in spec.tasks]
    return float(np.mean([value for value in values if value is not None]))
