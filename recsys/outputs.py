"""From logits to what a model answers: calibrated probabilities a task, and one score.

The same arithmetic twice: on NumPy arrays for evaluation, on tensors in the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.calibration import Calibration, CalibrationLayer
from recsys.spec.records import Spec
from recsys.spec.schema import SCORE, conditional_name

_TINY = 1e-12
"""Below any probability that a float32 sigmoid of a sane logit gives; keeps 0 / 0 at 0."""
_LARGEST = 80.0
"""Of a logarithm, so that no float32 answer is infinite: JSON has no number for that."""


def probabilities(
    spec: Spec, logits: np.ndarray, calibrations: Mapping[str, Calibration] | None = None
) -> dict[str, np.ndarray]:
    """Answers by name (see `recsys.spec.schema.output_names`) and the score.

    Args:
        spec: The spec.
        logits: float [rows, tasks], the logit of each task given the one it follows, or of both
            for a task of `space: joint`.
        calibrations: Calibration by task; tasks left out are taken as they are.

    Returns:
        float64 [rows] by name.
    """
    own: dict[str, Any] = {}
    for index, task in enumerate(spec.tasks):
        values = logits[:, index].astype(np.float64)
        if task.is_regression:
            own[task.name] = np.expm1(np.minimum(values, _LARGEST)) if task.by_logarithm else values
        else:
            calibration = (calibrations or {}).get(task.name) or Calibration()
            own[task.name] = calibration.apply(values)
    return _answers(spec, own, np)


class Outputs:
    """As `probabilities`, in graph: a float32 [batch, tasks] tensor to tensors by name."""

    def __init__(self, spec: Spec, calibrations: Mapping[str, Calibration] | None = None) -> None:
        self._spec = spec
        self._layers = {
            task.name: CalibrationLayer((calibrations or {}).get(task.name) or Calibration())
            for task in spec.tasks
            if not task.is_regression
        }

    def __call__(self, logits: Any) -> dict[str, Any]:
        import tensorflow as tf

        own: dict[str, Any] = {}
        for index, task in enumerate(self._spec.tasks):
            values = tf.cast(logits[:, index], tf.float32)
            if task.is_regression:
                bounded = tf.minimum(values, _LARGEST)
                own[task.name] = tf.math.expm1(bounded) if task.by_logarithm else values
            else:
                own[task.name] = self._layers[task.name](values)
        return _answers(self._spec, own, tf)


def _answers(spec: Spec, own: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """What is answered, of each head's own number; `library` is NumPy or TensorFlow."""
    answers: dict[str, Any] = {}
    for task in spec.tasks:
        if task.given is None:
            answers[task.name] = own[task.name]
            continue
        # Of a regression, the expected value over all impressions, as the blend needs it.
        answers[task.name] = _joint(spec, own, task.name, library)
        conditional = own[task.name]
        if task.space == "joint":
            before = _joint(spec, own, task.given, library)
            conditional = answers[task.name] / library.maximum(before, _TINY)
        answers[conditional_name(task.name, task.given)] = conditional
    weights = spec.blend()
    answers[SCORE] = sum(weight * answers[name] for name, weight in weights.items())
    return answers


def _joint(spec: Spec, own: Mapping[str, Any], name: str, library: Any) -> Any:
    """A head's number over all impressions: what it says and all before it happened."""
    task = spec.task(name)
    if task.given is None:
        return own[name]
    before = _joint(spec, own, task.given, library)
    # Two heads that were trained apart may disagree by a little; a funnel only narrows.
    return library.minimum(own[name], before) if task.space == "joint" else before * own[name]
