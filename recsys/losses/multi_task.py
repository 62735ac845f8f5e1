"""The losses of all tasks of a funnel, one scalar a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import tensorflow as tf

from recsys.losses.focal import focal_from_log_probs
from recsys.losses.funnel import funnel_log_probs
from recsys.losses.numeric import Ratio, divide, smooth_labels, to_compute_dtype, weighted
from recsys.losses.ranking import listwise_ratio, pairwise_ratio
from recsys.losses.sampling import sampled_logit

Space = Literal["entire", "observed", "joint"]
Kind = Literal["bce", "focal", "mse", "huber"]
Ranking = Literal["pairwise", "listwise"]
_REGRESSION = ("mse", "huber")


@dataclass(frozen=True)
class TaskLoss:
    """How one task is trained.

    Attributes:
        name: key of the task's labels and logits.
        given: the task that this one follows in the funnel (its logit is then that of
            the conditional probability), or None.
        space: for a task with `given`. "entire" trains the product of the chain
            on all rows (ESMM, Ma et al. 2018); "observed" trains the conditional on rows
            whose parent happened; "joint" trains this task's logit, taken for that of the
            product, on all rows. A regression has no product: its space is "observed".
        inverse_propensity: with "observed", weigh each row by
            1 / max(p(parent), min_propensity), p from the model with its gradient stopped
            (Multi-IPW, Zhang et al. 2020, https://arxiv.org/abs/1910.09337).
        min_propensity: lower bound of the propensity.
        loss: "bce", "focal", or for a real-valued label "mse" or "huber".
        alpha: focal weight of positives, None for none; with "focal" only.
        gamma: focal exponent; with "focal" only.
        huber_delta: where "huber" turns from quadratic to linear.
        log: for "mse" and "huber": the loss is on log(1 + label), so the logit is of
            that scale; labels below 0 count as 0.
        label_smoothing: share of each binary label that is moved to one half.
        weight: the task's weight, which the balancer applies.
        negative_sampling_rate: share of this task's negatives that the data kept. The
            loss sees the thinned data's logit x - log(rate), so the model's own logit
            is that of the full data.
        ranking: adds a loss over the rows of a group; None for none.
        ranking_weight: factor of that loss.
    """

    name: str
    given: str | None = None
    space: Space = "entire"
    inverse_propensity: bool = False
    min_propensity: float = 0.05
    loss: Kind = "bce"
    alpha: float | None = None
    gamma: float = 0.0
    huber_delta: float = 1.0
    log: bool = False
    label_smoothing: float = 0.0
    weight: float = 1.0
    negative_sampling_rate: float = 1.0
    ranking: Ranking | None = None
    ranking_weight: float = 1.0

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"task {self.name!r}: {what}")

        regression = self.is_regression
        need(self.loss in ("bce", "focal", *_REGRESSION), f"unknown loss {self.loss!r}.")
        need(self.space in get_args(Space), f"unknown space {self.space!r}.")
        need(self.ranking in (None, "pairwise", "listwise"), f"unknown ranking {self.ranking!r}.")
        need(self.given is not None or self.space == "entire", "space needs `given`.")
        need(not regression or self.space != "joint", "regression has no product.")
        observed = self.resolved_space == "observed"
        need(observed or not self.inverse_propensity, 'inverse_propensity needs space "observed".')
        need(0 < self.min_propensity <= 1, "min_propensity must lie in (0, 1].")
        need(0 < self.negative_sampling_rate <= 1, "negative_sampling_rate must lie in (0, 1].")
        plain = self.alpha is None and self.gamma == 0
        need(self.loss == "focal" or plain, 'alpha and gamma need loss "focal".')
        need(self.gamma >= 0, "gamma must be at least 0.")
        need(self.alpha is None or 0 < self.alpha < 1, "alpha must lie between 0 and 1.")
        need(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1).")
        need(not regression or self.label_smoothing == 0, "label smoothing needs a binary label.")
        need(regression or not self.log, 'log needs loss "mse" or "huber".')
        need(not regression or self.negative_sampling_rate == 1, "regression has no negatives.")
        need(self.huber_delta > 0, "huber_delta must be above 0.")

    @property
    def is_regression(self) -> bool:
        """Whether the label is real-valued."""
        return self.loss in _REGRESSION

    @property
    def resolved_space(self) -> Space | None:
        """The space in force; None for a task without `given`."""
        if self.given is None:
            return None
        return "observed" if self.is_regression else self.space


def _vector(name: str, what: str, values: tf.Tensor) -> tf.Tensor:
    """[batch] of [batch] or [batch, 1]."""
    values = tf.convert_to_tensor(values)
    if values.shape.rank == 2 and values.shape[-1] == 1:
        values = tf.squeeze(values, -1)
    if values.shape.rank not in (None, 1):
        raise ValueError(
            f"{what} of task {name!r} must have shape [batch] or [batch, 1]; "
            f"received {values.shape}."
        )
    return values


class MultiTaskLoss:
    """Loss of each task, without balancing weights: a balancer combines them.

    Each loss is the weighted mean over the rows that count for its task:

    - without `given`: rows with an observed label (NaN means not observed);
    - "entire": all rows on which "the chain happened" is known. It is 0 as soon
      as one observed stage is 0, even if later labels are NaN, so a conversion that is
      only recorded for clicks needs no filling in. Otherwise it is the product of the
      chain's labels, and unknown if one of them is NaN;
    - "joint": the same rows and labels as "entire";
    - "observed": rows whose every ancestor happened (label above one half) and whose own
      label is observed; the mean is over these rows, so it divides by their weight;
    - "observed" with `inverse_propensity`: the same rows, but divided by the weight of *all*
      rows with known ancestors, which makes the loss an unbiased estimate of the mean over the
      entire space.

    If no row counts, the loss is 0 with zero gradients. Under a strategy each replica has
    its rows' share of the loss: the mean over replicas is the mean over all rows that count.
    Ranking losses see the groups of one replica.

    Args:
        tasks: the records, in any order; a `given` must name a binary task among them.
        even: whether every replica is known to have as many rows as any other, of equal
            weight and with all labels. Then losses over all rows take no exchange.

    Raises:
        ValueError: on duplicate names, a dangling or circular `given`.

    >>> loss = MultiTaskLoss([TaskLoss("click"), TaskLoss("conversion", given="click")])
    >>> zeros = tf.zeros([2])
    >>> out = loss({"click": [1, 0], "conversion": [1, 0]}, {"click": zeros, "conversion": zeros})
    >>> {name: round(float(value), 4) for name, value in out.items()}  # (ln 4 - ln 3/4) / 2
    {'click': 0.6931, 'conversion': 0.837}
    """

    def __init__(self, tasks: Sequence[TaskLoss], *, even: bool = False) -> None:
        self.tasks = tuple(tasks)
        whole = all(t.resolved_space != "observed" and t.ranking is None for t in self.tasks)
        self._even = even and whole
        by_name = {task.name: task for task in self.tasks}
        if len(by_name) != len(self.tasks):
            raise ValueError(f"task names must differ; received {[t.name for t in self.tasks]}.")
        self._chains: dict[str, tuple[TaskLoss, ...]] = {}
        for task in self.tasks:
            chain = [task]
            while (parent := chain[0].given) is not None:
                if parent not in by_name:
                    raise ValueError(
                        f"task {chain[0].name!r} is given {parent!r}, which is none of the "
                        f"tasks {sorted(by_name)}."
                    )
                if by_name[parent] in chain:
                    raise ValueError(f"task {task.name!r} follows itself in the funnel.")
                if by_name[parent].is_regression:
                    raise ValueError(f"task {chain[0].name!r}: {parent!r} is not binary.")
                chain.insert(0, by_name[parent])
            self._chains[task.name] = tuple(chain)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in the order of the records."""
        return tuple(task.name for task in self.tasks)

    @property
    def needs_groups(self) -> bool:
        """Whether a task has a ranking loss."""
        return any(task.ranking is not None for task in self.tasks)

    def __call__(
        self,
        labels: Mapping[str, tf.Tensor],
        logits: Mapping[str, tf.Tensor] | Sequence[Mapping[str, tf.Tensor]],
        sample_weight: tf.Tensor | None = None,
        groups: tf.Tensor | None = None,
        units: Mapping[str, tf.Tensor] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Return the loss of each task; of several networks, the mean of their own.

        Args:
            labels: task to [batch] numbers; NaN where not observed.
            logits: task to [batch] logits (predictions, for regression), those of a task
                with `given` conditional on it, unless its space is "joint". Or some of
                these, one a network.
            sample_weight: [batch], at least 0, or None.
            groups: [batch] ids of requests; needed by ranking losses alone.
            units: regression task to a scalar above 0, in which its error (and its score, in
                a ranking loss) is measured; 1 for a task that is left out.

        Returns:
            Task to scalar, float32 (float64 for float64 logits).

        Raises:
            ValueError: if a task's labels or logits are missing or not [batch].
        """
        if self.needs_groups and groups is None:
            raise ValueError("groups must be given: a task has a ranking loss.")
        units = units or {}
        networks = [logits] if isinstance(logits, Mapping) else logits
        parts: list[tuple[str, Ratio]] = []
        for network in networks:
            y, x = self._compared(labels, network)
            for task in self.tasks:
                own = self._ratios(task, y, x, sample_weight, groups, units.get(task.name))
                parts += [(task.name, ratio) for ratio in own]
        losses: dict[str, tf.Tensor] = {}
        means = divide([ratio for _, ratio in parts], self._even)
        for (name, _), mean in zip(parts, means, strict=True):
            losses[name] = losses[name] + mean if name in losses else mean
        return {name: loss / len(networks) for name, loss in losses.items()}

    def _compared(
        self, labels: Mapping[str, tf.Tensor], logits: Mapping[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Labels and logits of each task as they are compared, [batch] of one dtype."""
        y: dict[str, tf.Tensor] = {}
        x: dict[str, tf.Tensor] = {}
        for task in self.tasks:
            for what, given in (("labels", labels), ("logits", logits)):
                if task.name not in given:
                    raise ValueError(
                        f"{what} must hold task {task.name!r}; received {sorted(given)}."
                    )
            logit = to_compute_dtype(_vector(task.name, "logits", logits[task.name]))
            y[task.name] = tf.cast(_vector(task.name, "labels", labels[task.name]), logit.dtype)
            y[task.name].shape.assert_is_compatible_with(logit.shape)
            if task.log:
                y[task.name] = tf.math.log1p(tf.maximum(y[task.name], 0.0))
            rate = task.negative_sampling_rate
            x[task.name] = logit if rate == 1 else sampled_logit(logit, rate)
        return y, x

    def _factors(self, name: str) -> list[str]:
        """The tasks whose sigmoids multiply to that of the task and all before it."""
        chain = self._chains[name]
        joint = [at for at, stage in enumerate(chain) if stage.resolved_space == "joint"]
        return [stage.name for stage in chain[joint[-1] if joint else 0 :]]

    def _ratios(
        self,
        task: TaskLoss,
        labels: dict[str, tf.Tensor],
        logits: dict[str, tf.Tensor],
        sample_weight: tf.Tensor | None,
        groups: tf.Tensor | None,
        unit: tf.Tensor | None,
    ) -> list[Ratio]:
        """The parts of a task's loss, which add up: over rows, and over pairs or groups."""
        *ancestors, _ = [stage.name for stage in self._chains[task.name]]
        label, logit = labels[task.name], logits[task.name]
        ones = tf.ones_like(label)
        weight = (
            ones
            if sample_weight is None
            else tf.cast(_vector(task.name, "sample_weight", sample_weight), label.dtype)
        )
        denominator = None
        chain = [logit]
        if task.resolved_space in ("entire", "joint"):
            stages = tf.stack([*(labels[name] for name in ancestors), label])
            failed = tf.reduce_any(tf.equal(stages, 0), axis=0)
            label = tf.where(failed, tf.zeros_like(label), tf.reduce_prod(stages, axis=0))
            chain = [logits[name] for name in self._factors(task.name)]
        elif task.resolved_space == "observed":
            parents = tf.stack([labels[name] for name in ancestors])
            failed = tf.reduce_any(parents <= 0.5, axis=0)
            happened = tf.reduce_all(parents > 0.5, axis=0)
            observed = ~tf.math.is_nan(label)
            if task.inverse_propensity:
                known = failed | (happened & observed)
                denominator = tf.reduce_sum(tf.where(known, weight, tf.zeros_like(weight)))
                before = self._factors(ancestors[-1])
                log_propensity, _ = funnel_log_probs([logits[name] for name in before])
                propensity = tf.stop_gradient(tf.math.exp(log_propensity))
                weight = weight / tf.maximum(propensity, task.min_propensity)
            label = tf.where(happened, label, ones * float("nan"))
        counts = ~tf.math.is_nan(label)
        target = tf.where(counts, label, tf.zeros_like(label))
        weight = tf.where(counts, weight, tf.zeros_like(weight))
        per_row, score = self._per_row(task, target, chain, unit)
        rows = weighted(per_row, weight)
        if denominator is not None:
            rows = Ratio(rows.total, denominator)
        if task.ranking is None:
            return [rows]
        rank = pairwise_ratio if task.ranking == "pairwise" else listwise_ratio
        ranked = rank(label, score, groups, weight)
        return [rows, Ratio(task.ranking_weight * ranked.total, ranked.weight)]

    @staticmethod
    def _per_row(
        task: TaskLoss, target: tf.Tensor, chain: list[tf.Tensor], unit: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Loss per row, and the score by which the row would be ranked."""
        prediction = chain[-1]
        if task.is_regression:
            error = prediction - target
            if unit is not None:
                error, prediction = error / unit, prediction / unit
            if task.loss == "mse":
                return tf.square(error), prediction
            delta = task.huber_delta
            size = tf.abs(error)
            # The clipped form has the right gradient on both sides without a branch.
            quadratic = tf.minimum(size, delta)
            return 0.5 * tf.square(quadratic) + delta * (size - quadratic), prediction
        log_p, log_1mp = funnel_log_probs(chain)
        target = smooth_labels(target, task.label_smoothing)
        loss = focal_from_log_probs(target, log_p, log_1mp, task.alpha, task.gamma)
        return loss, (prediction if len(chain) == 1 else log_p - log_1mp)
