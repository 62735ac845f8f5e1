"""Progress of a run: from each worker to a small file, and from there to whoever asks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.artifacts import write_text

Progress = Callable[[str, int, int, str], None]
"""Called with stage, done, total, and a few words."""

FOLDER = ".progress"
_INTERVAL_S = 0.3


def silent(stage: str, done: int, total: int, text: str) -> None:
    """Tells nobody."""


class ProgressFile:
    """A worker's progress as `RUN/.progress/worker-<rank>.json`, replaced a few times a second.

    Beside the stage it holds the worker's process id.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self._path = progress_path(run, rank)
        self._last, self._stage = 0.0, ""

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _INTERVAL_S:
            return
        self._last, self._stage = now, stage
        record = {"stage": stage, "done": done, "total": total, "text": text, "pid": os.getpid()}
        write_text(self._path, json.dumps(record))


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
        self._last: dict[str, Any] | None = None

    def look(self) -> None:
        """Tell what is new."""
        record = read_progress(self._run)
        if record is not None and record != self._last:
            self._last = record
            self._progress(record["stage"], record["done"], record["total"], record["text"])
