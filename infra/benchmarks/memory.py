"""Peak memory and time of a training step of the attentions over histories, by length.

    python -m infra.benchmarks.memory
    python -m infra.benchmarks.memory --lengths 1024 --lengths 8192 --batch 4

A step is forward and backward through a few layers, with the gradients of all weights and of
the history. Attentions of events to events stand one on another; attentions of a candidate stand
side by side, as those of several histories. Recomputation saves what the layers keep for their
backward pass; what one layer needs while it runs, it needs either way.

Each point is measured in a process of its own: the highest resident memory during the steps, less
what was resident after a step of a tiny length. The allocator there gives back each large block
as soon as it is freed, so that what is resident is what is in use, and ops run one after the
other. Time is that of another process, with the allocator and the threads as they are by default.
Keras' `MultiHeadAttention`, which forms all pairs of events, stands beside for contrast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import recsys  # noqa: F401  (Keras switch first)
from infra.benchmarks.docs import markdown_table

LENGTHS = (512, 1024, 2048, 4096)
HEADS = 2
TINY = 8
STEPS = 3

LOCAL, TARGET, FULL = "LocalSelfAttention", "TargetAttention", "MultiHeadAttention (Keras)"
CASES = ((LOCAL, False), (LOCAL, True), (TARGET, False), (TARGET, True), (FULL, False))
"""What is measured: a layer, and whether it recomputes."""

# Blocks of 64 KiB and more are mapped, and unmapped when freed.
FRUGAL = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "TF_NUM_INTEROP_THREADS": "1",
}


def make_step(
    name: str, recompute: bool, dim: int, layers: int = 1, window: int = 64
) -> Callable[[Any], Any]:
    """A training step of a few layers on a history, float `[batch, length, dim]`.

    Args:
        name: `LOCAL`, `TARGET` or `FULL`.
        recompute: Whether the layers recompute in the backward pass; `FULL` cannot.
        dim: Width of an event.
        layers: How many layers.
        window: Events a block of local attention.

    Returns:
        A `tf.function`; it gives the sum of each gradient.
    """
    import tensorflow as tf
    import tf_keras

    from recsys.layers import LocalSelfAttention, TargetAttention

    makers: dict[str, Callable[[], Any]] = {
        LOCAL: lambda: LocalSelfAttention(HEADS, window, recompute=recompute),
        TARGET: lambda: TargetAttention(recompute=recompute),
        FULL: lambda: tf_keras.layers.MultiHeadAttention(HEADS, dim // HEADS),
    }
    parts = [makers[name]() for _ in range(layers)]

    def call(x: Any) -> Any:
        if name == TARGET:
            return tf.add_n([part(x[:, 0], x, training=True) for part in parts])
        for part in parts:
            x = part(x, x, training=True) if name == FULL else part(x, training=True)
        return x

    call(tf.zeros([1, TINY, dim]))

    @tf.function
    def step(x: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(call(x)))
        weights = [weight for part in parts for weight in part.trainable_weights]
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(loss, [x, *weights])]

    return step


def _resident(field: str) -> int:
    """Kilobytes of this process, from Linux' own books: `VmRSS` now, `VmHWM` at the highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _measure(name: str, recompute: bool, length: int, batch: int, dim: int, layers: int) -> None:
    """Take steps, and print what they took as JSON. The whole of a measuring process."""
    import tensorflow as tf

    step = make_step(name, recompute, dim, layers)
    step(tf.zeros([batch, TINY, dim]))
    x = tf.constant(np.random.default_rng(0).normal(size=[batch, length, dim]).astype(np.float32))
    # From here on a step compiles nothing any more.
    step.get_concrete_function(x)  # type: ignore[attr-defined]
    before = _resident("VmRSS")
    took = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step(x)[0].numpy()
        took.append(time.perf_counter() - began)
    peak = (_resident("VmHWM") - before) / 1024
    print(json.dumps({"mib": peak, "ms": 1000 * float(np.median(took[1:]))}))


def measure(
    case: tuple[str, bool], length: int, sizes: Sequence[int], env: dict[str, str]
) -> dict[str, float]:
    """Measure one point in a process of its own: `mib` above the baseline, and `ms` a step.

    Args:
        case: One of `CASES`.
        length: Of the history.
        sizes: Rows of a batch, width of an event, and layers.
        env: What is set in the process's environment.
    """
    name, recompute = case
    point = [name, *map(str, (int(recompute), length, *sizes))]
    done = subprocess.run(
        [sys.executable, "-m", "infra.benchmarks.memory", "--point", *point],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", **env},
    )
    if done.returncode:
        raise SystemExit(f"{name} at length {length} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def markdown(lengths: Sequence[int], found: dict[tuple[str, bool], list[dict[str, float]]]) -> str:
    """The table: peak MiB and ms a step by length, and each peak over the one before it.

    Args:
        lengths: Lengths measured.
        found: `mib` and `ms` at each length, by case.
    """
    heads = ["layer", "recompute", *(f"{n:,}" for n in lengths), "growth"]
    rows = []
    for (name, recompute), points in found.items():
        peaks = [point["mib"] for point in points]
        growth = ", ".join(f"×{b / a:.2f}" for a, b in pairwise(peaks))
        cells = [f"{p['mib']:,.0f} MiB, {p['ms']:,.0f} ms" for p in points]
        rows.append([name, "yes" if recompute else "no", *cells, growth])
    return markdown_table(heads, rows, left=2)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, action="append", help="of the history")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dim", type=int, default=32, help=f"width of an event, {HEADS} heads")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--point", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        name, recompute, *numbers = options.point
        _measure(name, recompute == "1", *map(int, numbers))
        return
    if not Path("/proc/self/status").exists():
        parser.error("this reads the memory of a process from Linux' /proc")
    if options.dim % HEADS:
        parser.error(f"--dim must be a multiple of {HEADS}, the number of heads")
    lengths = sorted(options.lengths or LENGTHS)
    sizes = (options.batch, options.dim, options.layers)
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for case in CASES:
        for length in lengths:
            point = measure(case, length, sizes, FRUGAL)
            point["ms"] = measure(case, length, sizes, {})["ms"]
            found.setdefault(case, []).append(point)
            print(*case, length, point, file=sys.stderr)
    print(
        f"{options.layers} layers, batch {options.batch}, width {options.dim}, {HEADS} heads, "
        "windows of 64\n"
    )
    print(markdown(lengths, found))


if __name__ == "__main__":
    main()
