"""Seeds of a step on several replicas, in a process whose CPU counts as two devices."""

from __future__ import annotations

import json
import subprocess
import sys

from recsys.layers.randomness import seed_of_step

REPLICAS = """
import json
import recsys, tensorflow as tf
from recsys.layers.randomness import seed_of_step
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
steps = [strategy.run(lambda: seed_of_step(7, step)) for step in (0, 1)]
print(json.dumps([
    [seed.numpy().tolist() for seed in strategy.experimental_local_results(each)]
    for each in steps
]))
"""


def test_every_replica_drops_other_units_at_every_step() -> None:
    run = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    steps = json.loads(run.stdout)
    assert len({tuple(seed) for seeds in steps for seed in seeds}) == 4
    # The first replica draws as one that is alone.
    assert [seeds[0] for seeds in steps] == [seed_of_step(7, n).numpy().tolist() for n in (0, 1)]
