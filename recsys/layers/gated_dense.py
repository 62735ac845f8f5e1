"""A dense layer whose output is scaled by a learned sigmoid gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_floating, require_known_axis, require_positive
from recsys.layers.precision import add_bias, read_weight


def gated_dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, activation: Any) -> tf.Tensor:
    """``activation(x W + b) * sigmoid(x V + c)`` as a pure function of its tensors.

    Args:
      x: float ``[rows, in]``.
      kernel: ``[in, 2 * units]``, the columns of ``W`` followed by those of ``V``.
      bias: ``[2 * units]``, ``b`` followed by ``c``.
      activation: a callable, applied to the linear half.

    Returns:
      float ``[rows, units]``.
    """
    # The weights are split, not the product: their gradients are joined at the size of the
    # weights, where those of a split product are joined at that of the batch.
    (w, v), (b, c) = tf.split(kernel, 2, axis=1), tf.split(bias, 2)
    linear = activation(add_bias(tf.matmul(x, w), b))
    return linear * tf.sigmoid(add_bias(tf.matmul(x, v), c))


def plain_dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, activation: Any) -> tf.Tensor:
    """``activation(x W + b)`` as a pure function of its tensors; see `gated_dense`.

    Args:
      x: float ``[rows, in]``.
      kernel: ``W``, ``[in, units]``.
      bias: ``b``, ``[units]``.
      activation: a callable.

    Returns:
      float ``[rows, units]``.
    """
    return activation(add_bias(tf.matmul(x, kernel), bias))


@tf_keras.utils.register_keras_serializable(package="recsys")
class GatedDense(tf_keras.layers.Layer):
    """``activation(x W + b) * sigmoid(x V + c)``.

    The gate bias ``c`` starts at ``gate_bias``; with the default of one, every gate
    starts near 0.73, so that a deep stack passes its signal on from the first step.
    The gated linear unit is that of Dauphin et al. 2017, https://arxiv.org/abs/1612.08083.

    Args:
      units: output width, at least 1.
      activation: applied to the linear half only; ``None`` is the identity.
      gate_bias: constant that the gate's bias starts at.
      kernel_initializer: initializer of ``W`` and of ``V``, each drawn for its own
        ``[in, units]`` shape.
      gated: ``False`` leaves the gate out: an ordinary dense layer, at half the cost.

    Input: float ``[..., in]``, ``in`` known when the layer is built.
    Output: ``[..., units]`` in the compute dtype.

    Raises:
      ValueError: the input is not floating-point, has rank below 2, or ``units`` < 1.

    >>> layer = GatedDense(3)
    >>> layer(tf.zeros([2, 5])).shape
    TensorShape([2, 3])
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        gate_bias: float = 1.0,
        kernel_initializer: Any = "glorot_uniform",
        gated: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = require_positive("GatedDense", "units", units)
        self.activation = tf_keras.activations.get(activation)
        self.gate_bias = float(gate_bias)
        self.kernel_initializer = tf_keras.initializers.get(kernel_initializer)
        self.gated = bool(gated)

    @property
    def function(self) -> Callable[..., tf.Tensor]:
        """The layer as a pure function: `gated_dense` or `plain_dense`."""
        return gated_dense if self.gated else plain_dense

    def build(self, input_shape: Any) -> None:
        width = require_known_axis("GatedDense", "x", input_shape, -1, "[..., in]")
        columns = 2 * self.units if self.gated else self.units
        self.kernel = self.add_weight(
            "kernel", shape=[width, columns], initializer=self._draw_kernel
        )
        self.bias = self.add_weight("bias", shape=[columns], initializer=self._draw_bias)
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = require_floating("GatedDense", "x", x)
        if x.shape.rank is not None and x.shape.rank < 2:
            raise ValueError(
                f"GatedDense requires `x` of shape [..., in] (rank 2 or more), "
                f"but received shape {x.shape}."
            )
        kernel = read_weight(self.kernel, self.compute_dtype)
        bias = read_weight(self.bias, self.compute_dtype)
        if x.shape.rank == 2:
            return self.function(x, kernel, bias, self.activation)
        # One product of two matrices: a batched product would also sum its kernel gradient
        # over a broadcast copy per batch entry.
        flat = tf.reshape(x, [-1, kernel.shape[0]])
        flat = self.function(flat, kernel, bias, self.activation)
        output = tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [self.units]], axis=0))
        output.set_shape(x.shape[:-1].concatenate([self.units]))
        return output

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "activation": tf_keras.activations.serialize(self.activation),
            "gate_bias": self.gate_bias,
            "kernel_initializer": tf_keras.initializers.serialize(self.kernel_initializer),
            "gated": self.gated,
        }

    def _draw_kernel(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        # The two halves are drawn apart, because an initializer that scales by fan-out
        # would otherwise see twice the width. A fixed seed is stepped for the gate, or
        # both halves would start equal.
        if not self.gated:
            return self.kernel_initializer(shape, dtype=dtype)
        config = self.kernel_initializer.get_config()
        linear = type(self.kernel_initializer).from_config(config)
        if config.get("seed") is not None:
            config = {**config, "seed": config["seed"] + 1}
        gate = type(self.kernel_initializer).from_config(config)
        half = [shape[0], self.units]
        return tf.concat([linear(half, dtype=dtype), gate(half, dtype=dtype)], axis=1)

    def _draw_bias(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        if not self.gated:
            return tf.zeros(shape, dtype)
        return tf.constant([0.0] * self.units + [self.gate_bias] * self.units, dtype)
