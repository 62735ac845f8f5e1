"""Train a spec once and predict through its export: a process of its own.

python -m infra.benchmarks.quality.ours SPEC --features FEATURES --run RUN --out OUT
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import recsys  # noqa: F401  (Keras switch first)
from infra.benchmarks.quality.rows import parts
from recsys.artifacts import read_json, write_json
from recsys.spec import Spec, load
from recsys.spec.schema import model_inputs
from training.scoring import SCORE_BATCH


class Clock:
    """Milliseconds a step, from the trainer's progress: the median between two looks."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None
        self._took: list[float] = []

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.perf_counter()
        if stage == "train":
            if self._before is not None and done > self._before[1]:
                self._took.append((now - self._before[0]) / (done - self._before[1]) * 1000)
            self._before = (now, done)
        else:  # validation and checkpoints are no steps
            self._before = None

    @property
    def step_ms(self) -> float | None:
        """The median; None where nothing was trained."""
        return float(np.median(self._took)) if self._took else None


def predict(spec: Spec, export: Path, features: Path, split: str) -> np.ndarray:
    """float32 [rows, tasks] by the numeric signature of an export, in the order of the files."""
    import tensorflow as tf

    from training.evaluation import load_numeric
    from training.input import to_numpy

    signature = load_numeric(export)
    names = [item.name for item in model_inputs(spec)]
    found = []
    for part in parts(features, split):
        table = pq.read_table(part, columns=names)
        columns = {name: to_numpy(table, name, str(part)) for name in names}
        for at in range(0, len(table), SCORE_BATCH):
            batch = {
                name: tf.constant(values[at : at + SCORE_BATCH]) for name, values in columns.items()
            }
            answers = signature(**batch)
            found.append(np.stack([answers[task.name].numpy() for task in spec.tasks], axis=1))
    return np.concatenate(found)


def main() -> None:
    """Train, predict validation and test, and write result.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    from training import train

    spec, clock, began = load(given.spec), Clock(), time.perf_counter()
    manifest = train(spec, given.features, given.run, resume=True, progress=clock)
    trained: dict[str, Any] = manifest["trained"]
    given.out.mkdir(parents=True, exist_ok=True)
    for split in ("validation", "test"):
        np.save(
            given.out / f"{split}.npy", predict(spec, given.run / "export", given.features, split)
        )
    write_json(
        given.out / "result.json",
        {
            "notes": {
                "epoch": int(trained["best_epoch"]) + 1,
                "calibration": {
                    name: value["calibration"]
                    for name, value in read_json(given.run / "calibration.json").items()
                },
            },
            "step_ms": clock.step_ms,
            "seconds": time.perf_counter() - began,
        },
    )


if __name__ == "__main__":
    main()
