"""How well two sides match, by a matrix of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_floating, require_known_axis, require_rank
from recsys.layers.precision import read_weight


@tf_keras.utils.register_keras_serializable(package="recsys")
class SideMatch(tf_keras.layers.Layer):
    """A bilinear form of two vectors for each task: ``logit_t = left @ M_t @ right``.

    Where ``left`` is the sum of the user's embeddings and ``right`` that of the item's, a
    matrix of ones on the diagonal gives the part of a factorization machine that crosses the
    two sides, and any other matrix lets a task weigh and mix the same factors in its own way:
    ``dim ** 2`` weights, where a tower would learn every pair of attributes anew. It is a
    field-matrixed factorization machine with one pair of fields and a matrix a task (Sun et
    al. 2021, https://arxiv.org/abs/2102.12994). Each ``M_t`` starts as the identity.

    Args:
      tasks: task names.

    Input: the pair of ``left`` and ``right``, float ``[batch, dim]`` each.
    Output: float ``[batch, tasks]``, in at least float32.

    Raises:
      ValueError: no task, or inputs that are no pair of floating matrices of one width.

    >>> match = SideMatch(["click", "conversion"])
    >>> match((tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0]]))).numpy()
    array([[11., 11.]], dtype=float32)
    """

    def __init__(self, tasks: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("SideMatch requires at least one task name, received none.")

    def build(self, input_shape: Any) -> None:
        dim = _width(*_pair(input_shape))
        self.kernels = [
            self.add_weight(f"kernel_{task}", shape=[dim, dim], initializer="identity")
            for task in self.tasks
        ]
        super().build(input_shape)

    def call(self, inputs: Any) -> tf.Tensor:
        left, right = _pair(inputs)
        left = require_floating("SideMatch", "left", left)
        right = require_floating("SideMatch", "right", right)
        dim = _width(left.shape, right.shape)
        # One product for all tasks; logits are sums of many terms, so they are kept exact.
        kernels = tf.concat([read_weight(k, left.dtype) for k in self.kernels], axis=1)
        turned = tf.reshape(left @ kernels, [-1, len(self.tasks), dim])
        exact = tf.float64 if left.dtype == tf.float64 else tf.float32
        product = tf.cast(turned, exact) * tf.cast(right[:, tf.newaxis], exact)
        return tf.reduce_sum(product, axis=2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tasks": list(self.tasks)}


def _pair(inputs: Any) -> tuple[Any, Any]:
    if not isinstance(inputs, list | tuple) or len(inputs) != 2:
        raise ValueError(
            f"SideMatch requires the pair (left, right), but received {type(inputs).__name__}."
        )
    return inputs[0], inputs[1]


def _width(left: Any, right: Any) -> int:
    """The one width of two shapes."""
    for argument, shape in (("left", left), ("right", right)):
        require_rank("SideMatch", argument, shape, "[batch, dim]")
    dim = require_known_axis("SideMatch", "left", left, 1, "[batch, dim]")
    if require_known_axis("SideMatch", "right", right, 1, "[batch, dim]") != dim:
        raise ValueError(
            f"SideMatch requires `left` and `right` of one width, but received {left} and {right}."
        )
    return dim
