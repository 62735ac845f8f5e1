"""A shallow tower that takes position bias upon itself in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_integer, require_positive, require_rank
from recsys.layers.precision import read_weight


@tf_keras.utils.register_keras_serializable(package="recsys")
class PositionTower(tf_keras.layers.Layer):
    """One logit for each position and task, added in training and zero in serving.

    What is clicked depends on where it stood. A tower that sees nothing but the position
    explains that part in training, so that the rest of the model need not (the shallow
    tower of Zhao et al. 2019, https://doi.org/10.1145/3298689.3346997; cf. Guo et al.
    2019, PAL, https://doi.org/10.1145/3298689.3347033). When a request is ranked, no
    position exists yet; every candidate then gets the neutral logit zero.

    The constant that the logits of the positions have on average is the same for every
    candidate, and calibration on neutral predictions takes it in.

    Args:
      buckets: number of positions; ids from 0, later ones count as the last.
      tasks: task names.

    Call arguments:
      positions: int ``[batch]``; an id below zero means unknown and gives zero.
      training: whether the position counts.
      neutral: overrides ``not training`` where given: ``False`` asks for the logits of
        the positions outside training as well.

    Output: a dictionary of ``[batch]`` by task name, in the variable dtype (float32).

    Raises:
      ValueError: positions that are not an integer vector, or arguments out of range.

    >>> tower = PositionTower(10, ["click"])
    >>> tower(tf.constant([0, 3]))["click"].numpy()
    array([0., 0.], dtype=float32)
    """

    def __init__(
        self,
        buckets: int,
        tasks: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.buckets = require_positive("PositionTower", "buckets", buckets)
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("PositionTower requires at least one task name, received none.")

    def build(self, input_shape: Any) -> None:
        self.logits = self.add_weight(
            "logits", shape=[self.buckets, len(self.tasks)], initializer="zeros"
        )
        super().build(input_shape)

    def call(
        self,
        positions: tf.Tensor,
        training: bool | None = False,
        neutral: bool | None = None,
    ) -> dict[str, tf.Tensor]:
        positions = require_integer("PositionTower", "positions", positions)
        require_rank("PositionTower", "positions", positions.shape, "[batch]")
        if neutral is None:
            neutral = not training
        if neutral:
            zeros = tf.zeros(tf.shape(positions), self._exact_dtype)
            return {task: zeros for task in self.tasks}
        logits = read_weight(self.logits, self._exact_dtype)
        known = tf.cast(positions >= 0, logits.dtype)
        found = tf.gather(logits, tf.clip_by_value(positions, 0, self.buckets - 1))
        return {task: found[:, index] * known for index, task in enumerate(self.tasks)}

    @property
    def _exact_dtype(self) -> tf.DType:
        # Logits that are summed with others stay exact under mixed precision.
        return tf.as_dtype(self.variable_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "buckets": self.buckets,
            "tasks": list(self.tasks),
        }
