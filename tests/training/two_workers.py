"""Runs `training.loop.fit` in several processes that TF_CONFIG joins, as Ray Train does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def fit_in_processes(
    features: Path, run: Path, workers: int, past_steps: int = 0, **train: object
) -> None:
    """Train `small_spec(**train)` and wait; raises with a worker's output where one fails."""
    sockets = [socket.socket() for _ in range(workers)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for rank in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TF_NUM_INTRAOP_THREADS": "1"}
        numbers = [str(number) for number in (rank, workers, past_steps)]
        arguments = [str(features), str(run), *numbers, json.dumps(train)]
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            raise AssertionError(output)


def _main() -> None:
    features, run, rank, workers, past_steps, train = sys.argv[1:]
    sys.path.insert(0, str(HERE))
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
