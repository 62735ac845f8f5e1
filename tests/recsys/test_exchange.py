"""Sums over replicas against sums by hand; in a process whose CPU counts as several devices."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import tensorflow as tf

from recsys.exchange import sum_over_replicas

REPLICAS = """
import json
import recsys, tensorflow as tf
from recsys.exchange import sum_over_replicas
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(3)])

def replica():
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    count = 2 * number  # none, two and four rows
    rows = tf.range(count)
    values = tf.cast(rows[:, tf.newaxis] + 10 * number, tf.float32) * tf.constant([[1.0, -1.0]])
    wide = tf.IndexedSlices(values, tf.cast(rows + 7, tf.int64), tf.constant([50, 2], tf.int64))
    narrow = tf.IndexedSlices(
        tf.fill([1, 1], tf.cast(number, tf.float32)), 2**31 - 1 - number[tf.newaxis], None
    )
    dense = tf.fill([2, 1], tf.cast(number + 1, tf.float32))
    overflown = tf.where(number == 1, float("inf"), 0.0)  # on one of them
    given = [wide, None, dense, narrow, overflown]
    wide, none, dense, narrow, overflown = sum_over_replicas(given)
    assert none is None and wide.indices.dtype == tf.int64 and narrow.indices.dtype == tf.int32
    assert wide.values.shape[1:] == [2] and wide.dense_shape is given[0].dense_shape
    return wide.values, wide.indices, dense, narrow.values, narrow.indices, overflown

got = tf.function(lambda: strategy.run(replica))()
print(json.dumps([
    [values.numpy().tolist() for values in strategy.experimental_local_results(each)]
    for each in got
]))
"""


def test_slices_of_all_replicas_one_after_another_and_sums_of_dense() -> None:
    run = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = [
        [[10, -10], [11, -11], [20, -20], [21, -21], [22, -22], [23, -23]],
        [7, 8, 7, 8, 9, 10],
        [[6], [6]],
        [[0], [1], [2]],
        [2**31 - 1, 2**31 - 2, 2**31 - 3],
        float("inf"),  # so that all of them leave the step out
    ]
    # Each of the three has all of it.
    assert json.loads(run.stdout) == [[each] * 3 for each in expected]


def test_alone_gradients_stay_as_they_are() -> None:
    slices = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([3]), tf.constant([5, 2]))
    dense = tf.constant([1.0])
    got = sum_over_replicas([slices, None, dense])
    assert got[0] is slices and got[1] is None and got[2] is dense
    np.testing.assert_array_equal(got[2], [1.0])
