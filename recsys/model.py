"""The ranking model: networks, losses and balancing in one TFRS model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from recsys.balancing import make_balancer
from recsys.exchange import sum_over_replicas
from recsys.layers.randomness import fold_in, seed_of_step
from recsys.layers.tree_ensemble import Forest, TreeEnsemble
from recsys.losses import MultiTaskLoss, TaskLoss
from recsys.network import Network
from recsys.optimizers import WarmupDecay, make_optimizer
from recsys.packing import Packing
from recsys.spec.records import Focal, Huber, Spec, Task
from recsys.trees import TreeInputs

Batch = Mapping[str, tf.Tensor]


class RankingModel(tfrs.Model):
    """Fits a spec's tasks on packed batches.

    A batch is a dictionary: `ids` int32 [batch, ids], `numbers` float32 [batch, numbers],
    `labels` float32 [batch, tasks] (NaN where not observed), `groups` int64 [batch] (the
    request), `weights` float32 [batch] (0 leaves a row out). Replicas have equally many rows each;
    without `train.negative_sampling` and `data.weight` they must have equal weights and labels as
    well for the loss of tasks over all rows to be that of the whole batch, as `training` makes
    them.

    With `model.members` above one, that many networks are trained side by side, each on
    its own loss, and the mean of their logits is what the model answers; with
    `model.variants`, the mean of each kind of network by its weight, `kind_weights`, float32
    [kinds, tasks], equal ones until they are chosen (`training.weighing`). With
    `model.trees`, boosted trees are one more kind, the last, once they are fitted and `attach`ed.

    A regression's logit is its prediction (of log(1 + label), where the spec says so): what the
    network says times a deviation and plus a mean, which are `label_units`, float32 [2, tasks]
    (means, then deviations), 0 and 1 until they are set. Its loss is measured in that deviation.

    Args:
        spec: The spec.
        tables: Rows of each embedding table, by name.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.packing = Packing.of(spec)
        kinds = [spec.model_copy(update={"model": kind}) for kind in spec.model.kinds]
        self.networks = [
            Network(kind, tables, name=f"network_{number}", dtype=spec.train.precision)
            for number, kind in enumerate(k for k in kinds for _ in range(k.model.members))
        ]
        self._task_names = [task.name for task in spec.tasks]
        self.kind_weights = None
        self.trees: TreeEnsemble | None = None
        if len(kinds) > 1 or spec.model.trees:
            start = [1.0 / len(kinds)] * len(kinds) + [0.0] * (spec.model.trees is not None)
            self.kind_weights = tf.Variable(
                tf.repeat(tf.constant(start)[:, tf.newaxis], len(spec.tasks), axis=1),
                trainable=False,
                name="kind_weights",
            )
        # A network starts near 0 and moves by small steps; labels may be milliseconds or prices.
        self.label_units: tf.Variable | None = None
        if any(task.is_regression for task in spec.tasks):
            self.label_units = tf.Variable(
                [[0.0] * len(spec.tasks), [1.0] * len(spec.tasks)],
                trainable=False,
                name="label_units",
            )
        self.losses_of = MultiTaskLoss(
            [task_loss(task) for task in spec.tasks],
            even=spec.train.negative_sampling == 1 and spec.data.weight is None,
        )
        options: dict[str, Any] = {}
        if spec.train.balancing.kind == "gradnorm":
            options["alpha"] = spec.train.balancing.alpha
        if spec.train.balancing.kind == "dwa":
            options["temperature"] = spec.train.balancing.temperature
        self.balancer = make_balancer(
            spec.train.balancing.kind,
            self._task_names,
            {task.name: task.weight for task in spec.tasks},
            **options,
        )
        self._scaler = _LossScale() if spec.train.precision == "mixed_float16" else None

    def call(
        self, batch: Batch, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Logits, float32 [batch, tasks]: the mean over the networks, by the weights of kinds."""
        kinds = self._kind_logits(batch, training, seed)
        if self.kind_weights is None:
            return kinds[0]
        # While the networks train there are no trees, whose weight is the last.
        weights = tf.unstack(self.kind_weights)[: len(kinds)]
        return tf.add_n([logits * weight for logits, weight in zip(kinds, weights, strict=True)])

    def _kind_logits(
        self, batch: Batch, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        left = iter(self.member_logits(batch, training, seed))
        means = [
            tf.add_n([next(left) for _ in range(kind.members)]) / kind.members
            for kind in self.spec.model.kinds
        ]
        return means if self.trees is None else [*means, self.trees(self._tree_inputs(batch))]

    def attach(self, forests: Sequence[Forest]) -> None:
        """Take in fitted trees, a forest a task, before anything is predicted."""
        trees = TreeEnsemble(
            [forest.trees for forest in forests], forests[0].value.shape[1], name="trees"
        )
        trees.assign(forests)
        self.trees, self._tree_inputs = trees, TreeInputs(self.spec)

    def member_logits(
        self, batch: Batch, training: bool | None = False, seed: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Logits of each network, float32 [batch, tasks] each."""
        logits = [
            network(batch, training=training, seed=fold_in(seed, member))
            for member, network in enumerate(self.networks)
        ]
        if self.label_units is None:
            return logits
        mean, deviation = tf.unstack(self.label_units)
        return [own * deviation + mean for own in logits]

    def task_losses(self, batch: Batch, logits: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Loss of each task, a scalar, the mean over the members.

        Under a strategy the mean over replicas is the loss of the whole batch.

        Args:
            batch: `labels` float32 [batch, tasks], `weights` float32 [batch], and `groups` int64
                [batch] for ranking losses.
            logits: float32 [batch, tasks] of each member.
        """
        with tf.name_scope("losses"):
            return self._task_losses(batch, logits)

    def _task_losses(self, batch: Batch, logits: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        labels = dict(zip(self._task_names, tf.unstack(batch["labels"], axis=1), strict=True))
        units = {
            task.name: self.label_units[1, index]
            for index, task in enumerate(self.spec.tasks)
            if task.is_regression and self.label_units is not None
        }
        networks = [
            dict(zip(self._task_names, tf.unstack(member, axis=1), strict=True))
            for member in logits
        ]
        return self.losses_of(labels, networks, batch["weights"], batch.get("groups"), units)

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step; returns `loss`, `loss/<task>` and what the balancer logs."""
        variables = self.trainable_variables
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scale = self._scaler.value() if self._scaler else 1.0
        with tf.GradientTape(persistent=self.balancer.persistent) as tape:
            seed = seed_of_step(self.spec.train.seed, self.optimizer.iterations)
            logits = self.member_logits(batch, True, seed)
            losses = self.task_losses(batch, logits)
        # Each member learns as if alone: from its own loss, and not from its share of the mean.
        scale *= len(self.networks) / replicas
        gradients, logs = self.balancer.gradients(
            losses, tape, self.shared_variables(), variables, scale=scale
        )
        gradients = sum_over_replicas(gradients)
        if self._scaler:
            gradients = self._scaler.unscale(gradients)
        self.optimizer.apply_gradients(
            [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None],
            experimental_aggregate_gradients=False,
        )
        return {**self._report(losses), **logs}

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Losses of a batch, without training."""
        return self._report(self.task_losses(batch, self.member_logits(batch, False)))

    def _report(self, losses: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        report = {f"loss/{name}": loss for name, loss in losses.items()}
        total = tf.add_n([task.weight * report[f"loss/{task.name}"] for task in self.spec.tasks])
        return {"loss": total, **report}

    def shared_variables(self) -> list[list[tf.Variable]]:
        """What all tasks share in each network, as far as the balancer measures or projects it."""
        if self.balancer.shares == "all":
            return [network.shared_weights() for network in self.networks]
        return [
            [
                v
                for tower in network.sharing.last_shared
                for v in tower.blocks[-1].trainable_variables
            ]
            for network in self.networks
        ]

    @tf.function(reduce_retracing=True, autograph=False)
    def predict_logits(self, batch: Batch) -> tf.Tensor:
        """Logits, float32 [batch, tasks], as they are served: no dropout, neutral position."""
        return self.call(batch, training=False)

    @tf.function(reduce_retracing=True, autograph=False)
    def predict_kinds(self, batch: Batch) -> tf.Tensor:
        """Mean logits of each kind of network, and trees': float32 [batch, kinds, tasks]."""
        return tf.stack(self._kind_logits(batch), axis=1)


def build(
    spec: Spec, tables: Mapping[str, int], steps: int | None = None, past_steps: int = 0
) -> RankingModel:
    """A model with weights and optimizer, ready for `fit`; call it in the strategy's scope.

    Args:
        spec: The spec.
        tables: Rows of each embedding table, by name.
        steps: Steps of the whole run, over which learning rates follow `train.schedule`; None
            for constant rates.
        past_steps: Steps behind the optimizer's moments, where they are those of another run.
    """
    tf_keras.utils.set_random_seed(spec.train.seed)
    model = RankingModel(spec, tables)
    packing = model.packing
    model(
        {
            "ids": tf.zeros([2, packing.ids_width], tf.int32),
            "numbers": tf.zeros([2, packing.numbers_width], tf.float32),
        },
        training=True,
    )
    train = spec.train

    def rate(peak: float) -> WarmupDecay:
        # Always a schedule: a rate of another kind would be one more variable in checkpoints.
        if steps is None:
            return WarmupDecay(peak, 1, "constant")
        # A short run would otherwise end before it had warmed up.
        warmup = min(train.warmup_steps, steps // 10)
        return WarmupDecay(peak, steps, train.schedule, warmup)

    # The loss is a mean over the batch, so one example's gradient is that share of its own.
    start = train.table_initial_accumulator / train.batch_size**2
    optimizer = make_optimizer(
        lambda: model.trainable_variables,
        rate(train.table_learning_rate),
        rate(train.dense_learning_rate),
        dense_weight_decay=train.weight_decay,
        dense_past_steps=past_steps,
        initial_accumulator_value=start,
        # The gradient of an embedding is that of a weight times what it is multiplied with,
        # which starts at about a tenth: the same hold on both needs a hundredfold start.
        first_order_initial_accumulator_value=100.0 * start,
        # Every lookup of a step goes through one gather of distinct rows a variable.
        distinct_indices=True,
    )
    model.compile(optimizer=optimizer)
    return model


def task_loss(task: Task) -> TaskLoss:
    """The loss record of a spec's task."""
    loss = task.loss
    return TaskLoss(
        name=task.name,
        given=task.given,
        space=task.space,
        inverse_propensity=task.inverse_propensity,
        loss=loss.kind,
        alpha=loss.alpha if isinstance(loss, Focal) else None,
        gamma=loss.gamma if isinstance(loss, Focal) else 0.0,
        huber_delta=loss.delta if isinstance(loss, Huber) else 1.0,
        log=task.by_logarithm,
        label_smoothing=getattr(loss, "label_smoothing", 0.0),
        weight=task.weight,
        ranking=task.ranking.kind if task.ranking else None,
        ranking_weight=task.ranking.weight if task.ranking else 1.0,
    )


class _LossScale(tf.Module):
    """Dynamic loss scale of float16: halved when a gradient overflows, doubled when none does.

    A step whose gradients overflow is taken with zero gradients. Micikevicius et al., Mixed
    Precision Training, 2018.
    """

    def __init__(self, initial: float = 2.0**12, growth_steps: int = 1000) -> None:
        super().__init__(name="loss_scale")
        self._scale = tf.Variable(initial, trainable=False, name="scale")
        self._good = tf.Variable(0, trainable=False, name="good_steps")
        self._growth_steps = growth_steps

    def value(self) -> tf.Tensor:
        return self._scale.read_value()

    def unscale(self, gradients: list[Any]) -> list[Any]:
        """Gradients without the scale. They are summed over the replicas, which so agree."""
        values = [
            g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None
        ]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in values])
        scale = self._scale.read_value()
        good = tf.where(finite, self._good + 1, 0)
        grown = tf.where(good >= self._growth_steps, scale * 2.0, scale)
        self._scale.assign(tf.where(finite, tf.minimum(grown, 2.0**24), tf.maximum(scale / 2, 1.0)))
        self._good.assign(tf.where(good >= self._growth_steps, 0, good))

        def undo(value: tf.Tensor) -> tf.Tensor:
            return tf.where(finite, value / tf.cast(scale, value.dtype), tf.zeros_like(value))

        return [
            g
            if g is None
            else tf.IndexedSlices(undo(g.values), g.indices, g.dense_shape)
            if isinstance(g, tf.IndexedSlices)
            else undo(g)
            for g in gradients
        ]
