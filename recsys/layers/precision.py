"""Reading weights and taking softmaxes under mixed precision."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def read_weight(weight: Any, dtype: Any) -> tf.Tensor:
    """Read a weight as a tensor of ``dtype``.

    ``tf.cast`` alone hands a variable of that dtype back as a variable, and a function
    to be recomputed would then hold the variable instead of taking its value.
    """
    return tf.cast(tf.convert_to_tensor(weight), dtype)


def at_least_float32(tensor: tf.Tensor) -> tf.Tensor:
    """Widen float16 and bfloat16 to float32; leave float32 and float64 alone."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def masked_softmax(scores: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
    """Softmax over the last axis among valid entries; zeros where there is none.

    Computed in at least float32; returned in the dtype of the scores.

    Args:
      scores: float ``[..., length]``.
      valid: bool, broadcastable to the scores, or ``None`` for all.

    >>> masked_softmax(tf.constant([[1.0, 1.0, 5.0]]), tf.constant([[True, True, False]])).numpy()
    array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    exact = at_least_float32(scores)
    if valid is not None:
        exact = tf.where(valid, exact, tf.constant(-1e30, exact.dtype))
    shares = tf.nn.softmax(exact, axis=-1)
    if valid is not None:
        shares = tf.where(valid, shares, tf.zeros_like(shares))
    return tf.cast(shares, scores.dtype)
