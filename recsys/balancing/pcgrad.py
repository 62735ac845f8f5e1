"""PCGrad: gradients of tasks that conflict are projected off one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs, flatten, replica_mean, state


class PCGrad(Balancer):
    """Projecting conflicting gradients (Yu et al. 2020, https://arxiv.org/abs/2001.06782).

    For each task in turn, its gradient loses its component along every other task's
    gradient that it points against, the others taken in random order; the projected
    gradients are summed.

    Projected gradients are linear combinations of the tasks' gradients, so everything
    is decided by their inner products, a tasks by tasks matrix. That has two uses:

    - Under a strategy the matrix is made from gradients averaged over all replicas, so
      each replica finds the same coefficients and applies them to its own gradients;
      when the optimizer sums those, the result is PCGrad on the whole batch. This costs
      one all-reduce of tasks times the shared dense weights.
    - Only shared variables with *dense* gradients are projected. Embedding tables, whose
      gradients are sparse, and the tasks' own variables get the plain sum, in one
      backward pass: inner products of sparse gradients need their rows deduplicated,
      and over replicas gathered, each step, which costs more than the rest of it, and
      two tasks only conflict on a table row that both of them see in the batch.

    One backward pass a task to the shared dense variables, and one for all others.
    The random order comes from a step counter in the state: equal on all replicas, and
    the same after a restart.

    Args:
        task_names: see `Balancer`.
        weights: see `Balancer`.
        seed: of the random order; it matters from three tasks on.
    """

    persistent = True

    def __init__(
        self,
        task_names: Sequence[str],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(task_names, weights)
        self.seed = seed
        self.step = state(0, "pcgrad_step", tf.int64)

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[tf.Variable],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`.

        Logs also "gradient_norm/TASK" on the projected variables, "coefficient/TASK"
        (how much of the task's gradient is in the sum) and "conflicts" (the share of
        pairs of tasks that point against each other).

        Raises:
            ValueError: if no shared variable with dense gradients is reached, and as
                `Balancer.gradients`.
        """
        listed = {v.ref() for v in all_variables}
        shared = [v for v in shared_variables if v.ref() in listed]
        per_task = self._task_gradients(losses, tape, shared, scale)
        dense = [
            k
            for k in range(len(shared))
            if any(grads[k] is not None for grads in per_task)
            and not any(isinstance(grads[k], tf.IndexedSlices) for grads in per_task)
        ]
        if not dense:
            raise ValueError(
                "pcgrad needs a dense shared variable that the losses reach; "
                f"received {[v.name for v in shared_variables]}."
            )
        projected = [shared[k] for k in dense]
        flat = tf.stack([flatten([grads[k] for k in dense], projected) for grads in per_task])
        flat /= tf.cast(scale, tf.float32)
        mean = replica_mean(tf.concat([self._stack(losses)[:, tf.newaxis], flat], axis=1))
        loss, global_flat = mean[:, 0], mean[:, 1:]
        gram = tf.matmul(global_flat, global_flat, transpose_b=True)
        step = tf.convert_to_tensor(self.step)
        coefficients = tf.unstack(tf.reduce_sum(self._project(gram, step), axis=0))
        self.step.assign(step + 1)

        combined: dict[tf.Variable, Gradient] = {}
        for k, variable in zip(dense, projected, strict=True):
            gradients = [grads[k] for grads in per_task]
            parts = [
                tf.cast(coefficient, gradient.dtype) * gradient
                for coefficient, gradient in zip(coefficients, gradients, strict=True)
                if gradient is not None
            ]
            combined[variable.ref()] = tf.add_n(parts)
        rest = [v for v in all_variables if v.ref() not in combined]
        ones = tf.ones([len(self.task_names)])
        plain = self._weighted_gradients(losses, tape, rest, ones, scale)
        combined.update({v.ref(): g for v, g in zip(rest, plain, strict=True)})

        logs = self._logs(loss, ones)
        count = len(self.task_names)
        for t, name in enumerate(self.task_names):
            logs[f"gradient_norm/{name}"] = tf.sqrt(gram[t, t])
            logs[f"coefficient/{name}"] = coefficients[t]
        against = tf.reduce_sum(tf.cast(gram < 0, tf.float32))
        logs["conflicts"] = against / float(max(count * (count - 1), 1))
        return [combined[v.ref()] for v in all_variables], logs

    def _project(self, gram: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Rows: each task's projected gradient as coefficients of the tasks' gradients."""
        count = len(self.task_names)
        noise = tf.random.stateless_uniform([count, count], seed=[self.seed, step])
        orders = tf.argsort(noise, axis=1)
        rows = []
        for i in range(count):
            row = tf.one_hot(i, count)
            for k in range(count):
                j = orders[i, k]
                inner = tf.reduce_sum(row * gram[j])  # <projected gradient i, gradient j>
                along = tf.math.divide_no_nan(inner, gram[j, j])
                cut = tf.where((inner < 0) & (j != i), along, 0.0)
                row -= cut * tf.one_hot(j, count)
            rows.append(row)
        return tf.stack(rows)
