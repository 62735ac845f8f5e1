"""How tasks share what they learn: shared bottom, MMoE, PLE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_floating, require_positive, require_rank
from recsys.layers.gated_dense import GatedDense
from recsys.layers.gated_tower import GatedTower
from recsys.layers.precision import masked_softmax
from recsys.layers.randomness import check_rate, fold_in, seed_for


class TaskSharing(tf_keras.layers.Layer):
    """What the three ways of sharing have in common: their arguments and their checks.

    Args:
      tasks: task names, at least one, distinct.
      units: widths of an expert (a `GatedTower`), at least one.
      dropout: rate in [0, 1) inside the experts.
      recompute: whether experts are recomputed in the backward pass.
      activation: of the experts' linear halves.
      gated: ``False`` makes the experts ordinary dense towers, at half the cost.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        units: Sequence[int],
        dropout: float = 0.0,
        recompute: bool = False,
        activation: Any = "relu",
        gated: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        self.tasks = tuple(tasks)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"{name} requires distinct task names, but received {self.tasks}.")
        self.units = tuple(require_positive(name, "units", width) for width in units)
        if not self.units:
            raise ValueError(f"{name} requires at least one width in `units`, received none.")
        self.dropout = check_rate(name, dropout)
        self.recompute = bool(recompute)
        self.activation = tf_keras.activations.get(activation)
        self.gated = bool(gated)

    @property
    @abstractmethod
    def last_shared(self) -> list[GatedTower]:
        """The last towers that all tasks read."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tasks": list(self.tasks),
            "units": list(self.units),
            "dropout": self.dropout,
            "recompute": self.recompute,
            "activation": tf_keras.activations.serialize(self.activation),
            "gated": self.gated,
        }

    def _expert(self, name: str) -> GatedTower:
        return GatedTower(
            self.units,
            dropout=self.dropout,
            recompute=self.recompute,
            activation=self.activation,
            gated=self.gated,
            dtype=self._dtype_policy,
            name=name,
        )

    def _gate(self, choices: int, name: str) -> GatedDense:
        return GatedDense(choices, gated=False, dtype=self._dtype_policy, name=name)

    def _checked(self, x: tf.Tensor) -> tf.Tensor:
        name = type(self).__name__
        x = require_floating(name, "x", x)
        require_rank(name, "x", x.shape, "[batch, in]")
        return x


@tf_keras.utils.register_keras_serializable(package="recsys")
class SharedBottom(TaskSharing):
    """One gated tower that every task uses (Caruana 1997).

    Args: those of `TaskSharing`: tasks, units, dropout, recompute, activation, gated.

    Call arguments: ``x`` float ``[batch, in]``, ``training``, and ``seed`` int32 ``[2]``
    or ``None``.

    Output: a dictionary by task name of ``[batch, units[-1]]`` (the same tensor).

    >>> sorted(SharedBottom(["click", "conversion"], [8])(tf.ones([2, 3])))
    ['click', 'conversion']
    """

    def __init__(self, tasks: Sequence[str], units: Sequence[int], **kwargs: Any) -> None:
        super().__init__(tasks, units, **kwargs)
        self.bottom = self._expert("bottom")

    @property
    def last_shared(self) -> list[GatedTower]:
        """The last towers that all tasks read."""
        return [self.bottom]

    def build(self, input_shape: Any) -> None:
        require_rank("SharedBottom", "x", input_shape, "[batch, in]")
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        shared = self.bottom(self._checked(x), training=training, seed=seed)
        return {task: shared for task in self.tasks}


@tf_keras.utils.register_keras_serializable(package="recsys")
class MMoE(TaskSharing):
    """Multi-gate mixture of experts: each task mixes all experts by a softmax of its own.

    Ma et al. 2018, https://doi.org/10.1145/3219819.3220007.

    Args: those of `TaskSharing`, and:
      experts: number of gated towers.

    Call arguments: ``x`` float ``[batch, in]``, ``training``, and ``seed`` int32 ``[2]``
    or ``None``.

    Output: a dictionary by task name of ``[batch, units[-1]]``.

    >>> MMoE(["click", "conversion"], [8], experts=3)(tf.ones([2, 3]))["click"].shape
    TensorShape([2, 8])
    """

    def __init__(
        self, tasks: Sequence[str], units: Sequence[int], experts: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(tasks, units, **kwargs)
        self.experts = require_positive("MMoE", "experts", experts)
        self.towers = [self._expert(f"expert_{index}") for index in range(self.experts)]
        self.gate = self._gate(len(self.tasks) * self.experts, "gate")

    @property
    def last_shared(self) -> list[GatedTower]:
        """The last towers that all tasks read: all experts."""
        return self.towers

    def build(self, input_shape: Any) -> None:
        require_rank("MMoE", "x", input_shape, "[batch, in]")
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        x = self._checked(x)
        seed = seed_for(training, self.dropout, seed)
        outputs = [
            tower(x, training=training, seed=fold_in(seed, index))
            for index, tower in enumerate(self.towers)
        ]
        logits = tf.reshape(self.gate(x), [-1, len(self.tasks), self.experts])
        mixed = tf.matmul(masked_softmax(logits), tf.stack(outputs, axis=1))
        return dict(zip(self.tasks, tf.unstack(mixed, axis=1), strict=True))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "experts": self.experts}


@tf_keras.utils.register_keras_serializable(package="recsys")
class PLE(TaskSharing):
    """Progressive layered extraction: shared experts and each task's own, level on level.

    On every level, a task mixes its own experts and the shared ones by a softmax of its
    own input, and the shared stream mixes all of them. The last level has no shared
    stream, for nothing follows it. Tang et al. 2020,
    https://doi.org/10.1145/3383313.3412236.

    Args: those of `TaskSharing`, and:
      levels: extraction levels, at least 1 (one level is customized gate control).
      shared_experts: shared gated towers a level.
      task_experts: gated towers of each task a level.

    Call arguments: ``x`` float ``[batch, in]``, ``training``, and ``seed`` int32 ``[2]``
    or ``None``.

    Output: a dictionary by task name of ``[batch, units[-1]]``.

    >>> PLE(["click", "conversion"], [8], levels=2)(tf.ones([2, 3]))["conversion"].shape
    TensorShape([2, 8])
    """

    def __init__(
        self,
        tasks: Sequence[str],
        units: Sequence[int],
        levels: int = 2,
        shared_experts: int = 1,
        task_experts: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(tasks, units, **kwargs)
        self.levels = require_positive("PLE", "levels", levels)
        self.shared_experts = require_positive("PLE", "shared_experts", shared_experts)
        self.task_experts = require_positive("PLE", "task_experts", task_experts)
        streams = ["shared", *(f"task_{index}" for index in range(len(self.tasks)))]
        every = self.shared_experts + len(self.tasks) * self.task_experts
        # Flat lists, level by level: Keras saves the weights of layers in a list, but
        # silently not those of layers in a list of lists.
        self.towers: list[GatedTower] = []
        self.gates: list[GatedDense] = []
        for level in range(self.levels):
            for stream in streams:
                shared = stream == "shared"
                for index in range(self.shared_experts if shared else self.task_experts):
                    self.towers.append(self._expert(f"level_{level}_{stream}_{index}"))
                if shared and level + 1 == self.levels:
                    continue
                choices = every if shared else self.task_experts + self.shared_experts
                self.gates.append(self._gate(choices, f"level_{level}_{stream}_gate"))

    @property
    def last_shared(self) -> list[GatedTower]:
        """The last towers that all tasks read: the last level's shared experts."""
        level = len(self.towers) // self.levels
        last = self.towers[-level:]
        return last[: self.shared_experts]

    def build(self, input_shape: Any) -> None:
        require_rank("PLE", "x", input_shape, "[batch, in]")
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        shared = self._checked(x)
        of_task = [shared] * len(self.tasks)
        seed = seed_for(training, self.dropout, seed)
        towers = iter(enumerate(self.towers))
        gates = iter(self.gates)

        def outputs_of(source: tf.Tensor, experts: int) -> list[tf.Tensor]:
            return [
                tower(source, training=training, seed=fold_in(seed, index))
                for index, tower in islice(towers, experts)
            ]

        for level in range(self.levels):
            from_shared = outputs_of(shared, self.shared_experts)
            from_tasks = [outputs_of(source, self.task_experts) for source in of_task]
            if level + 1 < self.levels:
                every = [*from_shared, *(output for own in from_tasks for output in own)]
                shared = _mix(next(gates)(shared), every)
            of_task = [
                _mix(next(gates)(source), [*own, *from_shared])
                for source, own in zip(of_task, from_tasks, strict=True)
            ]
        return dict(zip(self.tasks, of_task, strict=True))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "shared_experts": self.shared_experts,
            "task_experts": self.task_experts,
        }


def _mix(logits: tf.Tensor, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Average ``[batch, width]`` outputs by the softmax of ``[batch, outputs]`` logits."""
    return tf.linalg.matvec(tf.stack(outputs, axis=1), masked_softmax(logits), transpose_a=True)
