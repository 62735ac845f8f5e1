"""The second-order term of a factorization machine."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_floating, require_rank
from recsys.layers.precision import at_least_float32


@tf_keras.utils.register_keras_serializable(package="recsys")
class PairwiseInteraction(tf_keras.layers.Layer):
    """Sum of the element-wise products of all pairs of field vectors.

    ``sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2``, by element, in time
    linear in the fields (Rendle 2010; kept as a vector as in He and Chua 2017,
    https://arxiv.org/abs/1708.05027). The difference of two squares loses digits, so it
    is computed in float32 under mixed precision.

    Input: float ``[batch, fields, dim]``.
    Output: ``[batch, dim]`` in the compute dtype.

    Raises:
      ValueError: the input is not floating-point or not of rank 3.

    >>> PairwiseInteraction()(tf.constant([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])).numpy()
    array([[23., 44.]], dtype=float32)
    """

    def call(self, embeddings: tf.Tensor) -> tf.Tensor:
        v = require_floating("PairwiseInteraction", "embeddings", embeddings)
        require_rank("PairwiseInteraction", "embeddings", v.shape, "[batch, fields, dim]")
        v = at_least_float32(v)
        total = tf.reduce_sum(v, axis=1)
        pairs = 0.5 * (tf.square(total) - tf.reduce_sum(tf.square(v), axis=1))
        return tf.cast(pairs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        shape = tf.TensorShape(input_shape)
        return tf.TensorShape([shape[0], shape[2]])
