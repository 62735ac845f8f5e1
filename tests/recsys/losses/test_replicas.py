"""Losses over several replicas against those of the whole batch, in a process of three devices."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

REPLICAS = """
import json
import numpy as np
import recsys, tensorflow as tf
from recsys.losses import MultiTaskLoss, TaskLoss
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(3)])

of_all = MultiTaskLoss([
    TaskLoss("click", ranking="listwise", ranking_weight=0.3),
    TaskLoss("buy", "click", "observed", ranking="pairwise"),
    TaskLoss("weighed", "click", "observed", inverse_propensity=True, loss="focal", gamma=2.0),
    TaskLoss("value", "click", loss="huber", log=True),
    TaskLoss("never", "click", "observed"),
])
# Rows that are equally many, of equal weight and with all labels, as `even` asks for. Still some
# have more clicks than others, and more pairs.
even = {
    "observed": [TaskLoss("click"), TaskLoss("buy", "click", "observed")],
    "ranking": [TaskLoss("click", ranking="pairwise")],
    "whole": [TaskLoss("click"), TaskLoss("buy", "click")],
}
names = list(of_all.task_names)
rng = np.random.default_rng(0)
rows = 24
labels = rng.integers(0, 2, [rows, 5]).astype(np.float32)
labels[:, 3] *= rng.uniform(0, 9, rows)
labels[8:, 0] = 0  # the second replica has a single click, the third one none
labels[10, :2] = 1
labels[0, 0] = np.nan
labels[:, 4] = np.nan  # what no replica observes
weights = rng.uniform(0, 2, rows).astype(np.float32)
weights[20:] = 0
groups = np.arange(rows) // 4  # each within one replica
logits = rng.normal(size=[2, rows, 5]).astype(np.float32)  # two networks

def replica(first, count, loss, labels, weights):
    part = lambda values: tf.constant(values)[first : first + count]
    with tf.GradientTape() as tape:
        x = [part(values) for values in logits]
        tape.watch(x)
        y = dict(zip(names, tf.unstack(part(labels), axis=1)))
        networks = [dict(zip(names, tf.unstack(each, axis=1))) for each in x]
        losses = loss(y, networks, part(weights), part(groups))
        values = [losses[name] for name in loss.task_names]
        total = tf.add_n(values)
    return tf.stack(values), tf.stack(tape.gradient(total, x))

def compare(*case):
    # Losses on each replica, their gradients, and both of all rows in one place.
    def own():
        return replica(8 * tf.distribute.get_replica_context().replica_id_in_sync_group, 8, *case)

    losses, gradients = tf.function(lambda: strategy.run(own))()
    losses = [each.numpy().tolist() for each in strategy.experimental_local_results(losses)]
    gradients = [each.numpy() for each in strategy.experimental_local_results(gradients)]
    whole, gradient = replica(0, rows, *case)
    return [
        losses, (np.concatenate(gradients, axis=1) / 3).tolist(),
        whole.numpy().tolist(), gradient.numpy().tolist(),
    ]

found = {"all": compare(of_all, labels, weights)}
labels = np.nan_to_num(labels)
for name, tasks in even.items():
    found[name] = compare(MultiTaskLoss(tasks, even=True), labels, np.ones_like(weights))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[np.ndarray]]:
    run = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {k: [np.array(each) for each in v] for k, v in json.loads(run.stdout).items()}


def test_the_mean_over_replicas_is_the_loss_of_the_whole_batch(found: dict[str, Any]) -> None:
    losses, gradients, whole, gradient = found["all"]
    assert (losses[2, 1:] == 0).all()  # no click there, which says nothing of the others
    assert whole[:4].min() > 0.01 and whole[4] == 0
    np.testing.assert_allclose(losses.mean(axis=0), whole, rtol=1e-5)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-4, atol=1e-8)
    assert losses.mean(axis=0) != pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("tasks", ["observed", "ranking", "whole"])
def test_so_it_is_of_even_replicas_whatever_the_loss_divides_by(
    found: dict[str, Any], tasks: str
) -> None:
    losses, gradients, whole, gradient = found[tasks]
    assert whole.min() > 0.01
    np.testing.assert_allclose(losses.mean(axis=0), whole, rtol=1e-5)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-4, atol=1e-8)
