"""This project's step from files on disk, and the floor under it: its dense network alone.

python -m infra.benchmarks.training.ours CONTESTANT ROWS FOLDER
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import recsys  # noqa: F401  (Keras switch first)
from infra.benchmarks.training import worker
from recsys.spec import Spec, loads
from recsys.spec.schema import REQUEST_KEY, USER_KEY, label_column

_PLAIN, _GATED = "gated: false, interactions: [], first_order: false", "interactions: [fm]"

# Settings of the model and of training, by contestant.
MODELS = {
    "ours": (_PLAIN, ""),
    "ours, bfloat16": (_PLAIN, "precision: mixed_bfloat16"),
    "ours, XLA": (f"{_PLAIN}, xla: true", ""),
    "ours, gated FM": (_GATED, ""),
    "ours, gated FM, XLA": (f"{_GATED}, xla: true", ""),
}


def make_spec(model: str = "", train: str = "", batch: int = worker.BATCH) -> Spec:
    """The Criteo-like spec, with the given settings of the model and of training."""
    features = [
        *(f"- {{name: c{n}, owner: item, encode: vocabulary}}" for n in range(worker.FIELDS)),
        *(f"- {{name: n{n}, owner: item, encode: numeric}}" for n in range(worker.NUMBERS)),
    ]
    model, train = (f", {settings}" if settings else "" for settings in (model, train))
    return loads(
        "\n".join(
            [
                "name: criteo",
                "data: {impressions: log.csv, keys: {user: user, item: item}, "
                "split: {validation: 0.1, test: 0.1}}",
                "features:",
                *features,
                "tasks:",
                "- {name: click, label: {column: click}}",
                "- {name: conversion, label: {column: conversion}, given: click}",
                f"model: {{dim: {worker.DIM}, shared: {list(worker.UNITS)}, towers: []{model}}}",
                f"train: {{batch_size: {batch}{train}}}",
            ]
        )
    )


def write_examples(folder: Path, data: dict[str, np.ndarray], files: int = 4) -> None:
    """The drawn rows as the examples of a features folder, and as arrays for the peers."""
    for name, array in data.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "examples" / "train").mkdir(parents=True)
    count = len(data["ids"])
    keys = pa.array([f"{row // 10}" for row in range(count)])
    columns = {f"c{n}": data["ids"][:, n] for n in range(worker.FIELDS)}
    columns |= {f"n{n}": data["numbers"][:, n] for n in range(worker.NUMBERS)}
    columns |= {label_column(task): data["labels"][:, n] for n, task in enumerate(worker.TASKS)}
    table = pa.table({USER_KEY: keys, REQUEST_KEY: keys, **columns})
    for part in range(files):
        low, high = (count * n // files for n in (part, part + 1))
        pq.write_table(
            table.slice(low, high - low),
            folder / "examples" / "train" / f"part-{part:05d}.parquet",
            row_group_size=65_536,
            compression="zstd",
        )


def open_input(spec: Spec, folder: Path) -> Iterator[Any]:
    """Batches without end, as a run of training reads them."""
    from training.input import dataset, load_rows, open_split
    from training.order import make_plan

    rows = load_rows(spec, open_split(spec, folder, "train"))
    plan = make_plan(len(rows), spec.train.batch_size, 1)
    return itertools.chain.from_iterable(
        dataset(rows, plan, 0, seed=0, epoch=epoch) for epoch in itertools.count()
    )


def make_step(contestant: str, rows: int, folder: Path) -> Callable[[], Any]:
    """A training step of the whole model, on the next batch from disk."""
    import tensorflow as tf

    from recsys.model import build
    from training.memory import keep_freed_memory, use_huge_pages

    keep_freed_memory()
    spec = make_spec(*MODELS[contestant])
    network = build(spec, {f"c{n}": worker.per_table(rows) for n in range(worker.FIELDS)})
    data = open_input(spec, folder)
    step = tf.function(network.train_step, reduce_retracing=True, autograph=False)
    for _ in range(3):
        step(next(data))["loss"].numpy()
    use_huge_pages()
    return lambda: step(next(data))["loss"]


def make_floor(folder: Path, input_gradient: bool) -> Callable[[], Any]:
    """A step of the dense network and its Adam, on inputs as wide as the embeddings.

    Args:
        folder: Of the drawn rows.
        input_gradient: Whether the gradient of the embeddings' place is computed too, which
            a model with embeddings cannot do without.
    """
    import tensorflow as tf
    import tf_keras

    from recsys.layers import GatedTower
    from recsys.losses import MultiTaskLoss, TaskLoss
    from recsys.optimizers import DecayedAdam

    tower = GatedTower(worker.UNITS, gated=False)
    heads = [tf_keras.layers.Dense(1) for _ in worker.TASKS]
    losses = MultiTaskLoss([TaskLoss("click"), TaskLoss("conversion", given="click")])
    width = worker.FIELDS * worker.DIM + worker.NUMBERS
    found = worker.batches(folder)[:8]
    labels = [tf.constant(batch["labels"]) for batch in found]
    inputs = [tf.random.normal([worker.BATCH, width]) for _ in found]
    for head in heads:
        head(tower(inputs[0]))
    variables = [*tower.trainable_variables, *(v for h in heads for v in h.trainable_variables)]
    optimizer = DecayedAdam(0.001)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            shared = tower(x, training=True)
            logits = {t: head(shared)[:, 0] for t, head in zip(worker.TASKS, heads, strict=True)}
            both = losses(dict(zip(worker.TASKS, tf.unstack(y, axis=1), strict=True)), logits)
            loss = tf.add_n(list(both.values()))
        gradients = tape.gradient(loss, [*variables, *([x] if input_gradient else [])])
        optimizer.apply_gradients(zip(gradients[: len(variables)], variables, strict=True))
        return loss, tf.reduce_max(gradients[-1][:1])

    turn = itertools.cycle(zip(inputs, labels, strict=True))
    return lambda: step(*next(turn))[0]


def measure_input(folder: Path, seconds: float) -> dict[str, float]:
    """Batches of the input alone: rows a second, after the files are decoded, and that decoding."""
    spec = make_spec()
    began = time.perf_counter()
    data = open_input(spec, folder)
    next(data)
    decoding = time.perf_counter() - began
    rows, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        rows += int(next(data)["ids"].shape[0])
    count = len(np.load(folder / "ids.npy", mmap_mode="r"))
    return {"rows_s": rows / (time.perf_counter() - began), "decoded_rows_s": count / decoding}


def main() -> None:
    """Serve one contestant."""
    channel = worker.take_channel()
    name, rows, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(worker.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(worker.THREADS)
    if name in MODELS:
        step = make_step(name, rows, folder)
    elif name == "input":
        import json

        print(json.dumps({"ready": True}), file=channel)
        for line in sys.stdin:
            print(json.dumps(measure_input(folder, float(line))), file=channel)
        return
    else:
        step = make_floor(folder, input_gradient=name.endswith("input gradient"))
    worker.serve(step, lambda loss: float(loss), channel)


if __name__ == "__main__":
    main()
