"""Optimizers: row-wise Adagrad for tables, Adam for the rest, joined by TFRS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from recsys.layers.fused_embedding import TABLE_VARIABLE

# The layer of first-order weights, told by this part of its variables' names.
FIRST_ORDER = "first_order"

# A weight of each task, and a vector, for each scaled number; the layer that matches two sides.
NUMBER_WEIGHTS, NUMBER_FACTORS, MATCH = "number_weights", "number_factors", "match"

# Layers and variables whose matrices decay leaves alone, by their own whole name: few weights, each
# of which carries an effect of its own, such as the slope of a number or what a task makes of a
# factor.
UNDECAYED = frozenset({NUMBER_WEIGHTS, NUMBER_FACTORS, MATCH})


@tf_keras.utils.register_keras_serializable(package="recsys")
class RowAdagrad(tf_keras.optimizers.legacy.Optimizer):
    """Adagrad with one accumulator a row, which touches only the rows in the gradient.

    For row ``r`` with summed gradient ``g_r`` of width ``D``::

        a_r <- a_r + mean(g_r ** 2)
        w_r <- w_r - learning_rate * g_r / (sqrt(a_r) + epsilon)

    A step costs time by the rows in the batch, whatever the table's size, and memory is
    the table plus one number a row. The rule is that of FBGEMM and TorchRec; Adagrad
    itself is Duchi et al. 2011.

    Works on any variable: a row is one entry of the first axis. A dense gradient updates
    every row. Indices that repeat are summed first, so the result is that of the summed
    gradient.

    Args:
      learning_rate: a float or a ``LearningRateSchedule``.
      initial_accumulator_value: start of each ``a_r``, at least 0. At 0, a row's first
        step has length ``learning_rate`` in each coordinate (in root mean square).
      epsilon: added to the root, above 0.
      distinct_indices: a promise that sparse gradients never repeat an index (one
        `FusedEmbedding` call a variable and step), which saves finding that out. It is
        relied on with one replica only: several replicas' gradients are concatenated,
        with repetitions, and so are always summed. If the promise is broken, nothing
        fails, but of the gradients of a repeated row only one counts.
    """

    _HAS_AGGREGATE_GRAD = True

    def __init__(
        self,
        learning_rate: Any = 0.05,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-8,
        distinct_indices: bool = False,
        name: str = "RowAdagrad",
        **kwargs: Any,
    ) -> None:
        if initial_accumulator_value < 0.0:
            raise ValueError(
                "RowAdagrad requires `initial_accumulator_value` of at least 0, "
                f"but received {initial_accumulator_value}."
            )
        if not epsilon > 0.0:
            raise ValueError(f"RowAdagrad requires `epsilon` above 0, but received {epsilon}.")
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", self._initial_decay)
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)
        self.distinct_indices = bool(distinct_indices)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
            "distinct_indices": self.distinct_indices,
        }

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        start = tf_keras.initializers.Constant(self.initial_accumulator_value)
        for var in var_list:
            self.add_slot(var, "accumulator", initializer=start, shape=var.shape[:1])

    def _learning_rate(self, var: tf.Variable, apply_state: Any) -> tf.Tensor:
        key = (var.device, var.dtype.base_dtype)
        coefficients = (apply_state or {}).get(key) or self._fallback_apply_state(*key)
        return coefficients["lr_t"]

    def _resource_apply_dense(
        self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None
    ) -> tf.Operation:
        accumulator = self.get_slot(var, "accumulator")
        axes = list(range(1, var.shape.rank))
        total = accumulator.assign_add(
            tf.reduce_mean(tf.square(grad), axis=axes), use_locking=self._use_locking
        )
        step = self._step(grad, tf.convert_to_tensor(total), self._learning_rate(var, apply_state))
        return var.assign_sub(step, use_locking=self._use_locking, read_value=False)

    def _resource_apply_sparse_duplicate_indices(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, **kwargs: Any
    ) -> tf.Operation:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if not (self.distinct_indices and replicas == 1):
            grad, indices = sum_repeated(grad, indices)
        return self._resource_apply_sparse(grad, var, indices, **kwargs)

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        accumulator = self.get_slot(var, "accumulator")
        axes = list(range(1, var.shape.rank))
        # Gather and scatter on the handles: reading either variable would copy it whole.
        total = tf.raw_ops.ResourceGather(
            resource=accumulator.handle, indices=indices, dtype=grad.dtype
        ) + tf.reduce_mean(tf.square(grad), axis=axes)
        step = self._step(grad, total, self._learning_rate(var, apply_state))
        rows = tf.raw_ops.ResourceGather(resource=var.handle, indices=indices, dtype=grad.dtype)
        # Rows are written, not subtracted from: on a CPU, a scatter that computes takes a
        # lock a row and several times as long. Right because indices do not repeat here.
        return tf.group(
            tf.raw_ops.ResourceScatterUpdate(
                resource=accumulator.handle, indices=indices, updates=total
            ),
            tf.raw_ops.ResourceScatterUpdate(
                resource=var.handle, indices=indices, updates=rows - step
            ),
        )

    def _step(self, grad: tf.Tensor, total: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        # The factor is one number a row, and only the product is as wide as the row.
        factor = rate / (tf.sqrt(total) + tf.constant(self.epsilon, total.dtype))
        ones = [1] * (grad.shape.rank - total.shape.rank)
        return grad * tf.reshape(factor, tf.concat([tf.shape(factor), ones], axis=0))


def sum_repeated(values: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum the rows of ``values`` that have the same index.

    Costs no more than finding the distinct indices where none is repeated.

    Args:
      values: float ``[rows, ...]``.
      indices: int ``[rows]``.

    Returns:
      the sums and their distinct indices, in order of first appearance.
    """
    unique, position = tf.unique(indices)
    distinct = tf.equal(tf.size(unique), tf.size(indices))
    summed = tf.cond(
        distinct,
        lambda: values,
        lambda: tf.math.unsorted_segment_sum(values, position, tf.size(unique)),
    )
    summed.set_shape(tf.TensorShape([None]).concatenate(values.shape[1:]))
    return summed, unique


@tf_keras.utils.register_keras_serializable(package="recsys")
class DecayedAdam(tf_keras.optimizers.legacy.Adam):
    """Adam with decoupled weight decay on matrices: ``w <- w - rate * decay * w``.

    Biases and other vectors are left alone, and so are matrices named in `UNDECAYED` and
    whatever has a sparse gradient: decaying a table would read and write all of it at every
    step. Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

    Args:
      learning_rate: a float or a ``LearningRateSchedule``.
      weight_decay: share of the weight taken off a step, by unit of learning rate.
      past_steps: steps that the moments were taken over with. Adam's correction of moments that
        start at zero counts on from them; learning rates count from 0.
      **kwargs: those of legacy Adam.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.0,
        past_steps: int = 0,
        name: str = "DecayedAdam",
        **kwargs: Any,
    ) -> None:
        if weight_decay < 0.0:
            raise ValueError(
                f"DecayedAdam requires `weight_decay` of at least 0, but received {weight_decay}."
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.weight_decay = float(weight_decay)
        self.past_steps = int(past_steps)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay,
            "past_steps": self.past_steps,
        }

    def _prepare_local(self, var_device: str, var_dtype: tf.DType, apply_state: Any) -> None:
        super()._prepare_local(var_device, var_dtype, apply_state)
        if not self.past_steps:
            return
        own = apply_state[(var_device, var_dtype)]
        step = tf.cast(self.iterations + 1 + self.past_steps, var_dtype)
        first, second = tf.pow(own["beta_1_t"], step), tf.pow(own["beta_2_t"], step)
        rate = own["lr_t"] * tf.sqrt(1 - second) / (1 - first)
        own.update(lr=rate, beta_1_power=first, beta_2_power=second)

    def _resource_apply_dense(
        self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None
    ) -> tf.Operation:
        named = var.name.partition(":")[0].split("/")
        left_alone = var.shape.rank < 2 or not UNDECAYED.isdisjoint(named)
        if self.weight_decay == 0.0 or left_alone:
            return super()._resource_apply_dense(grad, var, apply_state)
        key = (var.device, var.dtype.base_dtype)
        coefficients = (apply_state or {}).get(key) or self._fallback_apply_state(*key)
        # The decayed learning rate, without Adam's correction for its first steps.
        rate = coefficients["lr_t"]
        decayed = var.assign_sub(rate * self.weight_decay * var, read_value=False)
        with tf.control_dependencies([decayed] if decayed is not None else []):
            return super()._resource_apply_dense(grad, var, apply_state)


@tf_keras.utils.register_keras_serializable(package="recsys")
class WarmupDecay(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, then falls to `floor` of its peak.

    At step ``s`` (from 0) the rate is ``peak * min(1, (s + 1) / warmup_steps) * fall``, where
    ``fall`` goes from 1 at step 0 to ``floor`` at ``total_steps``, on a line or on half a
    cosine wave (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983), and stays there.

    Args:
      peak: the learning rate that others would call the learning rate.
      total_steps: steps of the whole run.
      kind: ``"linear"``, ``"cosine"``, or ``"constant"``, which does not fall.
      warmup_steps: steps of the rise; 0 for none.
      floor: what is left at the end, as a share of the peak.

    >>> schedule = WarmupDecay(1.0, total_steps=100, warmup_steps=4, floor=0.0)
    >>> [round(float(schedule(step)), 3) for step in (0, 3, 50, 100, 200)]
    [0.25, 0.97, 0.5, 0.0, 0.0]
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        kind: str = "linear",
        warmup_steps: int = 0,
        floor: float = 0.02,
    ) -> None:
        super().__init__()
        if kind not in ("linear", "cosine", "constant"):
            raise ValueError(f"`kind` must be linear, cosine or constant, but received {kind!r}.")
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, but received {total_steps}.")
        self.peak, self.total_steps, self.kind = float(peak), int(total_steps), kind
        self.warmup_steps, self.floor = int(warmup_steps), float(floor)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "kind": self.kind,
            "warmup_steps": self.warmup_steps,
            "floor": self.floor,
        }

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rise = tf.minimum(1.0, (step + 1.0) / max(1, self.warmup_steps))
        if self.kind == "constant":
            return self.peak * rise
        left = 1.0 - tf.minimum(1.0, step / self.total_steps)
        if self.kind == "cosine":
            left = 0.5 - 0.5 * tf.cos(np.pi * left)
        return self.peak * rise * (self.floor + (1.0 - self.floor) * left)


def is_table(variable: tf.Variable) -> bool:
    """Whether a variable is the table of a `FusedEmbedding`, told by its name."""
    return variable.name.rsplit("/", 1)[-1].startswith(TABLE_VARIABLE)


def make_optimizer(
    variables: Callable[[], Iterable[tf.Variable]],
    table_lr: Any = 0.05,
    dense_lr: Any = 0.001,
    *,
    dense_weight_decay: float = 0.0,
    dense_past_steps: int = 0,
    initial_accumulator_value: float = 0.0,
    first_order_initial_accumulator_value: float = 0.0,
    distinct_indices: bool = False,
    table: Callable[[tf.Variable], bool] = is_table,
) -> tfrs.experimental.optimizers.CompositeOptimizer:
    """Row-wise Adagrad for the tables and Adam for all else, as one optimizer.

    Args:
      variables: gives the model's trainable variables when called, so that the optimizer
        can be made before the model is built: ``lambda: model.trainable_variables``.
      table_lr: learning rate (or schedule) of the tables.
      dense_lr: learning rate (or schedule) of all other weights.
      dense_weight_decay: decoupled decay of dense matrices; no table is ever decayed.
      dense_past_steps: `past_steps` of `DecayedAdam`.
      initial_accumulator_value: of `RowAdagrad`.
      first_order_initial_accumulator_value: the same for tables of first-order weights, told by
        their name.
      distinct_indices: of `RowAdagrad`.
      table: tells tables from dense weights.

    Returns:
      the TFRS optimizer. Its ``optimizers`` are the dense one, that of the tables, and that of
      the first-order weights.
    """
    dense = DecayedAdam(
        dense_lr, weight_decay=dense_weight_decay, past_steps=dense_past_steps, name="Dense"
    )

    def rows(name: str, start: float) -> RowAdagrad:
        return RowAdagrad(
            table_lr,
            initial_accumulator_value=start,
            distinct_indices=distinct_indices,
            name=name,
        )

    # Dense first: the joint step counter is the first one's, and a model without a table
    # would otherwise stand still in it.
    return tfrs.experimental.optimizers.CompositeOptimizer(
        [
            (dense, lambda: [v for v in variables() if not table(v)]),
            (
                rows("Tables", initial_accumulator_value),
                lambda: [v for v in variables() if table(v) and FIRST_ORDER not in v.name],
            ),
            (
                rows("FirstOrderTables", first_order_initial_accumulator_value),
                lambda: [v for v in variables() if table(v) and FIRST_ORDER in v.name],
            ),
        ]
    )


def parts(
    optimizer: tfrs.experimental.optimizers.CompositeOptimizer,
) -> list[tuple[tf_keras.optimizers.legacy.Optimizer, list[tf.Variable]]]:
    """The optimizers of `make_optimizer`, each with the variables that it trains."""
    # TFRS has no public way from an optimizer to its variables.
    return [(part, list(variables())) for part, variables in optimizer._optimizers_and_vars]


def create_slots(optimizer: tfrs.experimental.optimizers.CompositeOptimizer) -> None:
    """Make now what `make_optimizer`'s optimizers would make in their first step."""
    for part, variables in parts(optimizer):
        part._create_all_weights(variables)
