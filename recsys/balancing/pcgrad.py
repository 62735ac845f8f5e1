"""PCGrad: gradients of tasks that conflict are projected off one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs, flatten, state
from recsys.exchange import replica_mean, sum_over_replicas
from recsys.optimizers import sum_repeated


class _Dense(NamedTuple):
    """A variable of a network, and its dense gradient of each task."""

    network: int
    variable: tf.Variable
    gradients: list[tf.Tensor | None]


class _Rows(NamedTuple):
    """A table of a network, and the touched rows' gradients, values [rows, tasks, width]."""

    network: int
    variable: tf.Variable
    rows: tf.IndexedSlices


class PCGrad(Balancer):
    """Projecting conflicting gradients (Yu et al. 2020, https://arxiv.org/abs/2001.06782).

    For each task in turn, its gradient loses its component along every other task's
    gradient that it points against, the others taken in random order; the projected
    gradients are summed.

    The gradient of a task is that of all shared variables that more than one task reaches,
    embedding tables among them, as one vector: one a network, where several are trained side by
    side. All other variables get the plain sum.

    Projected gradients are linear combinations of the tasks' gradients, so everything
    is decided by their inner products, a tasks by tasks matrix. Under a strategy this is made
    from gradients averaged over all replicas, so each replica finds the same coefficients and
    applies them to its own gradients; when the optimizer sums those, the result is PCGrad on
    the whole batch. This costs one all-reduce of tasks times the shared dense weights, and one
    more exchange of the touched rows, once a task.

    One backward pass a task to the shared variables, and one for all others.
    The random order comes from a step counter in the state: equal on all replicas, and
    the same after a restart.

    Args:
        task_names: see `Balancer`.
        weights: see `Balancer`.
    """

    persistent = True
    shares = "all"

    def __init__(
        self, task_names: Sequence[str], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(task_names, weights)
        self.step = state(0, "pcgrad_step", tf.int64)

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`.

        Sparse gradients of the projected variables come with distinct indices. Logs also
        "gradient_norm/TASK" on the projected variables, "coefficient/TASK" (how much of the
        task's gradient is in the sum) and "conflicts" (the share of pairs of tasks that point
        against each other), the last two as means over the networks.

        Raises:
            ValueError: if no shared variable is reached by two tasks (by one, if there is
                only one), and as `Balancer.gradients`.
        """
        listed = {v.ref() for v in all_variables}
        shared = [
            (network, v)
            for network, variables in enumerate(shared_variables)
            for v in variables
            if v.ref() in listed
        ]
        by_task = self._task_gradients(losses, tape, [v for _, v in shared], scale)
        with tf.name_scope("balancing"):
            combined, logs = self._combine(losses, shared, by_task, scale, len(shared_variables))
        rest = [v for v in all_variables if v.ref() not in combined]
        plain = self._weighted_gradients(losses, tape, rest, tf.ones([len(by_task)]), scale)
        combined.update({v.ref(): g for v, g in zip(rest, plain, strict=True)})
        return [combined[v.ref()] for v in all_variables], logs

    def _combine(
        self,
        losses: Mapping[str, tf.Tensor],
        shared: Sequence[tuple[int, tf.Variable]],
        by_task: Sequence[Sequence[Gradient]],
        scale: float | tf.Tensor,
        networks: int,
    ) -> tuple[dict[Any, Gradient], Logs]:
        """Projected gradients of the shared variables that tasks have in common, and logs."""
        count = len(self.task_names)
        dense: list[_Dense] = []
        tables: list[_Rows] = []
        for (network, variable), *gradients in zip(shared, *by_task, strict=True):
            reached = [g for g in gradients if g is not None]
            if len(reached) < min(2, count):
                continue
            if all(isinstance(g, tf.IndexedSlices) for g in reached):
                tables.append(_Rows(network, variable, _side_by_side(gradients)))
            else:
                dense.append(_Dense(network, variable, [_as_dense(g) for g in gradients]))
        if not dense and not tables:
            raise ValueError(
                "pcgrad needs a shared variable that two of the losses reach; "
                f"received {[v.name for _, v in shared]}."
            )
        loss, gram = self._inner_products(losses, dense, tables, scale, networks)
        step = tf.convert_to_tensor(self.step)
        coefficients = tf.reduce_sum(self._project(gram, step), axis=1)
        self.step.assign(step + 1)

        combined: dict[Any, Gradient] = {}
        for part in dense:
            own = tf.unstack(coefficients[part.network])
            combined[part.variable.ref()] = tf.add_n(
                [
                    tf.cast(coefficient, gradient.dtype) * gradient
                    for coefficient, gradient in zip(own, part.gradients, strict=True)
                    if gradient is not None
                ]
            )
        for table in tables:
            rows, factors = table.rows, tf.cast(coefficients[table.network], table.rows.dtype)
            values = tf.tensordot(factors, rows.values, axes=[[0], [1]])
            combined[table.variable.ref()] = tf.IndexedSlices(
                values, rows.indices, rows.dense_shape
            )
        logs = self._logs(loss, tf.ones([count]))
        for t, name in enumerate(self.task_names):
            logs[f"gradient_norm/{name}"] = tf.sqrt(tf.reduce_sum(gram[:, t, t]))
            logs[f"coefficient/{name}"] = tf.reduce_mean(coefficients[:, t])
        against = tf.reduce_sum(tf.cast(gram < 0, tf.float32))
        pairs = networks * max(count * (count - 1), 1)
        logs["conflicts"] = against / float(pairs)
        return combined, logs

    def _inner_products(
        self,
        losses: Mapping[str, tf.Tensor],
        dense: Sequence[_Dense],
        tables: Sequence[_Rows],
        scale: float | tf.Tensor,
        networks: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses [tasks] and products of gradients [networks, tasks, tasks].

        Both of means over replicas.
        """
        scale = tf.cast(scale, tf.float32)
        flat, widths = [self._stack(losses)[:, tf.newaxis]], [1]
        for network in range(networks):
            own = [part for part in dense if part.network == network]
            variables = [part.variable for part in own]
            by_task = list(zip(*(part.gradients for part in own), strict=True))
            widths.append(sum(variable.shape.num_elements() for variable in variables))
            if by_task:
                flat.append(tf.stack([flatten(each, variables) / scale for each in by_task]))
        loss, *vectors = tf.split(replica_mean(tf.concat(flat, axis=1)), widths, axis=1)
        products = [tf.matmul(vector, vector, transpose_b=True) for vector in vectors]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        summed = sum_over_replicas([part.rows for part in tables])
        for part, rows in zip(tables, summed, strict=True):
            assert isinstance(rows, tf.IndexedSlices)
            values = tf.cast(rows.values, tf.float32) / (scale * replicas)
            if replicas > 1:
                values, _ = sum_repeated(values, rows.indices)
            flat_rows = tf.reshape(
                values, [-1, len(self.task_names), values.shape[2:].num_elements()]
            )
            products[part.network] += tf.einsum("rtd,rsd->ts", flat_rows, flat_rows)
        return loss[:, 0], tf.stack(products)

    def _project(self, gram: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Each task's projected gradient as coefficients of the tasks' gradients.

        [networks, tasks, tasks], as is the Gram matrix.
        """
        count = len(self.task_names)
        noise = tf.random.stateless_uniform([count, count], seed=[0, step])
        orders = tf.argsort(noise, axis=1)
        rows = []
        for i in range(count):
            row = tf.zeros_like(gram[:, i]) + tf.one_hot(i, count)
            for k in range(count):
                j = orders[i, k]
                # <projected gradient i, gradient j>
                inner = tf.reduce_sum(row * gram[:, j], axis=1, keepdims=True)
                along = tf.math.divide_no_nan(inner, gram[:, j, j, tf.newaxis])
                cut = tf.where((inner < 0) & (j != i), along, 0.0)
                row -= cut * tf.one_hot(j, count)
            rows.append(row)
        return tf.stack(rows, axis=1)


def _as_dense(gradient: Gradient) -> tf.Tensor | None:
    """A variable that one task reads by a gather and another one whole."""
    return gradient if gradient is None else tf.convert_to_tensor(gradient)


def _side_by_side(gradients: Sequence[tf.IndexedSlices | None]) -> tf.IndexedSlices:
    """Rows of all tasks: values [rows, tasks, width] at distinct indices, repeated ones summed.

    Zeros where a task does not reach a row.
    """
    reached = {t: g for t, g in enumerate(gradients) if g is not None}
    one = next(iter(reached.values()))
    unique, position = tf.unique(tf.concat([g.indices for g in reached.values()], axis=0))
    width = one.values.shape[1:].num_elements()
    tasks = [tf.fill([tf.size(g.indices)], t) for t, g in reached.items()]
    values = tf.math.unsorted_segment_sum(
        tf.concat([tf.reshape(g.values, [-1, width]) for g in reached.values()], axis=0),
        position * len(gradients) + tf.concat(tasks, axis=0),
        tf.size(unique) * len(gradients),
    )
    rows = tf.reshape(values, [-1, len(gradients), *one.values.shape[1:]])
    return tf.IndexedSlices(rows, unique, one.dense_shape)
