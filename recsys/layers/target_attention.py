"""Attention of a candidate item over a user's history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import (
    require_floating,
    require_known_axis,
    require_positive,
    require_rank,
)
from recsys.layers.precision import add_bias, read_weight


@tf_keras.utils.register_keras_serializable(package="recsys")
class TargetAttention(tf_keras.layers.Layer):
    """History summed with weights that depend on the candidate (Deep Interest Network).

    Each weight is a small network of ``[q, k, q - k, q * k]``. Its first layer is split
    into the parts for ``q``, ``k`` and ``q * k`` (that for ``q - k`` is a combination of
    the first two), so that the fourfold input is never built. Memory is linear in the
    length of the history. Weights are not normalized over it, which keeps the intensity of
    interest. Zhou et al. 2018, https://arxiv.org/abs/1706.06978.

    Args:
      hidden: widths of the network's hidden layers, at least one.
      activation: of the hidden layers.
      recompute: whether to recompute the network in the backward pass, in training.

    Call arguments:
      query: float ``[batch, dim]``, the candidate.
      keys: float ``[batch, length, dim]``, the history.
      valid: bool ``[batch, length]``, false for padding; ``None`` if there is none.
      training: whether to recompute, where that is switched on.

    Output: ``[batch, dim]`` in the compute dtype; zeros for an empty history.

    Raises:
      ValueError: inputs of another rank or dtype.

    >>> layer = TargetAttention()
    >>> layer(tf.ones([2, 4]), tf.ones([2, 5, 4]), tf.zeros([2, 5], tf.bool)).numpy()
    array([[0., 0., 0., 0.],
           [0., 0., 0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        activation: Any = "relu",
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden = tuple(require_positive("TargetAttention", "hidden", h) for h in hidden)
        if not self.hidden:
            raise ValueError("TargetAttention requires at least one hidden width, received none.")
        self.activation = tf_keras.activations.get(activation)
        self.recompute = bool(recompute)

    def build(self, input_shape: Any) -> None:
        require_rank("TargetAttention", "query", input_shape, "[batch, dim]")
        dim = require_known_axis("TargetAttention", "query", input_shape, 1, "[batch, dim]")
        # Rows: dim for q, dim for k, dim for q * k.
        self.kernels = [
            self.add_weight(
                "kernel_0", shape=[3 * dim, self.hidden[0]], initializer="glorot_uniform"
            )
        ]
        self.biases = [self.add_weight("bias_0", shape=[self.hidden[0]], initializer="zeros")]
        widths = [*self.hidden, 1]
        for index, (width, following) in enumerate(pairwise(widths), 1):
            self.kernels.append(
                self.add_weight(
                    f"kernel_{index}", shape=[width, following], initializer="glorot_uniform"
                )
            )
            self.biases.append(
                self.add_weight(f"bias_{index}", shape=[following], initializer="zeros")
            )
        super().build(input_shape)

    def call(
        self,
        query: tf.Tensor,
        keys: tf.Tensor,
        valid: tf.Tensor | None = None,
        training: bool | None = False,
    ) -> tf.Tensor:
        query = require_floating("TargetAttention", "query", query)
        keys = require_floating("TargetAttention", "keys", keys)
        require_rank("TargetAttention", "query", query.shape, "[batch, dim]")
        require_rank("TargetAttention", "keys", keys.shape, "[batch, length, dim]")
        keys = tf.cast(keys, self.compute_dtype)
        if valid is not None:
            valid = tf.convert_to_tensor(valid)
            require_rank("TargetAttention", "valid", valid.shape, "[batch, length]")
            if valid.dtype != tf.bool:
                raise ValueError(
                    f"TargetAttention requires a bool `valid`, but received {valid.dtype.name}."
                )

        def attend(query: tf.Tensor, keys: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
            scores = self._scores(query, keys, weights)
            if valid is not None:
                scores = tf.where(valid, scores, tf.zeros_like(scores))
            return tf.linalg.matvec(keys, scores, transpose_a=True)

        forward = tf.recompute_grad(attend) if self.recompute and training else attend
        weights = [read_weight(w, self.compute_dtype) for w in [*self.kernels, *self.biases]]
        return forward(query, keys, *weights)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden": list(self.hidden),
            "activation": tf_keras.activations.serialize(self.activation),
            "recompute": self.recompute,
        }

    def _scores(self, query: tf.Tensor, keys: tf.Tensor, weights: Sequence[tf.Tensor]) -> tf.Tensor:
        kernels, biases = weights[: len(self.kernels)], weights[len(self.kernels) :]
        dim, length = query.shape[1], tf.shape(keys)[1]
        of_query, of_key, of_product = tf.split(kernels[0], 3, axis=0)
        product = tf.reshape(query[:, None, :] * keys, [-1, dim])
        each = tf.matmul(tf.reshape(keys, [-1, dim]), of_key) + tf.matmul(product, of_product)
        each = tf.reshape(each, [-1, length, self.hidden[0]])
        x = each + add_bias(tf.matmul(query, of_query), biases[0])[:, None, :]
        x = tf.reshape(self.activation(x), [-1, self.hidden[0]])
        for index, (kernel, bias) in enumerate(zip(kernels[1:], biases[1:], strict=True), 1):
            x = add_bias(tf.matmul(x, kernel), bias)
            if index < len(self.hidden):
                x = self.activation(x)
        return tf.reshape(x, [-1, length])
