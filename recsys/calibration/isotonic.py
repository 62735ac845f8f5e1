"""Isotonic calibration: pool adjacent violators, then a few knots on the logit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[Any]


def isotonic_regression(values: ArrayLike, weights: ArrayLike | None = None) -> tuple[_Array, ...]:
    """Least-squares non-decreasing fit by pooling adjacent violators, in linear time.

    Args:
        values: [n], in the order in which the fit must not decrease.
        weights: [n], above 0, or None.

    Returns:
        (levels, starts): the strictly increasing levels of the blocks, and the index at
        which each block starts.

    >>> levels, starts = isotonic_regression([1.0, 3.0, 2.0, 4.0])
    >>> levels.tolist(), starts.tolist()
    ([1.0, 2.5, 4.0], [0, 1, 3])
    """
    v = np.asarray(values, dtype=np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=np.float64)
    level: list[float] = []
    mass: list[float] = []
    start: list[int] = []
    for i, (value, weight) in enumerate(zip(v.tolist(), w.tolist(), strict=True)):
        first = i
        while level and level[-1] >= value:
            last = mass.pop()
            value = (level.pop() * last + value * weight) / (last + weight)
            weight += last
            first = start.pop()
        level.append(value)
        mass.append(weight)
        start.append(first)
    return np.asarray(level), np.asarray(start, dtype=np.int64)


def isotonic_knots(
    labels: _Array, logits: _Array, weights: _Array, max_knots: int
) -> tuple[_Array, _Array]:
    """Knots (x, y) on the logit, at most `max_knots`, both strictly increasing.

    Rows are first binned, half of the edges at quantiles of all logits and half at
    quantiles of the positives' logits: with one positive in a hundred rows, row
    quantiles alone would leave the whole top of the ranking in one bin. Each bin gets
    one pseudo-row at the overall rate, which keeps rates away from 0 and 1. Bins are
    then pooled; a block's knot is at its mean logit. Between knots lines rise
    strictly, so rows keep their order where plain isotonic steps would tie them.
    """
    half = max(max_knots // 2, 1)
    probe = np.linspace(0.0, 1.0, half + 1)[1:-1]
    edges = np.unique(np.r_[
        np.quantile(logits, probe, method="nearest"),
        np.quantile(logits[labels > 0], probe, method="nearest"),
    ])
    index = np.searchsorted(edges, logits, side="left")
    n = edges.size + 1
    mass = np.bincount(index, weights, n)
    used = mass > 0
    positives = np.bincount(index, weights * labels, n)[used]
    centre_sum = np.bincount(index, weights * logits, n)[used]
    mass = mass[used]
    rate = positives.sum() / mass.sum()
    smoothed = (positives + rate) / (mass + 1.0)
    levels, starts = isotonic_regression(smoothed, mass + 1.0)
    x = np.add.reduceat(centre_sum, starts) / np.add.reduceat(mass, starts)
    y = np.log(levels) - np.log1p(-levels)
    # Knots a rounding error apart would make a vertical line that float32 cannot follow.
    keep = np.r_[True, (np.diff(x) > 1e-4) & (np.diff(y) > 1e-9)]
    return x[keep], y[keep]
