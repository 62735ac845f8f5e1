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


@tf_keras.utils.register_keras_serializable(package="recsys")
class PiecewiseLinearEmbedding(tf_keras.layers.Layer):
    """A linear map of its own from each feature's bins to an embedding.

    Args:
      dim: width of the embeddings, at least 1.
      activation: applied to the result; ``None`` is the identity.

    Input: float ``[batch, features, bins]`` with values in [0, 1], how full each bin of a number
    is; features and bins known when it is built.
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
