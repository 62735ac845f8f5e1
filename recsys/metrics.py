"""Metrics of ranked probabilities and of regressions, in NumPy alone.

Every function is vectorised and takes time n log n at most; ten million rows take
seconds. Rows whose label is NaN (not observed) are left out throughout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[Any]


def _observed(
    labels: ArrayLike, scores: ArrayLike, extra: ArrayLike | None, what: str
) -> tuple[_Array, _Array, _Array | None]:
    y, s = np.asarray(labels), np.asarray(scores)
    if s.dtype not in (np.float32, np.float64):
        s = s.astype(np.float64)
    e = None if extra is None else np.asarray(extra)
    shapes = [a.shape for a in (y, s, e) if a is not None]
    if y.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"labels, scores and {what} must be [rows]; received shapes {shapes}.")
    if y.dtype.kind == "f":
        keep = ~np.isnan(y)
        if not keep.all():
            y, s, e = y[keep], s[keep], None if e is None else e[keep]
    bad = int(np.isnan(s).sum())
    if bad:
        raise ValueError(f"scores must not be NaN; received {bad} NaN among {s.size}.")
    return y, s, e


def _binary(y: _Array) -> _Array:
    positive = y == 1
    if not (positive | (y == 0)).all():
        raise ValueError("labels must be 0 or 1 (or NaN where not observed).")
    return positive


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties half.

    Args:
        labels: [rows] of 0 and 1, NaN where not observed.
        scores: [rows], any monotone score.
        weights: [rows], at least 0, or None.

    Returns:
        The area, or NaN if one of the classes is absent.

    Raises:
        ValueError: on NaN scores, labels that are not 0 or 1, or shapes that differ.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    y, s, w = _observed(labels, scores, weights, "weights")
    positive = _binary(y)
    if s.size == 0:
        return math.nan
    if w is None:
        # No order of the rows is needed: sort each class, then count the negatives below.
        above, below = s[positive], s[~positive]
        if not (above.size and below.size):
            return math.nan
        above.sort()
        below.sort()
        wins = np.searchsorted(below, above, "left").sum(dtype=np.float64)
        wins += np.searchsorted(below, above, "right").sum(dtype=np.float64)
        return float(wins / (2.0 * above.size * below.size))
    order = np.argsort(s)
    s, positive, w = s[order], positive[order], w[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    positives = np.add.reduceat(np.where(positive, w, 0.0), starts)
    negatives = np.add.reduceat(np.where(positive, 0.0, w), starts)
    total = float(positives.sum()) * float(negatives.sum())
    if total == 0:
        return math.nan
    return float(positives @ (np.cumsum(negatives) - 0.5 * negatives)) / total


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Grouped AUC: mean of each user's AUC, weighted by the user's impressions.

    Users without both classes have no AUC and are left out (Zhu et al. 2017,
    https://arxiv.org/abs/1703.02091).

    Args:
        labels: [rows] of 0 and 1, NaN where not observed.
        scores: [rows], any monotone score.
        groups: [rows] of ids (integers or strings).

    Returns:
        The weighted mean, or NaN if no user has both classes.

    Raises:
        ValueError: on NaN scores, labels that are not 0 or 1, or shapes that differ.

    >>> gauc([0, 1, 1, 0, 1], [0.1, 0.9, 0.2, 0.7, 0.5], ["a", "a", "b", "b", "c"])
    0.5
    """
    y, s, g = _observed(labels, scores, groups, "groups")
    assert g is not None
    positive = _binary(y)
    if s.size == 0:
        return math.nan
    # Group, score and label in one integer: sorting it is far cheaper than two argsorts.
    key = _group_codes(g) << np.uint64(33)
    key |= _score_codes(s) << np.uint64(1)
    key |= positive.astype(np.uint64)
    key.sort()
    pos = (key & np.uint64(1)).astype(np.float64)
    neg = 1.0 - pos
    group, run = key >> np.uint64(33), key >> np.uint64(1)
    new_group = np.r_[True, group[1:] != group[:-1]]
    new_run = np.r_[True, run[1:] != run[:-1]]
    group_starts, run_starts = np.flatnonzero(new_group), np.flatnonzero(new_run)
    run_pos, run_neg = np.add.reduceat(pos, run_starts), np.add.reduceat(neg, run_starts)
    # Negatives below a run, counted from the start of its own group. Sums of 0s and 1s
    # in float64 are exact, so nothing leaks from one group into the next.
    first_run = np.searchsorted(run_starts, group_starts)
    cumulative = np.cumsum(run_neg) - run_neg
    run_group = np.cumsum(new_group[run_starts]) - 1
    below = cumulative - cumulative[first_run][run_group] + 0.5 * run_neg
    wins = np.add.reduceat(run_pos * below, first_run)
    n_pos, n_neg = np.add.reduceat(pos, group_starts), np.add.reduceat(neg, group_starts)
    both = (n_pos > 0) & (n_neg > 0)
    if not both.any():
        return math.nan
    impressions = (n_pos + n_neg)[both]
    return float(np.average(wins[both] / (n_pos * n_neg)[both], weights=impressions))


def _group_codes(groups: _Array) -> _Array:
    """One code below 2**31 a group; integers that lie close together need no sorting."""
    if groups.dtype.kind in "iu" and int(groups.max()) - int(groups.min()) < 2**31:
        wide = groups if groups.dtype.kind == "u" else groups.astype(np.int64)
        return (wide - wide.min()).astype(np.uint64)
    return np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.uint64)


def _score_codes(scores: _Array) -> _Array:
    """Codes below 2**32 in the order of the scores, equal for equal scores."""
    if scores.dtype == np.float32:
        bits = (scores + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
        # IEEE floats order as integers once negatives are inverted and the sign flipped.
        negative = bits >> np.uint32(31) == 1
        return np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    order = np.argsort(scores)
    ordered = scores[order]
    codes = np.empty(scores.size, np.uint64)
    codes[order] = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]], dtype=np.uint64)
    return codes


def log_loss(labels: ArrayLike, probs: ArrayLike) -> float:
    """Mean of -y log p - (1 - y) log(1 - p), in nats; NaN without rows.

    Probabilities of exactly 0 and 1 are moved inwards by the machine epsilon of their
    dtype.

    >>> round(log_loss([1, 0], [0.5, 0.5]), 4)
    0.6931
    """
    y, p, _ = _observed(labels, probs, None, "")
    positive = _binary(y)
    if p.size == 0:
        return math.nan
    eps = np.finfo(p.dtype).eps
    p = np.clip(p.astype(np.float64), eps, 1.0 - eps)
    return float(-np.log(np.where(positive, p, 1.0 - p)).mean())


def normalized_entropy(labels: ArrayLike, probs: ArrayLike) -> float:
    """Log loss over the entropy of the label rate; 1 is as good as predicting the rate.

    NaN if one class is absent (He et al. 2014, "Practical lessons from predicting
    clicks on ads at Facebook").
    """
    y, p, _ = _observed(labels, probs, None, "")
    rate = float(_binary(y).mean()) if y.size else 0.0
    if not 0.0 < rate < 1.0:
        return math.nan
    entropy = -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)
    return log_loss(y, p) / entropy


def ece(labels: ArrayLike, probs: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |mean p - label rate| of their bin.

    Bins hold equally many rows. Clicks and conversions are rare: fifteen
    bins of equal *width* would put nearly every row into the first, where over- and
    under-estimates cancel. Equal probabilities always share a bin, so the result does
    not depend on the order of rows.

    Args:
        labels: [rows] of 0 and 1, NaN where not observed.
        probs: [rows] in [0, 1].
        bins: how many bins at most.

    Returns:
        The error in [0, 1]; NaN without rows.

    Raises:
        ValueError: on NaN probabilities, labels that are not 0 or 1, shapes that differ, or
            fewer than one bin.
    """
    y, p, _ = _observed(labels, probs, None, "")
    positive = _binary(y)
    if p.size == 0:
        return math.nan
    if bins < 1:
        raise ValueError(f"bins must be at least 1; received {bins}.")
    cuts = np.unique(np.arange(1, bins) * p.size // bins)
    edges = np.unique(np.partition(p, cuts)[cuts]) if cuts.size else p[:0]
    index = np.searchsorted(edges, p, side="right")
    gap = np.bincount(index, p, edges.size + 1) - np.bincount(index, positive, edges.size + 1)
    return float(np.abs(gap).sum() / p.size)


def task_metrics(
    labels: ArrayLike, probs: ArrayLike, groups: ArrayLike | None = None
) -> dict[str, float | int | None]:
    """All metrics of a binary task, as `metrics.json` holds them.

    Args:
        labels: [rows] of 0 and 1; rows with NaN are left out of every number.
        probs: [rows] in [0, 1].
        groups: [rows] of user ids, or None for no GAUC.

    Returns:
        auc, gauc, log_loss, normalized_entropy, ece, positives, rows. A number that is
        not defined (one class only, no rows) is None, so the dict is plain JSON.

    Raises:
        ValueError: on NaN probabilities, labels that are not 0 or 1, or shapes that differ.
    """
    y, p, g = _observed(labels, probs, groups, "groups")
    return {
        "auc": _or_none(auc(y, p)),
        "gauc": None if g is None else _or_none(gauc(y, p, g)),
        "log_loss": _or_none(log_loss(y, p)),
        "normalized_entropy": _or_none(normalized_entropy(y, p)),
        "ece": _or_none(ece(y, p)),
        "positives": int(_binary(y).sum()),
        "rows": int(y.size),
    }


def regression_metrics(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float | int | None]:
    """Metrics of a real-valued task, as `metrics.json` holds them.

    Args:
        labels: [rows] of numbers; rows with NaN are left out of every number.
        predictions: [rows], in the unit of the labels.

    Returns:
        mae, rmse, r2, rows. A number that is not defined (no rows, labels all alike) is None.

    Raises:
        ValueError: on NaN predictions, or shapes that differ.
    """
    y, p, _ = _observed(labels, predictions, None, "")
    if y.size == 0:
        return {"mae": None, "rmse": None, "r2": None, "rows": 0}
    y, p = y.astype(np.float64), p.astype(np.float64)
    error = p - y
    spread = float(np.square(y - y.mean()).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        # The mean of labels all alike may be a rounding error away from them.
        "r2": 1.0 - float(np.square(error).sum()) / spread if y.min() < y.max() else None,
        "rows": int(y.size),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
