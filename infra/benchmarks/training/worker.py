"""A contestant's side of the benchmark: steps on request, over standard input and output.

Imports nothing beyond the standard library and numpy, for it also runs under the peers' Python.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = int(os.environ.get("BENCHMARK_THREADS", "2"))
FIELDS, NUMBERS, DIM = 26, 13, 16
UNITS = (512, 256)
BATCH = 4096
TASKS = ("click", "conversion")

# Of the ids' ranks: with it, 35 k of a batch's 106 k ids are distinct at a million rows.
POWER = 0.07


def per_table(rows: int) -> int:
    """Rows of each of the tables that share `rows`."""
    return rows // FIELDS


def draw(rows: int, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` rows of data: ids whose frequency falls with their rank, numbers, labels.

    Args:
        rows: Rows of all tables together.
        count: Rows to draw.
        seed: Seed.

    Returns:
        `ids` int32 [count, 26] from 0, most frequent last; `numbers` float32 [count, 13];
        `labels` float32 [count, 2], where a conversion needs a click.
    """
    rng = np.random.default_rng(seed)
    each = per_table(rows)
    ids = np.minimum(each * rng.power(POWER, (count, FIELDS)), each - 1).astype(np.int32)
    labels = rng.random((count, 2)) < (0.3, 0.1)
    labels[:, 1] &= labels[:, 0]
    return {
        "ids": ids,
        "numbers": rng.normal(size=(count, NUMBERS)).astype(np.float32),
        "labels": labels.astype(np.float32),
    }


def batches(folder: str | Path) -> list[dict[str, np.ndarray]]:
    """The drawn rows of a folder as batches, in memory."""
    data = {name: np.load(Path(folder) / f"{name}.npy") for name in ("ids", "numbers", "labels")}
    return [
        {name: np.ascontiguousarray(array[at : at + BATCH]) for name, array in data.items()}
        for at in range(0, len(data["ids"]) - BATCH + 1, BATCH)
    ]


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def take_channel() -> Any:
    """Standard output for messages; whatever a library prints goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def serve(step: Callable[[], Any], finish: Callable[[Any], Any], channel: Any) -> None:
    """Answer each line, a number of seconds, by steps for that long (at least two).

    Args:
        step: One training step; may return before it is done.
        finish: Waits for what the last step returned.
        channel: Of `take_channel`.
    """
    for _ in range(3):
        finish(step())
    print(json.dumps({"ready": True}), file=channel)
    for line in sys.stdin:
        budget, steps = float(line), 0
        wall, cpu = time.perf_counter(), time.process_time()
        result: Any = None
        while steps < 2 or time.perf_counter() - wall < budget:
            result = step()
            steps += 1
            if steps % 2 == 0:
                finish(result)
        finish(result)
        answer = {
            "steps": steps,
            "seconds": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak": peak_bytes(),
        }
        print(json.dumps(answer), file=channel)
