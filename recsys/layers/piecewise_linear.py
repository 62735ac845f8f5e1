"""Embeddings of numeric features from their piecewise-linear encodings."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import (
    require_floating,
    require_known_axis,
    require_positive,
    require_rank,
)
from recsys.layers.precision import read_weight


def encode_piecewise_linear(values: tf.Tensor, edges: Any) -> tf.Tensor:
    """Encode numbers by how far they reach into each of their feature's bins.

    Entry ``t`` is ``(value - edge_t) / (edge_{t+1} - edge_t)`` clipped to [0, 1]: ones
    for the bins below the value, a fraction for its own, zeros above. The first and the
    last bin are clipped too, so that an outlier cannot dominate; NaN encodes as zeros.

    Args:
      values: float ``[batch, features]``.
      edges: float ``[features, bins + 1]``, ascending in each row. Repeated edges make an
        empty bin, which steps from 0 to 1 there.

    Returns:
      float ``[batch, features, bins]``.

    >>> encode_piecewise_linear(tf.constant([[1.5]]), [[0.0, 1.0, 2.0, 4.0]]).numpy()
    array([[[1. , 0.5, 0. ]]], dtype=float32)
    """
    values = require_floating("encode_piecewise_linear", "values", values)
    require_rank("encode_piecewise_linear", "values", values.shape, "[batch, features]")
    edges = tf.cast(tf.convert_to_tensor(edges), values.dtype)
    require_rank("encode_piecewise_linear", "edges", edges.shape, "[features, bins + 1]")
    low, width = edges[:, :-1], edges[:, 1:] - edges[:, :-1]
    above = values[:, :, None] - low
    empty = tf.cast(above >= 0, values.dtype)
    encoded = tf.where(width > 0, above / tf.where(width > 0, width, 1.0), empty)
    encoded = tf.where(tf.math.is_nan(encoded), tf.zeros_like(encoded), encoded)
    return tf.clip_by_value(encoded, 0.0, 1.0)


@tf_keras.utils.register_keras_serializable(package="recsys")
class PiecewiseLinearEmbedding(tf_keras.layers.Layer):
    """A linear map of its own from each feature's bins to an embedding.

    Args:
      dim: width of the embeddings, at least 1.
      activation: applied to the result; ``None`` is the identity.

    Input: float ``[batch, features, bins]`` with values in [0, 1], as
    `encode_piecewise_linear` gives them; features and bins known when it is built.
    Output: ``[batch, features, dim]`` in the compute dtype.

    Raises:
      ValueError: the input is not floating-point or not of rank 3.

    Paper: Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep
    Learning, https://arxiv.org/abs/2203.05556.

    >>> PiecewiseLinearEmbedding(4)(tf.zeros([2, 3, 8])).shape
    TensorShape([2, 3, 4])
    """

    def __init__(self, dim: int, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = require_positive("PiecewiseLinearEmbedding", "dim", dim)
        self.activation = tf_keras.activations.get(activation)

    def build(self, input_shape: Any) -> None:
        layout = "[batch, features, bins]"
        require_rank("PiecewiseLinearEmbedding", "encodings", input_shape, layout)
        features, bins = (
            require_known_axis("PiecewiseLinearEmbedding", "encodings", input_shape, axis, layout)
            for axis in (1, 2)
        )
        limit = (1.0 / bins) ** 0.5
        uniform = tf_keras.initializers.RandomUniform(-limit, limit)
        self.kernel = self.add_weight(
            "kernel", shape=[features, bins, self.dim], initializer=uniform
        )
        self.bias = self.add_weight("bias", shape=[features, self.dim], initializer="zeros")
        super().build(input_shape)

    def call(self, encodings: tf.Tensor) -> tf.Tensor:
        encodings = require_floating("PiecewiseLinearEmbedding", "encodings", encodings)
        require_rank(
            "PiecewiseLinearEmbedding", "encodings", encodings.shape, "[batch, features, bins]"
        )
        kernel = read_weight(self.kernel, self.compute_dtype)
        linear = tf.einsum("bft,ftd->bfd", encodings, kernel)
        return self.activation(linear + read_weight(self.bias, self.compute_dtype))

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        return tf.TensorShape(input_shape)[:2].concatenate([self.dim])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "activation": tf_keras.activations.serialize(self.activation),
        }
