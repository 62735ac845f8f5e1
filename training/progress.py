"""Progress of a run: from each worker to a small file, and from there to whoever asks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recsys.artifacts import write_text

Progress = Callable[[str, int, int, str], None]
"""Called with stage, done, total, and a few words."""

NOTES = ("epoch", "warning")
"""Stages of which each call is told by itself: none may be passed over for a later one."""

FOLDER = ".progress"
_INTERVAL_S = 0.3


def silent(stage: str, done: int, total: int, text: str) -> None:
    """Tells nobody."""


def epoch_words(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """What validation says at an epoch's end, by output name, short enough for a line.

    >>> epoch_words({"click": {"auc": 0.71236}, "price": {"rmse": 2.5}, "buy": {"auc": None}})
    'AUC click 0.7124; RMSE price 2.5000'
    """
    parts = []
    for metric in ("auc", "rmse"):
        known = {name: values.get(metric) for name, values in metrics.items()}
        shown = ", ".join(f"{name} {v:.4f}" for name, v in known.items() if v is not None)
        parts += [f"{metric.upper()} {shown}"] if shown else []
    return "; ".join(parts) or "no AUC: all labels are alike"


class ProgressFile:
    """A worker's progress as `RUN/.progress/worker-<rank>.json`, replaced a few times a second.

    Beside the stage it holds all notes so far, and the worker's process id.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self._path = progress_path(run, rank)
        self._last, self._stage = 0.0, ""
        self._record: dict[str, Any] = {"now": None, "notes": [], "pid": os.getpid()}

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        if stage in NOTES:
            self._record["notes"].append([stage, done, total, text])
        else:
            now = time.monotonic()
            if stage == self._stage and done < total and now - self._last < _INTERVAL_S:
                return
            self._last, self._stage = now, stage
            self._record["now"] = [stage, done, total, text]
        write_text(self._path, json.dumps(self._record))


def progress_path(run: Path, rank: int) -> Path:
    """Where a worker's progress lies."""
    return run / FOLDER / f"worker-{rank}.json"


def read_progress(run: Path, rank: int = 0) -> dict[str, Any] | None:
    """A worker's last progress, or None before its first."""
    try:
        return json.loads(progress_path(run, rank).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class Relay:
    """Passes the first worker's progress file on to `progress`, when looked at."""

    def __init__(self, run: Path, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._last: list[Any] | None = None
        self._told: list[list[Any]] = []

    def look(self) -> None:
        """Tell what is new."""
        record = read_progress(self._run)
        if record is None:
            return
        # A worker that is started anew tells an epoch again that it trains again.
        for note in record["notes"]:
            if note not in self._told:
                self._told.append(note)
                self._progress(*note)
        if record["now"] not in (None, self._last):
            self._last = record["now"]
            self._progress(*record["now"])
