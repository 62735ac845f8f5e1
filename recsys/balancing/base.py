"""What all balancers share: the interface, the state and its agreement among replicas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import tensorflow as tf

from recsys.exchange import Gradient

Logs = dict[str, tf.Tensor]


class Balancer(tf.Module):
    """Combines the gradients of several losses into one gradient a variable.

    The state is in `tf.Variable`s that no optimizer sees (they are not trainable), so
    `tf.train.Checkpoint(balancer=...)` saves and restores it. The state is updated from
    statistics averaged over all replicas, and so is equal on each of them.

    Args:
        task_names: the tasks, in the order of the state.
        weights: fixed factor of each loss, on top of what a kind makes of it (which is made of
            the losses as they are); tasks left out have one.
    """

    persistent = False
    """Whether the tape must be persistent, since more than one gradient is taken."""

    shares: ClassVar[Literal["last", "all"]] = "last"
    """Which shared variables `gradients` wants: those of the last shared layer, or all."""

    def __init__(
        self, task_names: Sequence[str], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(name="balancer")
        self.task_names = tuple(task_names)
        if not self.task_names or len(set(self.task_names)) != len(self.task_names):
            raise ValueError(f"task_names must be some different names; got {self.task_names}.")
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(self.task_names))
        if unknown:
            raise ValueError(f"weights name {unknown}; the tasks are {list(self.task_names)}.")
        self._base = tuple(float(weights.get(name, 1.0)) for name in self.task_names)
        if min(self._base) < 0 or sum(self._base) <= 0:
            raise ValueError(f"weights must be at least 0, one of them above; got {weights}.")

    @abstractmethod
    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """Return the combined gradients of this replica, and update the state.

        Args:
            losses: task to scalar loss of this replica, recorded on the tape, without
                loss scale. The mean over replicas is the loss of the whole batch.
            tape: the tape, persistent if `persistent` says so.
            shared_variables: variables that several tasks reach, a list for each of the
                networks that are trained side by side. "gradnorm" measures norms on them
                (pass the last shared layer's weights), "pcgrad" projects each network's
                (pass all of them); the others ignore them.
            all_variables: variables to return gradients for.
            scale: factor of all returned gradients: the loss scale of float16 training,
                over the number of replicas if the optimizer sums over them. It
                multiplies the gradients as they enter the backward pass, so that
                they do not underflow in float16; statistics and logs are free of it.

        Returns:
            Gradients in the order of `all_variables` (None where a variable reaches no
            loss), not yet reduced over replicas, and scalars to log: "loss" (the
            weighted sum), "weight/TASK", and what the kind adds. All but the loss of
            "fixed" are means over replicas.

        Raises:
            ValueError: if the losses are not exactly those of the tasks.
        """

    def _bare(self, losses: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Losses without their fixed factors, [tasks] float32, cut from the gradient."""
        self._check(losses)
        values = [tf.cast(losses[name], tf.float32) for name in self.task_names]
        return tf.stop_gradient(tf.stack(values))

    def _stack(self, losses: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Losses times their fixed factors, [tasks] float32, cut from the gradient."""
        return self._bare(losses) * tf.constant(self._base)

    def _check(self, losses: Mapping[str, tf.Tensor]) -> None:
        if set(losses) != set(self.task_names):
            raise ValueError(
                f"losses must have the tasks {sorted(self.task_names)}; received {sorted(losses)}."
            )

    def _weighted_gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        variables: Sequence[tf.Variable],
        weights: tf.Tensor,
        scale: float | tf.Tensor,
    ) -> list[Gradient]:
        """Gradient of sum_t scale weight_t base_t loss_t, in one backward pass."""
        self._check(losses)
        if not variables:
            return []
        factors = weights * tf.constant(self._base) * tf.cast(scale, tf.float32)
        targets = [losses[name] for name in self.task_names]
        seeds = [
            tf.cast(factor, target.dtype)
            for factor, target in zip(tf.unstack(factors), targets, strict=True)
        ]
        return tape.gradient(targets, list(variables), output_gradients=seeds)

    def _task_gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        variables: Sequence[tf.Variable],
        scale: float | tf.Tensor,
    ) -> list[list[Gradient]]:
        """Gradients of scale base_t loss_t, one list a task; one backward pass a task.

        None where a task does not reach a variable.
        """
        self._check(losses)
        scale = tf.cast(scale, tf.float32)
        return [
            tape.gradient(
                losses[name],
                list(variables),
                output_gradients=tf.cast(base * scale, losses[name].dtype),
            )
            for name, base in zip(self.task_names, self._base, strict=True)
        ]

    def _logs(self, losses: tf.Tensor, weights: tf.Tensor) -> Logs:
        """Logs of replica-mean losses [tasks] (with base factors) and weights [tasks]."""
        logs = {"loss": tf.reduce_sum(losses * weights)}
        effective = weights * tf.constant(self._base)
        for t, name in enumerate(self.task_names):
            logs[f"weight/{name}"] = effective[t]
        return logs


def flatten(gradients: Sequence[Gradient], variables: Sequence[tf.Variable]) -> tf.Tensor:
    """One float32 vector of dense gradients; zeros for a variable that was not reached."""
    parts = [
        tf.zeros([variable.shape.num_elements()])
        if gradient is None
        else tf.cast(tf.reshape(gradient, [-1]), tf.float32)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
    return tf.concat(parts, axis=0)


def state(values: Sequence[float] | float, name: str, dtype: tf.DType = tf.float32) -> tf.Variable:
    """A variable of the balancer's own, written alike by every replica."""
    return tf.Variable(
        values,
        trainable=False,
        name=name,
        dtype=dtype,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
