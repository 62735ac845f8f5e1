"""Fitting a calibration on held-out labels and logits, in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys import metrics
from recsys.calibration.isotonic import isotonic_knots
from recsys.calibration.record import Calibration, logit, sigmoid

_Array = NDArray[Any]
FitKind = Literal["none", "temperature", "platt", "isotonic"]
_MAX_LOGIT = 30.0
_LEAST_SPREAD = 1e-3
"""Standard deviation of calibrated logits that is next to none, and still some 2,000 steps of
float32 at probabilities of 0.001 to 0.02."""
_LEAST_SCALE = 1e-3
"""Below this factor a curve's knots are too close to one another to count on their order."""


def fit_calibration(
    kind: FitKind,
    labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike | None = None,
    max_knots: int = 100,
) -> Calibration:
    """Fit a calibration of one task by maximum likelihood.

    "temperature" (Guo et al. 2017) scales the logit, and so cannot correct a wrong mean,
    as of thinned negatives or focal loss with alpha; "platt" (Platt 1999) scales and
    shifts it, by Newton's method with Platt's smoothed targets; "isotonic" (Zadrozny
    and Elkan 2002) bends it freely upwards, in at most `max_knots` knots, leaning on
    Platt's fit where events are few, and where its log loss on these rows is above that of
    Platt's fit, it is that. All results are strictly increasing, so they leave AUC as it is;
    logits that do not rise with the label are flattened by "platt" and "isotonic" to hardly
    more than the label rate. Rows with a NaN label, or a logit that is not finite, are left
    out; logits beyond 30 count as 30 in the fit.

    Args:
        kind: what to fit; "none" fits nothing.
        labels: [rows] of 0 and 1, NaN where not observed.
        logits: [rows] uncalibrated logits.
        weights: [rows], at least 0, or None.
        max_knots: limit for "isotonic".

    Returns:
        The record. Where the data cannot carry the fit (no rows, one class only, a
        ranking that is upside down) it is a simpler one, with `warning` saying why.

    Raises:
        ValueError: on an unknown kind, labels that are not 0 or 1, or shapes that differ.
    """
    if kind not in get_args(FitKind):
        raise ValueError(f"unknown kind of calibration {kind!r}.")
    if kind == "none":
        return Calibration()
    y, x, w = (
        np.asarray(a, dtype=np.float64)
        for a in (labels, logits, np.ones(np.shape(labels)) if weights is None else weights)
    )
    if not y.shape == x.shape == w.shape or y.ndim != 1:
        raise ValueError(
            f"labels, logits and weights must be [rows]; got {y.shape}, {x.shape}, {w.shape}."
        )
    keep = ~np.isnan(y) & np.isfinite(x) & (w > 0)
    y, x, w = y[keep], np.clip(x[keep], -_MAX_LOGIT, _MAX_LOGIT), w[keep]
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1 (or NaN where not observed).")
    if y.size == 0 or y.min() == y.max():
        seen = "no usable rows" if y.size == 0 else f"only label {y[0]:g} in {y.size} rows"
        return Calibration(warning=f"not calibrated: {seen}")
    if kind == "temperature":
        slope, _ = _newton(y, x, w, intercept=False)
        if slope <= 1e-3:
            return Calibration(warning="not calibrated: logits do not rise with the label")
        return Calibration("temperature", {"temperature": 1.0 / slope})
    line = _line(y, x, w)
    return line if kind == "platt" else _curve(y, x, w, line, max_knots)


def _line(y: _Array, x: _Array, w: _Array) -> Calibration:
    """Platt's fit; of logits that do not rise with the label, the flattest that keeps order."""
    slope, intercept = _newton(_platt_targets(y, w), x, w, intercept=True)
    mean = w @ x / w.sum()
    spread = float(np.sqrt(w @ (x - mean) ** 2 / w.sum()))
    flattest = min(1.0, _LEAST_SPREAD / spread) if spread > 0 else 1.0
    if slope > flattest:
        return Calibration("platt", {"slope": slope, "intercept": intercept})
    return Calibration(
        "platt",
        {"slope": flattest, "intercept": _shift(y, flattest * x, w)},
        "only the mean is calibrated: logits do not rise with the label, so probabilities differ "
        "by no more than keeps their order",
    )


def _curve(y: _Array, x: _Array, w: _Array, line: Calibration, max_knots: int) -> Calibration:
    """The isotonic fit, or `line` where that has the lower log loss on the same rows."""
    knots_x, knots_y = isotonic_knots(y, x, w, line.apply(x), max_knots)
    if knots_x.size > 1:
        outside = min(1.0, float(line.segments()[3][0]))
        # Lines through the middles of wide blocks do not average to the blocks' rates.
        bent = _isotonic(knots_x, knots_y, outside).apply_logit(x)
        scale, shift = _newton(_platt_targets(y, w), bent, w, intercept=True)
        if scale > _LEAST_SCALE:
            curve = _isotonic(knots_x, scale * knots_y + shift, scale * outside)
            if _nll(y, curve.apply_logit(x), w) <= _nll(y, line.apply_logit(x), w):
                return curve
    return replace(
        line,
        warning=line.warning or "platt in place of isotonic: a curve fits these rows no better",
    )


def _isotonic(x: _Array, y: _Array, slope: float) -> Calibration:
    return Calibration("isotonic", {"x": tuple(x.tolist()), "y": tuple(y.tolist()), "slope": slope})


def _platt_targets(y: _Array, w: _Array) -> _Array:
    positives = float(w @ y)
    negatives = float(w.sum()) - positives
    return np.where(y > 0, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))


def _nll(t: _Array, z: _Array, w: _Array) -> float:
    return float(w @ (np.logaddexp(0.0, z) - t * z))


def _newton(t: _Array, x: _Array, w: _Array, intercept: bool) -> tuple[float, float]:
    """Minimise the cross-entropy of slope x + intercept; convex, so damped Newton is sure."""
    theta = np.array([1.0, 0.0])
    design = np.stack([x, np.ones_like(x)])
    if not intercept:
        design[1] = 0.0
    value = _nll(t, theta @ design, w)
    ridge = 1e-9 * float(w.sum())
    for _ in range(100):
        p = sigmoid(theta @ design)
        gradient = design @ (w * (p - t))
        hessian = (design * (w * p * (1.0 - p))) @ design.T + ridge * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := _nll(t, (theta - size * step) @ design, w)) > value and size > 1e-10:
            size /= 2.0
        if size <= 1e-10:
            break
        theta, value = theta - size * step, new
        if np.abs(size * step).max() < 1e-10:
            break
    return float(theta[0]), float(theta[1])


def _shift(y: _Array, x: _Array, w: _Array) -> float:
    """The shift b at which sigmoid(x + b) averages to the label rate, by bisection."""
    rate = float(w @ y / w.sum())
    low, high = logit(rate) - float(x.max()), logit(rate) - float(x.min())
    for _ in range(100):
        middle = 0.5 * (low + high)
        if float(w @ sigmoid(x + middle) / w.sum()) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def calibration_report(
    calibration: Calibration, labels: ArrayLike, logits: ArrayLike
) -> dict[str, float | int | str | None]:
    """Return kind, warning, rows, positives, and ECE and log loss before and after.

    A number that is not defined is None.

    Args:
        calibration: what was fitted.
        labels: [rows] of 0 and 1; rows with NaN are left out.
        logits: [rows] uncalibrated logits.

    Raises:
        ValueError: on NaN logits, labels that are not 0 or 1, or shapes that differ.
    """
    before = metrics.task_metrics(labels, sigmoid(np.asarray(logits, dtype=np.float64)))
    after = metrics.task_metrics(labels, calibration.apply(logits))
    return {
        "kind": calibration.kind,
        "warning": calibration.warning,
        "rows": before["rows"],
        "positives": before["positives"],
        "ece_before": before["ece"],
        "ece_after": after["ece"],
        "log_loss_before": before["log_loss"],
        "log_loss_after": after["log_loss"],
    }
