"""Self-attention over long histories, in windows."""

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
from recsys.layers.precision import add_bias, masked_softmax, read_weight


@tf_keras.utils.register_keras_serializable(package="recsys")
class LocalSelfAttention(tf_keras.layers.Layer):
    """Multi-head self-attention where each block of events sees itself and the one before.

    The sequence is cut into blocks of ``window`` events, so each event attends to at
    least the ``window`` before it, and time and memory are linear in the length: no
    ``length x length`` matrix is ever built. Blocks and their predecessors as in the
    local attention of Parmar et al. 2018, https://arxiv.org/abs/1802.05751.

    Args:
      heads: number of heads.
      window: events a block.
      key_dim: width of a head; ``None`` for ``dim // heads``, at least 1.
      causal: whether an event may see only itself and what came before.
      recompute: whether to recompute the attention in the backward pass, in training.

    Call arguments:
      x: float ``[batch, length, dim]``; any length, padded to whole blocks inside.
      valid: bool ``[batch, length]``, false for padding; ``None`` if there is none.
      training: whether to recompute, where that is switched on.

    Output: ``[batch, length, dim]`` in the compute dtype; zeros where ``valid`` is false.

    Raises:
      ValueError: inputs of another rank or dtype, or arguments out of range.

    >>> LocalSelfAttention(heads=2, window=4)(tf.ones([1, 10, 8])).shape
    TensorShape([1, 10, 8])
    """

    def __init__(
        self,
        heads: int = 2,
        window: int = 64,
        key_dim: int | None = None,
        causal: bool = False,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heads = require_positive("LocalSelfAttention", "heads", heads)
        self.window = require_positive("LocalSelfAttention", "window", window)
        self.key_dim = key_dim
        if key_dim is not None:
            require_positive("LocalSelfAttention", "key_dim", key_dim)
        self.causal = bool(causal)
        self.recompute = bool(recompute)

    def build(self, input_shape: Any) -> None:
        layout = "[batch, length, dim]"
        require_rank("LocalSelfAttention", "x", input_shape, layout)
        dim = require_known_axis("LocalSelfAttention", "x", input_shape, 2, layout)
        width = self.key_dim or max(1, dim // self.heads)
        self._head_width = width
        inner = self.heads * width
        draw = tf_keras.initializers.GlorotUniform

        def three(shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
            # Drawn apart, as each is a matrix of its own with its own fan-out.
            return tf.concat([draw()([dim, inner], dtype=dtype) for _ in range(3)], axis=1)

        self.kernel_in = self.add_weight("kernel_in", shape=[dim, 3 * inner], initializer=three)
        self.kernel_out = self.add_weight("kernel_out", shape=[inner, dim], initializer=draw())
        self.bias_out = self.add_weight("bias_out", shape=[dim], initializer="zeros")
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, valid: tf.Tensor | None = None, training: bool | None = False
    ) -> tf.Tensor:
        x = require_floating("LocalSelfAttention", "x", x)
        require_rank("LocalSelfAttention", "x", x.shape, "[batch, length, dim]")
        if valid is None:
            valid = tf.ones(tf.shape(x)[:2], tf.bool)
        valid = tf.convert_to_tensor(valid)
        require_rank("LocalSelfAttention", "valid", valid.shape, "[batch, length]")
        if valid.dtype != tf.bool:
            raise ValueError(
                f"LocalSelfAttention requires a bool `valid`, but received {valid.dtype.name}."
            )

        def attend(x: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
            return self._attend(x, valid, *weights)

        forward = tf.recompute_grad(attend) if self.recompute and training else attend
        weights = [
            read_weight(w, self.compute_dtype)
            for w in (self.kernel_in, self.kernel_out, self.bias_out)
        ]
        output = forward(x, *weights)
        output.set_shape(x.shape)
        return output

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "heads": self.heads,
            "window": self.window,
            "key_dim": self.key_dim,
            "causal": self.causal,
            "recompute": self.recompute,
        }

    def _attend(
        self,
        x: tf.Tensor,
        valid: tf.Tensor,
        kernel_in: tf.Tensor,
        kernel_out: tf.Tensor,
        bias_out: tf.Tensor,
    ) -> tf.Tensor:
        batch, length, dim = tf.shape(x)[0], tf.shape(x)[1], x.shape[2]
        window, heads, width = self.window, self.heads, self._head_width
        blocks = (length + window - 1) // window
        fill = blocks * window - length
        projected = tf.matmul(tf.reshape(x, [-1, dim]), kernel_in)
        projected = tf.reshape(projected, [batch, length, 3 * heads * width])
        projected = tf.pad(projected, [[0, 0], [0, fill], [0, 0]])
        # [batch, blocks, heads, window, width] each: LiteRT takes no more than five axes.
        query, keys, values = (
            tf.transpose(tf.reshape(part, [batch, blocks, window, heads, width]), [0, 1, 3, 2, 4])
            for part in tf.split(projected, 3, axis=2)
        )
        query *= tf.constant(width**-0.5, x.dtype)
        keys, values = _with_previous(keys, axis=3), _with_previous(values, axis=3)
        seen = tf.reshape(tf.pad(valid, [[0, 0], [0, fill]]), [batch, blocks, window])
        seen = _with_previous(seen, axis=2)[:, :, None, None, :]
        if self.causal:
            own, other = tf.range(window), tf.range(2 * window) - window
            seen = seen & (other[None, :] <= own[:, None])
        shares = masked_softmax(tf.matmul(query, keys, transpose_b=True), seen)
        mixed = tf.transpose(tf.matmul(shares, values), [0, 1, 3, 2, 4])
        mixed = tf.reshape(mixed, [batch, blocks * window, heads * width])[:, :length]
        output = tf.matmul(tf.reshape(mixed, [-1, heads * width]), kernel_out)
        output = tf.reshape(add_bias(output, bias_out), [batch, length, dim])
        return tf.where(valid[:, :, None], output, tf.zeros_like(output))


def _with_previous(blocks: tf.Tensor, axis: int) -> tf.Tensor:
    """Put before each block (axis 1) the one that precedes it, zeros before the first."""
    earlier = tf.concat([tf.zeros_like(blocks[:, :1]), blocks[:, :-1]], axis=1)
    return tf.concat([earlier, blocks], axis=axis)
