"""A stack of gated dense layers with dropout and optional recomputation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_floating, require_rank
from recsys.layers.gated_dense import GatedDense
from recsys.layers.precision import read_weight
from recsys.layers.randomness import check_rate, fold_in, seed_for


@tf_keras.utils.register_keras_serializable(package="recsys")
class GatedTower(tf_keras.layers.Layer):
    """``GatedDense`` layers one after the other, each followed by dropout.

    With ``recompute=True`` and ``training=True``, only the input of each block is kept
    for the backward pass and the rest is computed again (gradient checkpointing, Chen et
    al. 2016, https://arxiv.org/abs/1604.06174). The gradient is the same to the last bit,
    for the dropout masks depend on nothing but the seed.

    Args:
      units: output width of each block; empty makes the tower the identity.
      dropout: rate in [0, 1) after every block, in training only.
      recompute: whether to recompute the blocks in the backward pass.
      activation: of the linear half of each block.
      gate_bias: constant that each gate's bias starts at.
      gated: ``False`` leaves the gates out: ordinary dense layers, at half the cost.

    Call arguments:
      x: float ``[batch, in]``.
      training: whether to drop (and to recompute).
      seed: int32 ``[2]``; where it is ``None`` and masks are needed, one is drawn per call.

    Output: ``[batch, units[-1]]`` in the compute dtype.

    Raises:
      ValueError: ``x`` is not a float matrix, or an argument is out of range.

    >>> tower = GatedTower([8, 4], dropout=0.1, recompute=True)
    >>> tower(tf.ones([2, 3]), training=True, seed=tf.constant([1, 2])).shape
    TensorShape([2, 4])
    """

    def __init__(
        self,
        units: Sequence[int],
        dropout: float = 0.0,
        recompute: bool = False,
        activation: Any = "relu",
        gate_bias: float = 1.0,
        gated: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = tuple(units)
        self.dropout = check_rate("GatedTower", dropout)
        self.recompute = bool(recompute)
        self.activation = tf_keras.activations.get(activation)
        self.gate_bias = float(gate_bias)
        self.gated = bool(gated)
        self.blocks = [
            GatedDense(
                width,
                activation=activation,
                gate_bias=gate_bias,
                gated=self.gated,
                dtype=self._dtype_policy,
                name=f"block_{index}",
            )
            for index, width in enumerate(self.units)
        ]

    def build(self, input_shape: Any) -> None:
        require_rank("GatedTower", "x", input_shape, "[batch, in]")
        width = tf.TensorShape(input_shape)[-1]
        for block in self.blocks:
            with tf.name_scope(block.name):
                block.build([None, width])
            width = block.units
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        x = require_floating("GatedTower", "x", x)
        require_rank("GatedTower", "x", x.shape, "[batch, in]")
        seed = seed_for(training, self.dropout, seed)
        for index, block in enumerate(self.blocks):
            forward = self._forward(block, fold_in(seed, index))
            if self.recompute and training:
                forward = tf.recompute_grad(forward)
            x = forward(
                x,
                read_weight(block.kernel, self.compute_dtype),
                read_weight(block.bias, self.compute_dtype),
            )
        return x

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        shape = tf.TensorShape(input_shape)
        return shape[:-1].concatenate([self.units[-1]]) if self.units else shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": list(self.units),
            "dropout": self.dropout,
            "recompute": self.recompute,
            "activation": tf_keras.activations.serialize(self.activation),
            "gate_bias": self.gate_bias,
            "gated": self.gated,
        }

    def _forward(self, block: GatedDense, seed: tf.Tensor | None) -> Any:
        # The weights are arguments and the seed is captured: what is recomputed is then a
        # pure function, with no variable and no random state inside.
        def forward(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
            x = block.function(x, kernel, bias, block.activation)
            if seed is None:
                return x
            return tf.nn.experimental.stateless_dropout(x, rate=self.dropout, seed=seed)

        return forward
