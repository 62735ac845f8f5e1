"""Uncertainty weighting: each loss weighed by its learnt precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs, state
from recsys.exchange import replica_mean


class UncertaintyWeights(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, https://arxiv.org/abs/1705.07115).

    Minimises sum_t w_t (exp(-s_t) loss_t + s_t) over the model and over the log-variances
    s_t, which start at 0. At the optimum s_t = log loss_t: each task weighs w_t, its fixed
    factor, over its loss. (With w_t on the loss alone, s_t would undo it.) The paper's
    factors of one half, which differ between regression and classification, only shift the
    optimum by log 2; use `weights` for them.

    Each s_t makes a gradient step of its own, s -= learning_rate (1 - exp(-s) loss),
    with the bracket held within [-1, 1]: a loss of 1e4 at the start, as of an unscaled
    regression, would otherwise throw s far past its optimum. A loss of exactly 0, as
    of a batch without clicks, says nothing of the noise and leaves s alone.

    Args:
        task_names: see `Balancer`.
        weights: see `Balancer`.
        learning_rate: of the log-variances, a step.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        weights: Mapping[str, float] | None = None,
        learning_rate: float = 0.01,
    ) -> None:
        super().__init__(task_names, weights)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0; received {learning_rate}.")
        self.learning_rate = learning_rate
        self.log_variance = state([0.0] * len(self.task_names), "log_variance")

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`; logs "log_variance/TASK" too."""
        s = tf.convert_to_tensor(self.log_variance)
        mean = replica_mean(self._bare(losses))
        weights = tf.math.exp(-s)
        grads = self._weighted_gradients(losses, tape, all_variables, weights, scale)
        step = tf.clip_by_value(1.0 - weights * mean, -1.0, 1.0)
        usable = tf.math.is_finite(mean) & (mean > 0)
        self.log_variance.assign(s - self.learning_rate * tf.where(usable, step, 0.0))
        base = tf.constant(self._base)
        logs = self._logs(base * mean, weights)
        logs["loss"] += tf.reduce_sum(base * s)
        for t, name in enumerate(self.task_names):
            logs[f"log_variance/{name}"] = s[t]
        return grads, logs
