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
    labels: _Array, logits: _Array, weights: _Array, prior: _Array, max_knots: int
) -> tuple[_Array, _Array]:
    """Knots (x, y) on the logit, at most `max_knots`, both strictly increasing.

    Rows are first binned, half of the edges at quantiles of all logits and half at
    quantiles of the positives' logits: with one positive in a hundred rows, row
    quantiles alone would leave the whole top of the ranking in one bin. Bins are
    pooled, and a block's knot is at its mean logit. Between knots lines rise strictly,
    so rows keep their order where plain isotonic steps would tie them.

    A block without a single positive does not have a rate of zero. Each gets pseudo-rows
    at the mean of its `prior`, as many as hold half an event of the rarer outcome, and
    blocks are pooled once more: few events lean on the prior, many ignore it.

    Args:
        labels: [rows] of 0 and 1.
        logits: [rows], finite.
        weights: [rows], above 0.
        prior: [rows] of probabilities, a smoother calibration such as Platt's.
        max_knots: at least 1.
    """
    half = max(max_knots // 2, 1)
    probe = np.linspace(0.0, 1.0, half + 1)[1:-1]
    edges = np.unique(
        np.r_[
            np.quantile(logits, probe, method="nearest"),
            np.quantile(logits[labels > 0], probe, method="nearest"),
        ]
    )
    index = np.searchsorted(edges, logits, side="left")
    columns = (weights, weights * labels, weights * logits, weights * prior)
    sums = np.stack([np.bincount(index, c, edges.size + 1) for c in columns])
    sums = sums[:, sums[0] > 0]
    _, starts = isotonic_regression(sums[1] / sums[0], sums[0])
    mass, positives, logit_sum, prior_sum = np.add.reduceat(sums, starts, axis=1)
    expected = np.clip(prior_sum / mass, 1e-9, 1.0 - 1e-9)
    pseudo = 0.5 / np.minimum(expected, 1.0 - expected)
    rate = (positives + pseudo * expected) / (mass + pseudo)
    levels, starts = isotonic_regression(rate, mass + pseudo)
    x = np.add.reduceat(logit_sum, starts) / np.add.reduceat(mass, starts)
    y = np.log(levels) - np.log1p(-levels)
    # Between knots as close as this the line is so steep that the rounding of float32 shows.
    keep = np.r_[True, (np.diff(x) > 1e-4) & (np.diff(y) > 1e-9)]
    return x[keep], y[keep]
