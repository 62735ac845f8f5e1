"""Balancing of tasks: how the gradients of several losses become one.

balancer = make_balancer("gradnorm", ["click", "conversion"])
with tf.GradientTape(persistent=balancer.persistent) as tape:
    losses = multi_task_loss(labels, model(features))       # task to scalar
grads, logs = balancer.gradients(losses, tape, shared, variables, scale=1 / replicas)
optimizer.apply_gradients(zip(grads, variables))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys.balancing.base import Balancer
from recsys.balancing.dwa import DynamicWeightAverage
from recsys.balancing.fixed import FixedWeights
from recsys.balancing.gradnorm import GradNorm
from recsys.balancing.pcgrad import PCGrad
from recsys.balancing.uncertainty import UncertaintyWeights

BALANCERS: dict[str, type[Balancer]] = {
    "fixed": FixedWeights,
    "uncertainty": UncertaintyWeights,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "pcgrad": PCGrad,
}


def make_balancer(
    kind: str,
    task_names: Sequence[str],
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> Balancer:
    """Return the balancer of that kind.

    Args:
        kind: "fixed", "uncertainty", "gradnorm", "dwa" or "pcgrad".
        task_names: the tasks, as in the losses; their order is the order of the state.
        weights: fixed factor of each loss, under every kind; tasks left out have one.
        options: the options of the kind's class.

    Raises:
        ValueError: for an unknown kind, an option that the kind has not, or weights of
            unknown tasks.

    Create it inside the strategy's scope; its state is saved by `tf.train.Checkpoint`.
    """
    if kind not in BALANCERS:
        raise ValueError(f"kind must be one of {sorted(BALANCERS)}; received {kind!r}.")
    try:
        return BALANCERS[kind](task_names, weights, **options)
    except TypeError as error:
        raise ValueError(f"balancer {kind!r} has no such option: {error}") from error


__all__ = [
    "BALANCERS",
    "Balancer",
    "DynamicWeightAverage",
    "FixedWeights",
    "GradNorm",
    "PCGrad",
    "UncertaintyWeights",
    "make_balancer",
]
