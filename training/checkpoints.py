"""Checkpoints that outlive a killed worker and do not know how many workers there were.

    RUN/checkpoints/step-00000120/   state.index, state.data-*   (tf.train.Checkpoint)
                                     position.json               (where the run stands)

Each is written aside and renamed. The last two stay, and the best. What is in storage is
the truth: a checkpoint reported to Ray just before a crash may be unknown to its
controller, while the files are there.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recsys.artifacts import read_json, write_folder, write_json
from recsys.errors import UserError, first_line
from training.writing import writing

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"^step-(\d{8,})$")
_POSITION = "position.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch is `batch` of `epoch`.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Number of the batch in it, from 0.
        step: Batches trained on so far.
        history: One record an epoch, of what training and validation showed.
        best: `checkpoint`, `epoch` and `score` of the best epoch so far.
        stale: Epochs since the best.
        ended: Whether training is over.
        sums: Of what the epoch's steps so far have shown, by name, and how many `steps` they are.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    stale: int = 0
    ended: bool = False
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint that is written here."""
        return f"step-{self.step:08d}"

    def as_best(self, score: float) -> Position:
        """The position at the end of an epoch that is the best so far."""
        # The record counts epochs that ended; at an epoch's end the next one is `epoch`.
        epoch = len(self.history) - 1
        best = {"checkpoint": self.checkpoint, "epoch": epoch, "score": score}
        return replace(self, best=best)

    @property
    def best_epochs(self) -> int:
        """Epochs until the best."""
        return 1 + self.best["epoch"] if self.best else max(1, len(self.history))


class Store:
    """The checkpoints of a run.

    Args:
        folder: Where they lie.
        keep: How many of the newest stay, beside the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def names(self) -> list[str]:
        """Whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path.name for path in self.folder.iterdir() if _NAME.match(path.name)]
        return sorted(found, key=lambda name: int(name.removeprefix("step-")))

    def save(self, model: Any, position: Position) -> None:
        """Write a checkpoint, and prune.

        Raises:
            OSError: There is no space, or no permission.
        """
        import tensorflow as tf

        path = self.folder / position.checkpoint
        with writing(path), write_folder(path, replace=True) as aside:
            tf.train.Checkpoint(model=model).write(str(aside / "state"))
            write_json(aside / _POSITION, asdict(position))
        self._prune(position)

    def _prune(self, position: Position) -> None:
        stay = set(self.names()[-self._keep :])
        if position.best:
            stay.add(position.best["checkpoint"])
        for name in self.names():
            if name not in stay:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def restore_latest(self, model: Any, warn: Callable[[str], None] | None = None) -> Position:
        """Put the newest whole checkpoint into the model; a damaged one is passed over.

        Returns:
            Where the run stands; the start, where there is no checkpoint.

        Raises:
            UserError: There are checkpoints, and every one is damaged.
        """
        names = self.names()
        for name in reversed(names):
            try:
                position = Position(**read_json(self.folder / name / _POSITION))
                self._read(model, name)
                return position
            except (UserError, TypeError, ValueError) as error:
                _say(warn, f"checkpoint {name} is damaged and is passed over: {error}")
        if names:
            raise UserError(
                "Every checkpoint of this run is damaged.",
                where=str(self.folder),
                expected="a whole checkpoint",
                found=", ".join(names),
                fix="Remove the folder, and train from the start.",
            )
        return Position()

    def restore_best(self, model: Any, warn: Callable[[str], None] | None = None) -> Position:
        """Put the best epoch's weights into the model, or else the newest.

        Returns:
            Where the run stands.
        """
        position = self.restore_latest(model, warn)
        if position.best:
            try:
                self._read(model, position.best["checkpoint"])
            except UserError as error:
                _say(warn, f"the best checkpoint is damaged, the last one is used: {error}")
                return self.restore_latest(model)
        return position

    def _read(self, model: Any, name: str) -> None:
        import tensorflow as tf

        path = self.folder / name / "state"
        try:
            status = tf.train.Checkpoint(model=model).read(str(path))
            status.assert_existing_objects_matched()
            # Optimizer slots may be made later, or never, where the model is only exported.
            status.expect_partial()
        except (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise UserError(
                "A checkpoint cannot be read into this model.",
                where=str(path),
                found=first_line(error),
            ) from error


def _say(warn: Callable[[str], None] | None, text: str) -> None:
    _LOG.warning(text)
    if warn is not None:
        warn(text)
