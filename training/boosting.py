"""Gradient-boosted trees beside the networks (`model.trees`), fitted once these are trained."""

from __future__ import annotations

from collections.abc import Sequence
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


def fit_trees(
    spec: Spec, features: Path, validation: Rows, counts: Sequence[int] | None = None
) -> list[Forest]:
    """Boost the trees of each task, on the rows that its head speaks of.

    Trees read `recsys.schema.tree_inputs`, minimize the log loss (squared error of a
    regression), and are no more than give the least loss on validation. Friedman 2001, Greedy
    Function Approximation; grown by histograms, the leaf of most gain first, as in LightGBM (Ke
    et al. 2017), by scikit-learn.

    Args:
        spec: The spec, with `model.trees`.
        features: The features folder.
        validation: Validation rows.
        counts: For a refit, how many trees each task gets: they are then boosted on training
            and validation rows together. None to let validation tell.

    Returns:
        A forest a task, an empty one where a task's training labels are all alike.
    """
    trees = spec.model.trees
    assert trees is not None
    split = open_training(spec, features, refit=counts is not None)
    kept = kept_rows(spec, split)
    some = _some(split.rows if kept is None else len(kept), trees.rows, spec.train.seed)
    if some is not None:
        kept = some if kept is None else kept[some]
    train = load_rows(spec, split, kept=kept)
    some = _some(len(validation), trees.rows, spec.train.seed)
    if some is not None:
        validation = Rows(**{name: array[some] for name, array in validation.arrays().items()})
    inputs = TreeInputs(spec)
    x, x_validation = _columns(inputs, train), _columns(inputs, validation)
    forests = []
    for index, task in enumerate(spec.tasks):
        chosen = _labelled(spec, task.name, train.labels[:, index], train)
        checked = _labelled(spec, task.name, validation.labels[:, index], validation)
        y, y_validation = (
            in_heads_unit(task, labels)
            for labels in (train.labels[chosen, index], validation.labels[checked, index])
        )
        count = trees.count if counts is None else counts[index]
        if not count or not len(y) or y.min() == y.max():
            forests.append(Forest.empty(trees.leaves))
            continue
        forests.append(
            _boost(
                trees.model_copy(update={"count": count}),
                spec.train.seed,
                task.is_regression,
                (x[chosen], y, train.weights[chosen]),
                (x_validation[checked], y_validation) if counts is None else None,
            )
        )
    return forests


def _some(total: int, limit: int, seed: int) -> NDArray[np.int64] | None:
    """Which rows to take, ascending, where there are more than the limit."""
    if total <= limit:
        return None
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def _labelled(spec: Spec, task: str, labels: NDArray[Any], rows: Rows) -> NDArray[np.bool_]:
    return answered(spec, task, rows.labels) & ~np.isnan(labels)


def _columns(inputs: TreeInputs, rows: Rows) -> NDArray[np.float32]:
    """What trees read, [rows, columns], made by the graph that serves."""
    import tensorflow as tf

    read = tf.function(inputs, reduce_retracing=True)
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
    told = validation[1] if validation is not None else y
    checked = validation is not None and len(told) > 0 and (regression or told.min() != told.max())
    most = trees.count if checked or validation is None else min(trees.count, UNCHECKED)
    booster = kind(
        learning_rate=trees.learning_rate,
        max_iter=most,
        max_leaf_nodes=trees.leaves,
        min_samples_leaf=trees.leaf_rows,
        l2_regularization=1.0,
        early_stopping=checked,
        n_iter_no_change=PATIENCE,
        scoring="loss",
        random_state=seed,
    )
    held = {"X_val": validation[0], "y_val": told} if checked and validation else {}
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
