"""The memory that recomputation is for: the highest of a step, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import sys
from pathlib import Path
from recsys.layers import GatedTower, LocalSelfAttention
import tensorflow as tf

def peak():
    # Of this program alone: getrusage also counts the parent's memory before the exec.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def tower(recompute):
    layer = GatedTower([256] * 16, dropout=0.1, recompute=recompute)
    return [256], lambda x: layer(x, training=True, seed=tf.constant([1, 2]))

def local(recompute):
    layers = [LocalSelfAttention(window=128, recompute=recompute) for _ in range(6)]
    def run(x):
        for layer in layers:
            x = layer(x, training=True)
        return x
    return [256, 16], run

def step_of(recompute):
    shape, run = {"tower": tower, "local": local}[sys.argv[1]](recompute)
    @tf.function(reduce_retracing=False, input_signature=[tf.TensorSpec([None, *shape])])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(run(x))
        grads = tape.gradient(loss, tape.watched_variables())
        return tf.add_n([tf.reduce_sum(g) for g in grads])
    step(tf.ones([8, *shape]))
    return step, shape

steps = [step_of(recompute) for recompute in (True, False)]
x = tf.ones([int(sys.argv[2]), *steps[0][1]])
start = peak()
for step, _ in steps:
    step(x)
    print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize(("layer", "rows"), [("tower", 8192), ("local", 64)])
def test_recomputation_needs_less_memory(layer: str, rows: int) -> None:
    """Of several layers, one after another; recomputed first, for the mark only rises."""
    command = [sys.executable, "-c", PEAK, layer, str(rows)]
    run = subprocess.run(command, capture_output=True, check=True)
    recomputed, kept = (int(line) for line in run.stdout.split())
    assert recomputed < 0.75 * kept
