"""Runs `training.loop.fit` in several processes that TF_CONFIG joins, as Ray Train does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster import run_workers


def fit_in_processes(
    features: Path, run: Path, workers: int, past_steps: int = 0, **train: object
) -> None:
    """Train `small_spec(**train)` and wait; raises with a worker's output where one fails."""
    run_workers(
        workers,
        lambda rank: [
            __file__,
            *(str(each) for each in (features, run, rank, workers, past_steps)),
            json.dumps(train),
        ],
        TF_NUM_INTRAOP_THREADS="1",
    )


def _main() -> None:
    features, run, rank, workers, past_steps, train = sys.argv[1:]
    import tensorflow as tf
    from make_features import small_spec

    from training.loop import Job, fit

    fit(
        Job(
            small_spec(**json.loads(train)),
            Path(features),
            Path(run),
            past_steps=int(past_steps),
        ),
        strategy=tf.distribute.MultiWorkerMirroredStrategy(),
        worker=int(rank),
        workers=int(workers),
    )


if __name__ == "__main__":
    _main()
