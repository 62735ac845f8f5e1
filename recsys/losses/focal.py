"""Focal loss on logits and on log-probabilities, per example."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from recsys.losses.numeric import (
    check_same_shape,
    log_sigmoid,
    smooth_labels,
    to_compute_dtype,
)


def _check_options(alpha: float | None, gamma: float, label_smoothing: float) -> None:
    if alpha is not None and not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie strictly between 0 and 1, or be None; received {alpha}.")
    if not gamma >= 0.0:
        raise ValueError(f"gamma must be at least 0; received {gamma}.")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1); received {label_smoothing}.")


def focal_from_log_probs(
    labels: tf.Tensor,
    log_p: tf.Tensor,
    log_1mp: tf.Tensor,
    alpha: float | None = None,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Focal loss of a probability that is given as log p and log(1 - p).

    -(y a (1 - p)^g log p + (1 - y) (1 - a) p^g log(1 - p)), with both weights one if
    alpha is None. For y in {0, 1} this is the focal loss of Lin et al. 2017
    (https://arxiv.org/abs/1708.02002); for labels in between it is their linear mix.
    Use it where p is not one sigmoid, as for the product of a funnel
    (`recsys.losses.funnel_log_probs`).

    Args:
        labels: numbers in [0, 1], any shape.
        log_p: log-probability of label 1, the shape of labels.
        log_1mp: log-probability of label 0, the shape of labels.
        alpha: weight of positives (negatives weigh 1 - alpha); None weighs both 1.
        gamma: focusing exponent; 0 gives (weighted) cross-entropy.
        label_smoothing: share of each label that is moved to one half.

    Returns:
        Loss per element, the shape of labels; float32 (float64 if given float64).

    Raises:
        ValueError: if shapes differ or an option is out of range.
    """
    _check_options(alpha, gamma, label_smoothing)
    log_p, log_1mp = to_compute_dtype(log_p), to_compute_dtype(log_1mp)
    labels = tf.cast(labels, log_p.dtype)
    check_same_shape(labels, log_p)
    labels = smooth_labels(labels, label_smoothing)
    positive, negative = -log_p, -log_1mp
    if gamma:
        # exp(gamma log q) has a finite gradient at q = 0, where q ** gamma has none.
        positive *= tf.math.exp(gamma * log_1mp)
        negative *= tf.math.exp(gamma * log_p)
    if alpha is not None:
        positive *= alpha
        negative *= 1.0 - alpha
    return labels * positive + (1.0 - labels) * negative


def focal_loss(
    labels: tf.Tensor,
    logits: tf.Tensor,
    alpha: float | None = None,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Focal loss on logits, per example (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    With p = sigmoid(logit) and p_t = p for a positive, 1 - p for a negative:
    -alpha_t (1 - p_t)^gamma log p_t. alpha=None and gamma=0 give binary cross-entropy.
    Nothing is averaged: Keras' `binary_crossentropy` would average over the last axis.

    Args:
        labels: numbers in [0, 1], any shape (usually [batch]).
        logits: float tensor of the same shape; float16 and bfloat16 are computed in float32.
        alpha: weight of positives (negatives weigh 1 - alpha); None weighs both 1.
        gamma: focusing exponent, at least 0.
        label_smoothing: share of each label that is moved to one half, in [0, 1).

    Returns:
        Loss per element, the shape of logits; float32 (float64 if given float64).

    Raises:
        ValueError: if shapes differ or an option is out of range.

    >>> loss = focal_loss(tf.constant([1.0, 0.0]), tf.constant([0.0, 0.0]))  # ln 2 each
    >>> [round(float(value), 4) for value in loss]
    [0.6931, 0.6931]
    """
    logits = to_compute_dtype(logits)
    return focal_from_log_probs(
        labels, log_sigmoid(logits), log_sigmoid(-logits), alpha, gamma, label_smoothing
    )


def binary_cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Binary cross-entropy on logits, per example: `focal_loss` without alpha and gamma."""
    return focal_loss(labels, logits, label_smoothing=label_smoothing)


@tf_keras.utils.register_keras_serializable(package="recsys")
class FocalLoss(tf_keras.losses.Loss):
    """`focal_loss` as a Keras loss, for `compile`; takes logits.

    `call` gives one loss per example; `__call__` weighs by `sample_weight` and reduces
    as Keras losses do. Labels [batch] against logits [batch, 1], or the reverse, are
    brought to one shape, as Keras does for its own losses.
    """

    def __init__(
        self,
        alpha: float | None = None,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = tf_keras.losses.Reduction.AUTO,
        name: str = "focal_loss",
    ) -> None:
        _check_options(alpha, gamma, label_smoothing)
        super().__init__(reduction=reduction, name=name)
        self.alpha = alpha
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example: [batch] (or [batch, 1]) in, [batch] out."""
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        if y_true.shape.rank == 2 and y_true.shape[-1] == 1:
            y_true = tf.squeeze(y_true, -1)
        if y_pred.shape.rank == 2 and y_pred.shape[-1] == 1:
            y_pred = tf.squeeze(y_pred, -1)
        return focal_loss(y_true, y_pred, self.alpha, self.gamma, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "gamma": self.gamma,
            "label_smoothing": self.label_smoothing,
        }
