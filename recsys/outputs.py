"""From logits to what a model answers: calibrated probabilities a task, and one score.

The same arithmetic twice: on NumPy arrays for evaluation, on tensors in the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.calibration import Calibration, CalibrationLayer
from recsys.schema import conditional_name
from recsys.spec.records import Spec

SCORE = "score"


def probabilities(
    spec: Spec, logits: np.ndarray, calibrations: Mapping[str, Calibration] | None = None
) -> dict[str, np.ndarray]:
    """Answers by name (see `recsys.schema.output_names`) and the score.

    Args:
        spec: The spec.
        logits: float [rows, tasks], the logit of each task given the one it follows.
        calibrations: Calibration by task; tasks left out are taken as they are.

    Returns:
        float64 [rows] by name.
    """
    own: dict[str, Any] = {}
    for index, task in enumerate(spec.tasks):
        values = logits[:, index].astype(np.float64)
        if task.is_regression:
            own[task.name] = _value(task, values, np.expm1)
        else:
            calibration = (calibrations or {}).get(task.name) or Calibration()
            own[task.name] = calibration.apply(values)
    return _answers(spec, own)


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
                own[task.name] = _value(task, values, tf.math.expm1)
            else:
                own[task.name] = self._layers[task.name](values)
        return _answers(self._spec, own)


def _value(task: Any, values: Any, expm1: Any) -> Any:
    return expm1(values) if task.loss.log else values


def _answers(spec: Spec, own: Mapping[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for task in spec.tasks:
        if task.given is None:
            answers[task.name] = own[task.name]
            continue
        if task.is_regression:
            # The expected value over all impressions, as the blend needs it.
            answers[task.name] = own[task.name] * _joint(spec, own, task.given)
        else:
            answers[task.name] = _joint(spec, own, task.name)
        answers[conditional_name(task.name, task.given)] = own[task.name]
    weights = spec.blend()
    answers[SCORE] = sum(weight * answers[name] for name, weight in weights.items())
    return answers


def _joint(spec: Spec, own: Mapping[str, Any], name: str) -> Any:
    joint: Any = 1.0
    for task in spec.chain(name):
        joint = joint * own[task.name]
    return joint
