"""Reading and adding weights, and taking softmaxes, under mixed precision."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def read_weight(weight: Any, dtype: Any) -> tf.Tensor:
    """Read a weight as a tensor of ``dtype``.

    ``tf.cast`` alone hands a variable of that dtype back as a variable, and a function
    to be recomputed would then hold the variable instead of taking its value.
    """
    return tf.cast(tf.convert_to_tensor(weight), dtype)


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """``x + bias``, whose gradient by the bias is right in half precision too.

    That gradient is a sum over rows. TensorFlow's own adds bfloat16 to bfloat16 on a CPU and
    stands still after some hundred rows; a product of matrices adds in float32.

    Args:
      x: float ``[rows, units]``.
      bias: ``[units]``, of the same dtype.
    """
    if x.dtype.size >= 4:
        return tf.nn.bias_add(x, bias)

    @tf.custom_gradient
    def add(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ones = tf.ones([1, tf.shape(upstream)[0]], upstream.dtype)
            return upstream, tf.matmul(ones, upstream)[0]

        return tf.nn.bias_add(x, bias), gradient

    return add(x, bias)


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
