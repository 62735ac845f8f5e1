"""Arithmetic that the losses share: compute dtype, log-sigmoid forms, weighted means."""

from __future__ import annotations

import tensorflow as tf

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


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum of values times weights over the sum of weights; 0 where no weight is left.

    Values whose weight is 0 are left out even if they are not finite.

    Args:
        values: float tensor, usually [batch].
        weights: at least 0, the shape and dtype of values.

    Returns:
        Scalar of that dtype.
    """
    values = tf.where(weights > 0, values, tf.zeros_like(values))
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), tf.reduce_sum(weights))
