"""Fixed weights: the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs


class FixedWeights(Balancer):
    """The gradient of sum_t weight_t loss_t, with the weights as given.

    Nothing is exchanged between replicas: the logged loss is this replica's own.
    """

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`."""
        stacked = self._stack(losses)
        weights = tf.ones_like(stacked)
        grads = self._weighted_gradients(losses, tape, all_variables, weights, scale)
        return grads, self._logs(stacked, weights)
