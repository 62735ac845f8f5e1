"""Progress of a worker, on its way to whoever looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.progress import ProgressFile, Relay, epoch_words


def test_no_end_of_an_epoch_is_lost_between_two_looks(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    relay = Relay(tmp_path, lambda *what: told.append(what))
    relay.look()
    assert told == []  # before the worker's first word
    worker = ProgressFile(tmp_path, 0)
    worker("warning", 0, 1, "an old table")
    relay.look()
    assert told == [("warning", 0, 1, "an old table")]
    for epoch in (1, 2, 3):
        worker("train", epoch * 10, 30, f"epoch {epoch}")
        worker("epoch", epoch, 3, f"AUC click 0.7{epoch}")
    relay.look()
    relay.look()
    assert told[1:] == [
        *(("epoch", epoch, 3, f"AUC click 0.7{epoch}") for epoch in (1, 2, 3)),
        ("train", 30, 30, "epoch 3"),
    ]
    # One that is started anew begins a new file, and tells what it has not told before.
    again = ProgressFile(tmp_path, 0)
    again("epoch", 3, 3, "AUC click 0.73")
    again("train", 30, 30, "epoch 3")
    again("epoch", 4, 4, "AUC click 0.74")
    relay.look()
    assert told[5:] == [("epoch", 4, 4, "AUC click 0.74")]


def test_an_epoch_without_any_figure_is_told() -> None:
    assert epoch_words({"click": {"auc": None}}) == "no AUC: all labels are alike"
