"""Logits of many rows, and what validation says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys import metrics
from recsys.outputs import probabilities
from recsys.spec.records import Spec
from recsys.spec.schema import conditional_name
from training.input import Rows

SCORE_BATCH = 2048
"""Rows scored at once. More are no faster, and of hundreds of fields their products fill memory."""


def score_rows(model: Any, rows: Rows, batch: int = SCORE_BATCH) -> NDArray[np.float32]:
    """Logits, float32 [rows, tasks], each given the task that it follows."""
    shape = (0, rows.labels.shape[1])
    return _in_batches(model.predict_logits, rows, batch, shape)


def score_kinds(model: Any, rows: Rows, batch: int = SCORE_BATCH) -> NDArray[np.float32]:
    """Logits of each kind of network, and of trees: float32 [rows, kinds, tasks]."""
    shape = (0, *model.kind_weights.shape)
    return _in_batches(model.predict_kinds, rows, batch, shape)


def _in_batches(
    predict: Callable[..., Any], rows: Rows, batch: int, none: tuple[int, ...]
) -> NDArray[np.float32]:
    import tensorflow as tf

    parts = []
    for start in range(0, len(rows), batch):
        chosen = slice(start, start + batch)
        ids, numbers = rows.ids[chosen], rows.numbers[chosen]
        count = len(ids)
        if count < batch and start:
            # The last part is filled up, so that one shape is traced, not two.
            ids = np.pad(ids, ((0, batch - count), (0, 0)))
            numbers = np.pad(numbers, ((0, batch - count), (0, 0)))
        logits = predict({"ids": tf.constant(ids), "numbers": tf.constant(numbers)})
        parts.append(logits.numpy()[:count])
    if not parts:
        return np.zeros(none, np.float32)
    return np.concatenate(parts)


def happened(spec: Spec, task: str, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [rows] on which all that comes before a task in its funnel happened."""
    names = [t.name for t in spec.tasks]
    rows = np.ones(len(labels), bool)
    for ancestor in spec.chain(task)[:-1]:
        rows &= labels[:, names.index(ancestor.name)] == 1
    return rows


def answered(spec: Spec, task: str, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [rows] that a task's own head speaks of: those on which all before it happened.

    A joint head answers for all rows, as one that follows nothing does.
    """
    if spec.task(task).space == "joint":
        return np.ones(len(labels), bool)
    return happened(spec, task, labels)


def measure(
    spec: Spec,
    labels: NDArray[Any],
    answers: dict[str, NDArray[Any]],
    groups: NDArray[Any] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """Metrics of every output: each task on all rows, and each given its parent where that
    happened.

    Args:
        spec: The spec.
        labels: [rows, tasks], in the order of the spec's tasks.
        answers: [rows] by output name.
        groups: [rows] user keys for GAUC, or None.
    """
    found: dict[str, dict[str, float | int | None]] = {}
    for index, task in enumerate(spec.tasks):
        own = labels[:, index]
        observed = happened(spec, task.name, labels)
        name = conditional_name(task.name, task.given) if task.given else task.name
        on = None if groups is None else groups[observed]
        if task.is_regression:
            # A number is known only of rows on which the task before it happened.
            found[name] = metrics.regression_metrics(own[observed], answers[name][observed])
            if task.given:
                found[task.name] = metrics.regression_metrics(own, answers[task.name])
            continue
        found[task.name] = metrics.task_metrics(own, answers[task.name], groups)
        if task.given:
            found[name] = metrics.task_metrics(own[observed], answers[name][observed], on)
    return found


def validate(
    spec: Spec, labels: NDArray[Any], logits: NDArray[Any]
) -> tuple[float, dict[str, dict[str, float | int | None]]]:
    """The score by which epochs are compared (more is better), and the metrics behind it.

    The score is the mean validation AUC of the tasks, or their mean log loss, negated. A
    task whose validation labels are all alike has no AUC and does not count; where none
    counts, or all tasks are regressions, log loss or the root mean squared error decide. Tasks
    without weight are not trained, and have no say.
    """
    found = measure(spec, labels, probabilities(spec, logits))

    def mean(metric: str, tasks: list[str]) -> float | None:
        values = [found[name].get(metric) for name in tasks]
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else None

    trained = [task for task in spec.tasks if task.weight > 0]
    binary = [task.name for task in trained if not task.is_regression]
    score = mean("auc", binary) if spec.train.early_stopping.metric == "auc" else None
    if score is None:
        loss = mean("log_loss", binary)
        if loss is None:
            loss = mean("rmse", [task.name for task in trained])
        score = -loss if loss is not None else 0.0
    return score, found
