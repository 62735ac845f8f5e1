"""How much each kind of network (`model.variants`) and trees count, told by validation rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.spec.records import Spec
from training.input import Rows
from training.moments import in_heads_unit
from training.scoring import answered, score_kinds

_LARGEST_LOGIT = 30.0


def weigh_kinds(spec: Spec, model: Any, rows: Rows) -> dict[str, list[float]]:
    """Choose the weights of the kinds of network, and put them into the model.

    Args:
        spec: The spec.
        model: A trained model with `model.variants` or `model.trees`, the trees attached.
        rows: Validation rows.

    Returns:
        Weights by task, in the order of `spec.model.kinds`, then that of the trees. Where
        nothing can be told, as of a click that validation never saw, they are equal. A task
        without trees gives them none.
    """
    logits = score_kinds(model, rows)
    weights = {}
    for index, task in enumerate(spec.tasks):
        observed = answered(spec, task.name, rows.labels)
        there = logits.shape[1] - (model.trees is not None and not model.trees.tree_counts[index])
        weights[task.name] = np.zeros(logits.shape[1])
        labels, of_kinds = rows.labels[observed, index], logits[observed, :there, index]
        labels = in_heads_unit(task, labels)
        weigh = averaged if task.is_regression else stacked
        weights[task.name][:there] = weigh(labels, of_kinds)
    model.kind_weights.assign(np.stack(list(weights.values()), axis=1))
    return {name: [float(w) for w in of] for name, of in weights.items()}


def stacked(labels: ArrayLike, logits: ArrayLike) -> NDArray[np.float64]:
    """Weights of several models' logits in their sum, at least 0, which sum to 1.

    Those of the logistic regression on the logits with the smallest log loss; its scale and
    intercept are left to calibration. Stacking with weights of one sign: Breiman, Stacked
    Regressions, 1996.

    Args:
        labels: [rows] of 0 and 1, NaN where not observed.
        logits: [rows, models].

    Returns:
        [models]; equal weights where the labels are all alike or no model is of use.

    >>> x = np.linspace(-3, 3, 200)
    >>> labels = x + np.sin(9 * x) > 0
    >>> stacked(labels, np.stack([x, -x], axis=1)).round(2).tolist()
    [1.0, 0.0]
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    y, x = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    x = np.clip(x[~np.isnan(y)], -_LARGEST_LOGIT, _LARGEST_LOGIT)
    y = y[~np.isnan(y)]
    count = x.shape[1]
    equal = np.full(count, 1.0 / count)
    if not len(y) or y.min() == y.max():
        return equal
    design = np.column_stack([x, np.ones(len(y))])

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = design @ at
        return float(np.mean(np.logaddexp(0.0, z) - y * z)), design.T @ (expit(z) - y) / len(y)

    bounds = [(0.0, None)] * count + [(None, None)]
    found = minimize(loss, [*equal, 0.0], jac=True, method="L-BFGS-B", bounds=bounds)
    total = float(found.x[:count].sum())
    return found.x[:count] / total if total > 1e-3 else equal


def averaged(labels: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Weights of several models' values, at least 0, whose mean has the least squared error.

    They sum to 1, for the values are already in the labels' unit.

    Args:
        labels: [rows] of numbers, NaN where not observed.
        values: [rows, models].

    Returns:
        [models]; equal weights where there are no labels or no model errs.

    >>> averaged([0.0, 0.0, 3.0], [[1.0, -1.0], [1.0, -1.0], [4.0, 2.0]]).round(2).tolist()
    [0.5, 0.5]
    """
    from scipy.optimize import nnls

    y, x = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    count = x.shape[1]
    equal = np.full(count, 1.0 / count)
    errors = (x - y[:, np.newaxis])[~np.isnan(y)]
    if not errors.any():
        return equal
    # As small as the models are many, with the same products, and in a unit of its own.
    root = np.asarray(np.linalg.qr(errors, mode="r"))
    root /= np.abs(root).max()
    # With weights of sum t and mean squared error q when scaled to sum 1, least is
    # t^2 q + (t - 1)^2: at any t, the smaller q the better.
    found, _ = nnls(np.vstack([root, np.ones(count)]), [*np.zeros(len(root)), 1.0])
    return found / found.sum()
