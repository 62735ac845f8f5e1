"""Dynamic weight averaging: tasks whose loss falls slowly weigh more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs, state
from recsys.exchange import replica_mean


class DynamicWeightAverage(Balancer):
    """Dynamic weight average (Liu et al. 2019, https://arxiv.org/abs/1803.10704).

    weight_t = T softmax_t(r_t / temperature), with r_t the ratio of the task's mean loss
    over the last window to that over the window before, and r_t = 1 until there are two
    windows. T is the number of tasks, so weights sum to it. Tasks whose base weight is 0 do not
    count.

    The paper's window is an epoch. Ranking models often see one or two epochs only, so
    a window is a number of steps here.

    Args:
        task_names: see `Balancer`.
        weights: see `Balancer`.
        temperature: above 0; large makes weights alike.
        window: steps a window, at least 1.

    Raises:
        ValueError: if an option is out of range, and as `Balancer`.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        weights: Mapping[str, float] | None = None,
        temperature: float = 2.0,
        window: int = 100,
    ) -> None:
        super().__init__(task_names, weights)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; received {temperature}.")
        if window < 1:
            raise ValueError(f"window must be at least 1; received {window}.")
        self.temperature = temperature
        self.window = window
        zeros = [0.0] * len(self.task_names)
        self.total = state(zeros, "dwa_total")
        self.steps = state(0.0, "dwa_steps")
        self.last = state(zeros, "dwa_last")
        self.weights = state([1.0] * len(self.task_names), "dwa_weights")

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`."""
        weights = tf.convert_to_tensor(self.weights)
        mean = replica_mean(self._stack(losses))
        grads = self._weighted_gradients(losses, tape, all_variables, weights, scale)
        finite = tf.reduce_all(tf.math.is_finite(mean))
        total = self.total + tf.where(finite, mean, 0.0)
        steps = self.steps + tf.where(finite, 1.0, 0.0)
        self._move(total, steps, steps >= float(self.window))
        return grads, self._logs(mean, weights)

    def _move(self, total: tf.Tensor, steps: tf.Tensor, ended: tf.Tensor) -> None:
        """Write the state. Chosen by `where`: a strategy allows no assignment inside a cond."""
        last, weights = tf.convert_to_tensor(self.last), tf.convert_to_tensor(self.weights)
        mean = tf.math.divide_no_nan(total, steps)
        # A window of zero loss (a masked task without a click) has no ratio: hold it at 1.
        ratio = tf.where((last > 0) & (mean > 0), tf.math.divide_no_nan(mean, last), 1.0)
        # A task of weight 0 learns nothing, so its pace must not change that of the others.
        learned = tf.constant([base > 0 for base in self._base])
        count = tf.reduce_sum(tf.cast(learned, tf.float32))
        share = tf.nn.softmax(tf.where(learned, ratio / self.temperature, -np.inf))
        new = tf.where(learned, count * share, weights)
        self.weights.assign(tf.where(ended, new, weights))
        self.last.assign(tf.where(ended & (mean > 0), mean, last))
        self.total.assign(tf.where(ended, tf.zeros_like(total), total))
        self.steps.assign(tf.where(ended, 0.0, steps))
