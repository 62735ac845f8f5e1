"""Gradient-boosted trees beside the networks (`model.trees`), fitted once these are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.layers.tree_ensemble import Forest, Node
from recsys.spec.records import Spec, Trees
from recsys.trees import TreeInputs
from training.input import Rows, kept_rows, load_rows, open_training
from training.moments import in_heads_unit
from training.scoring import answered

PATIENCE = 20
"""Trees without a smaller validation loss after which no more are fitted."""

UNCHECKED = 100
"""The most trees of a task that validation cannot speak of."""

READ = 65_536


def fit_trees(spec: Spec, features: Path, validation: Rows) -> list[Forest]:
    """Boost the trees of each task, on the rows that its head speaks of.

    Trees read `recsys.spec.schema.tree_inputs`, minimize the log loss (squared error of a
    regression), and are no more than give the least loss on validation. Friedman 2001, Greedy
    Function Approximation; grown by histograms, the leaf of most gain first, as in LightGBM (Ke
    et al. 2017), by scikit-learn.

    Args:
        spec: The spec, with `model.trees`.
        features: The features folder.
        validation: Validation rows.

    Returns:
        A forest a task, an empty one where a task's training labels are all alike.
    """
    trees = _settings(spec)
    some = _some(len(validation), trees.rows, spec.train.seed)
    if some is not None:
        validation = Rows(**{name: array[some] for name, array in validation.arrays().items()})
    train, held = _training(spec, features, refit=False), _Table.of(spec, validation)
    forests = []
    for index, task in enumerate(spec.tasks):
        x, y, _ = held.of_task(spec, index)
        tells = len(y) > 0 and (task.is_regression or y.min() != y.max())
        count = trees.count if tells else min(trees.count, UNCHECKED)
        forests.append(_forest(spec, index, train, count, (x, y) if tells else None))
    return forests


def refit_trees(spec: Spec, features: Path, counts: Sequence[int]) -> list[Forest]:
    """As many trees of each task as `fit_trees` found best, on training and validation rows."""
    train = _training(spec, features, refit=True)
    return [_forest(spec, index, train, count, None) for index, count in enumerate(counts)]


def _settings(spec: Spec) -> Trees:
    assert spec.model.trees is not None
    return spec.model.trees


def told(spec: Spec, index: int, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [rows] that tell trees of a task: its head speaks of them, and its label is known.

    Args:
        spec: The spec.
        index: Which task.
        labels: [rows, tasks], NaN where not observed.
    """
    return answered(spec, spec.tasks[index].name, labels) & ~np.isnan(labels[:, index])


@dataclass(frozen=True)
class _Table:
    """Rows, and what trees read of them: float32 [rows, columns]."""

    rows: Rows
    x: NDArray[np.float32]

    @classmethod
    def of(cls, spec: Spec, rows: Rows) -> _Table:
        return cls(rows, _columns(TreeInputs(spec), rows))

    def of_task(self, spec: Spec, index: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Columns, labels and weights of the rows that a task's head speaks of."""
        labels = self.rows.labels
        chosen = told(spec, index, labels)
        y = in_heads_unit(spec.tasks[index], labels[chosen, index])
        return self.x[chosen], y, self.rows.weights[chosen]


def _training(spec: Spec, features: Path, refit: bool) -> _Table:
    split = open_training(spec, features, refit)
    kept = kept_rows(spec, split)
    count = split.rows if kept is None else len(kept)
    some = _some(count, _settings(spec).rows, spec.train.seed)
    if some is not None:
        kept = some if kept is None else kept[some]
    return _Table.of(spec, load_rows(spec, split, kept=kept))


def _forest(
    spec: Spec,
    index: int,
    train: _Table,
    count: int,
    held: tuple[NDArray[Any], NDArray[Any]] | None,
) -> Forest:
    x, y, weights = train.of_task(spec, index)
    # All alike, weights of 0 would be left out as those of 1 are.
    x, y, weights = x[weights > 0], y[weights > 0], weights[weights > 0]
    trees = _settings(spec)
    if not count or not len(y) or y.min() == y.max():
        return Forest.empty(trees.leaves)
    trees = trees.model_copy(update={"count": count})
    return _boost(trees, spec.train.seed, spec.tasks[index].is_regression, (x, y, weights), held)


def _some(total: int, limit: int, seed: int) -> NDArray[np.int64] | None:
    """Which rows to take, ascending, where there are more than the limit."""
    if total <= limit:
        return None
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def _columns(inputs: TreeInputs, rows: Rows) -> NDArray[np.float32]:
    """What trees read, [rows, columns], made by the graph that serves."""
    import tensorflow as tf

    read = tf.function(inputs, reduce_retracing=True, autograph=False)
    found = np.empty((len(rows), inputs.width), np.float32)
    for start in range(0, len(rows), READ):
        part = slice(start, start + READ)
        batch = {"ids": tf.constant(rows.ids[part]), "numbers": tf.constant(rows.numbers[part])}
        found[part] = read(batch).numpy()
    return found


def _boost(
    trees: Trees,
    seed: int,
    regression: bool,
    train: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    validation: tuple[NDArray[Any], NDArray[Any]] | None,
) -> Forest:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x, y, weights = train
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    checked = validation is not None
    booster = kind(
        learning_rate=trees.learning_rate,
        max_iter=trees.count,
        max_leaf_nodes=trees.leaves,
        min_samples_leaf=trees.leaf_rows,
        l2_regularization=1.0,
        early_stopping=checked,
        n_iter_no_change=PATIENCE,
        scoring="loss",
        random_state=seed,
    )
    held = {"X_val": validation[0], "y_val": validation[1]} if validation is not None else {}
    # Weights, even equal ones, make scikit-learn take five times as long.
    weigh = {} if (weights == weights[0]).all() else {"sample_weight": weights}
    booster.fit(x, y, **weigh, **held)
    # scikit-learn has no public way to a fitted booster's nodes; a test compares all answers.
    grown = [_nodes(part.nodes) for step in booster._predictors for part in step]
    # What came after the smallest loss was of no use to rows that trees have not seen.
    best = int(np.argmax(booster.validation_score_)) if checked else len(grown)
    base = float(np.ravel(booster._baseline_prediction)[0])
    return Forest.of(grown[:best], trees.leaves, base)


def _nodes(nodes: NDArray[Any]) -> list[Node]:
    return [
        Node(
            is_leaf=bool(node["is_leaf"]),
            value=float(node["value"]),
            feature=int(node["feature_idx"]),
            threshold=float(node["num_threshold"]),
            left=int(node["left"]),
            right=int(node["right"]),
        )
        for node in nodes
    ]
