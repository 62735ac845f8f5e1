"""Mean and deviation of regression labels, by which their predictions start and are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.spec.records import Spec, Task
from recsys.spec.schema import label_column
from training.input import Split, read_columns
from training.scoring import happened


def in_heads_unit(task: Task, labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as the task's head says them: log(1 + label), from 0 on, where the loss is on it."""
    return np.log1p(np.maximum(labels, 0.0)) if task.by_logarithm else labels


def label_units(spec: Spec, training: Split) -> NDArray[np.float32]:
    """Means and standard deviations of the labels of regressions, float32 [2, tasks].

    Of log(1 + label) where the spec says so, over the training rows on which the task before it
    happened; 0 and 1 for tasks with probabilities, and a deviation of 1 where labels are all alike.

    Args:
        spec: The spec.
        training: The training split, all of it, so that each worker gets the same.
    """
    names = [label_column(task.name) for task in spec.tasks]
    sums = np.zeros((3, len(names)))
    for _, table in read_columns(training, names):
        labels = np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float64)
        for index, task in enumerate(spec.tasks):
            if not task.is_regression:
                continue
            own = labels[happened(spec, task.name, labels), index]
            own = own[~np.isnan(own)]
            own = in_heads_unit(task, own)
            sums[:, index] += len(own), own.sum(), np.square(own).sum()
    count = np.maximum(sums[0], 1.0)
    mean = sums[1] / count
    variance = np.maximum(sums[2] / count - np.square(mean), 0.0)
    # Far from 0, the difference of two large sums is but rounding.
    known = variance > 1e-12 * np.square(mean)
    return np.stack([mean, np.where(known, np.sqrt(variance), 1.0)]).astype(np.float32)
