"""What every peer is given, and what it gives back.

The scripts in this folder run in the Python of the peers: they import NumPy and one library,
and nothing of this project.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1024
DROPOUT = 0.1
LEARNING_RATES = (1e-3, 3e-4, 3e-3, 1e-4)
"""What a neural peer may choose from, on validation with seed 0: the first `--trials` of them."""

PREDICT_ROWS = 8192


@dataclass(frozen=True)
class Task:
    """One label: how the peers are told of the spec's task."""

    name: str
    given: str | None


@dataclass
class Rows:
    """One split. ids int32 [rows, fields], numbers float32 [rows, n], labels float32 [rows, t]."""

    ids: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray


@dataclass
class Data:
    """The rows of all splits and what the columns are.

    Attributes:
        sizes: Rows of the embedding table of each id column.
        ordered: Whether an id column holds buckets of a number, in order.
        owners: Whose feature an id column is (user, item, context).
        tasks: The tasks.
        widths: `dim`, and the hidden widths `shared` and `towers`.
    """

    splits: dict[str, Rows]
    sizes: list[int]
    ordered: list[bool]
    owners: list[str]
    tasks: list[Task]
    widths: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """One training: its seed, the number of its tuning candidate, epochs at most, threads."""

    seed: int
    candidate: int
    epochs: int
    threads: int


@dataclass
class Answer:
    """What a training gives back.

    Attributes:
        validation, test: float32 [rows, tasks]: p(task and all that it follows).
        notes: What was chosen: epochs or rounds, learning rate.
        step_ms: Milliseconds a step of 1024 rows; None where there are no steps.
    """

    validation: np.ndarray
    test: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)
    step_ms: float | None = None


def load(folder: Path, setting: str) -> Data:
    """The shared rows; `base` leaves out what the feature job computed, `shared` keeps numbers."""
    columns = json.loads((folder / "columns.json").read_text())
    ids, numbers = (
        [i for i, c in enumerate(columns[kind]) if setting == "shared" or not c["computed"]]
        for kind in ("ids", "numbers")
    )
    splits = {}
    for split in ("train", "validation", "test"):
        with np.load(folder / f"{split}.npz") as stored:
            splits[split] = Rows(
                np.ascontiguousarray(stored["ids"][:, ids]),
                np.ascontiguousarray(stored["numbers"][:, numbers]),
                stored["labels"],
            )
    chosen = [columns["ids"][i] for i in ids]
    return Data(
        splits,
        [c["rows"] for c in chosen],
        [c["ordered"] for c in chosen],
        [c["owner"] for c in chosen],
        [Task(**task) for task in columns["tasks"]],
        columns["widths"],
    )


def with_buckets(data: Data, buckets: int = 20) -> Data:
    """Numbers cut at quantiles of the training rows, as more id columns: for models of ids only."""
    train = data.splits["train"].numbers
    width = train.shape[1]
    edges = [
        np.unique(np.quantile(train[:, i], np.linspace(0, 1, buckets + 1)[1:-1]))
        for i in range(width)
    ]
    splits = {}
    for name, rows in data.splits.items():
        cut = [np.searchsorted(edges[i], rows.numbers[:, i], side="right") for i in range(width)]
        more = np.stack(cut, axis=1).astype(np.int32) if cut else rows.ids[:, :0]
        splits[name] = Rows(np.concatenate([rows.ids, more], 1), rows.numbers[:, :0], rows.labels)
    return Data(
        splits,
        data.sizes + [len(edge) + 1 for edge in edges],
        data.ordered + [True] * width,
        data.owners + ["context"] * width,
        data.tasks,
        data.widths,
    )


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties half; to choose by, not to report."""
    below, above = np.sort(scores[labels == 0]), scores[labels == 1]
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.sum(dtype=np.float64) / (2.0 * len(above) * len(below)))


def mean_auc(labels: np.ndarray, probs: np.ndarray) -> float:
    """Mean of the tasks' AUC: what epochs, rounds and candidates are chosen by."""
    return float(np.mean([auc(labels[:, t], probs[:, t]) for t in range(labels.shape[1])]))


def best_epoch(
    data: Data,
    options: Options,
    columns: list[int],
    train_epoch: Callable[[int], None],
    predict: Callable[[Rows], np.ndarray],
) -> Answer:
    """Train up to `epochs` epochs, and answer with the best on validation.

    Args:
        data: The rows.
        options: The training.
        columns: The tasks that the model predicts.
        train_epoch: Trains one epoch, told its number.
        predict: Rows to float32 [rows, len(columns)].
    """
    validation, steps = data.splits["validation"], len(data.splits["train"].labels) / BATCH
    best, answer, took = -1.0, None, []
    for epoch in range(options.epochs):
        began = time.perf_counter()
        train_epoch(epoch)
        took.append((time.perf_counter() - began) / steps * 1000)
        probs = predict(validation)
        score = mean_auc(validation.labels[:, columns], probs)
        if score <= best:
            break
        best = score
        answer = Answer(probs, predict(data.splits["test"]), {"epoch": epoch + 1})
    if answer is None:
        raise SystemExit("no epoch gave a validation AUC")
    answer.step_ms = float(np.min(took))
    return answer


def join(answers: list[Answer]) -> Answer:
    """Models of one task each, side by side."""
    steps = [a.step_ms for a in answers if a.step_ms is not None]
    return Answer(
        np.concatenate([a.validation for a in answers], axis=1),
        np.concatenate([a.test for a in answers], axis=1),
        {key: [a.notes[key] for a in answers] for key in answers[0].notes},
        sum(steps) if steps else None,
    )
