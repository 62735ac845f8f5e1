"""Arithmetic that the losses share: compute dtype, log-sigmoid forms, weighted means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from recsys.exchange import replica_mean

LN2 = 0.6931471805599453


def to_compute_dtype(values: tf.Tensor) -> tf.Tensor:
    """Return `values` in float32, or unchanged if they are float64.

    Half-precision logits are widened before anything is computed: in float16 the
    softplus of 12 already rounds to 12 and p(1 - p) underflows.
    """
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def check_same_shape(labels: tf.Tensor, logits: tf.Tensor) -> None:
    """Refuse shapes that would broadcast, such as labels [batch] with logits [batch, 1].

    Raises:
        ValueError: if the two static shapes cannot be equal.
    """
    if not labels.shape.is_compatible_with(logits.shape):
        raise ValueError(
            f"labels and logits must have the same shape; received labels {labels.shape} "
            f"and logits {logits.shape}. Reshape one: broadcasting would pair every label "
            "with every logit."
        )


def log_sigmoid(logits: tf.Tensor) -> tf.Tensor:
    """log(sigmoid(x)), finite with finite gradients for every finite x."""
    return -tf.math.softplus(-logits)


def smooth_labels(labels: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Move labels towards one half: y (1 - s) + s / 2."""
    if label_smoothing == 0.0:
        return labels
    return labels * (1.0 - label_smoothing) + 0.5 * label_smoothing


class Ratio(NamedTuple):
    """A mean that is not divided yet: a weighted sum, and the sum of the weights, scalars."""

    total: tf.Tensor
    weight: tf.Tensor


def weighted(values: tf.Tensor, weights: tf.Tensor) -> Ratio:
    """Sum of values times weights, and the sum of weights.

    Values whose weight is 0 are left out even if they are not finite.

    Args:
        values: float tensor, usually [batch].
        weights: at least 0, the shape and dtype of values.
    """
    values = tf.where(weights > 0, values, tf.zeros_like(values))
    return Ratio(tf.reduce_sum(values * weights), tf.reduce_sum(weights))


def divide(ratios: Sequence[Ratio], even: bool = False) -> list[tf.Tensor]:
    """Each total over its weight; 0 where no weight is left.

    Under a strategy the weight is the mean of the replicas', which takes one exchange for all
    ratios. The mean over replicas of what is returned, and of its gradients, is then the mean
    over all of their rows, however unevenly those that count are spread.

    Args:
        ratios: Their weights get no gradient.
        even: Whether the weights are known to be the same on every replica, and need no exchange.
    """
    weights = [tf.stop_gradient(each.weight) for each in ratios]
    if not even:
        exact = tf.stack([tf.cast(weight, tf.float64) for weight in weights])
        weights = tf.unstack(replica_mean(exact))
    return [
        tf.math.divide_no_nan(each.total, tf.cast(weight, each.total.dtype))
        for each, weight in zip(ratios, weights, strict=True)
    ]
