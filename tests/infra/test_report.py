"""What the commands print: progress, and results in words and tables."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest

from infra.progress import Progress
from infra.report import (
    best_epoch,
    counted,
    decision_json,
    show_decision,
    show_features,
    show_metrics,
)
from recsys.spec import loads
from training.gate import Promote

EPOCHS = ["AUC click 0.7123", "AUC click 0.7234", "AUC click 0.7201"]


def three_epochs(progress: Progress) -> None:
    progress("warning", 0, 1, "these [rows] are old")
    for epoch, words in enumerate(EPOCHS, 1):
        long = f"validation rows too, epoch {epoch}, loss 0.1234, and whatever else there is to say"
        progress("train", 93 * epoch, 279, long)
        progress("epoch", epoch, 3, words)
    progress("warning", 0, 1, "so are those")


def test_the_end_of_an_epoch_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(every=1e9) as progress:
        three_epochs(progress)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("train")] == [
        "warning: these [rows] are old",
        *(f"epoch {epoch}/3: {words}" for epoch, words in enumerate(EPOCHS, 1)),
        "warning: so are those",
    ]
    # All else waits, but for its start and its end.
    assert [line.split()[1] for line in lines if line.startswith("train")] == ["93/279", "279/279"]


def read_all(leader: int) -> bytes:
    """What a terminal was sent, once nothing holds its other end."""
    found = b""
    # Linux ends it with an error.
    with contextlib.suppress(OSError):
        while part := os.read(leader, 1 << 16):
            found += part
    return found


def test_on_a_terminal_of_80_columns_bars_and_counts_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("COLUMNS", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress() as progress:
            three_epochs(progress)
    shown = read_all(leader).decode()
    os.close(leader)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in shown.splitlines()]
    assert {f"epoch {epoch}/3: {words}" for epoch, words in enumerate(EPOCHS, 1)} <= set(lines)
    assert "warning: these [rows] are old" in lines
    last = [line for line in lines if "279/279" in line][-1]
    assert re.search(r"train +━{20} 279/279 \d:\d\d:\d\d validation rows .*…", last), last
    assert max(map(len, lines)) <= 80


def answers(auc: float) -> dict[str, dict[str, float | int | None]]:
    figures = {"auc": auc, "gauc": None, "log_loss": 0.3, "normalized_entropy": 0.9, "ece": 0.01}
    return {
        "click": {"rows": 1000, "positives": 300, **figures},
        "purchase_given_click": {"rows": 300, "positives": 30, **figures},
        "minutes": {"rows": 300, "mae": 2.0, "rmse": 3.0, "r2": 0.5},
    }


def test_a_champion_is_shown_with_the_differences(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = answers(0.75)
    champion = {"path": "models/1", "rows": 1000, "tasks": {**answers(0.7), "like": {"auc": 0.6}}}
    del champion["tasks"]["minutes"]
    show_metrics({"split": "test", "rows": 1000, "tasks": tasks, "champion": champion})
    _, compared = capsys.readouterr().out.split("champion: models/1, on 1,000 rows\n")
    rows = [line.split() for line in compared.splitlines() if line.strip()]
    # A figure that one of the two lacks has no difference.
    assert rows[2:8] == [
        ["click", "this", "run", "0.7500", "-", "0.3000", "0.9000", "0.0100"],
        ["champion", "0.7000", "-", "0.3000", "0.9000", "0.0100"],
        ["difference", "+0.0500", "-", "+0.0000", "+0.0000", "+0.0000"],
        ["purchase_given_click", "this", "run", "0.7500", "-", "0.3000", "0.9000", "0.0100"],
        ["champion", "0.7000", "-", "0.3000", "0.9000", "0.0100"],
        ["difference", "+0.0500", "-", "+0.0000", "+0.0000", "+0.0000"],
    ]
    assert ["like", "this", "run", "-", "-", "-", "-", "-"] in rows
    assert ["minutes", "this", "run", "2.0000", "3.0000", "0.5000"] in rows
    assert max(len(line.rstrip()) for line in compared.splitlines()) <= 100


def test_slices_are_of_figures_that_each_task_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {
        "click": {"rows": 9, "auc": 0.7},
        "share": {"rows": 9, "auc": None},
        "minutes": {"rows": 3, "rmse": 2.0, "r2": 0.5},
    }
    phone = {"rows": 5, "tasks": {"click": {"auc": 0.8}, "minutes": {"rmse": 1.5}}}
    tablet = {"rows": 4, "tasks": {"click": {"auc": None}, "minutes": {"rmse": 2.5}}}
    slices = {"device": {"phone": phone, "tablet": tablet}}

    def shown(*names: str) -> list[list[str]]:
        chosen = {name: tasks[name] for name in names}
        show_metrics({"rows": 9, "tasks": chosen, "slices": slices})
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if "by" in line), len(lines))
        return [line for line in lines[start:] if not line[0].startswith("─")]

    auc = [["device", "rows", "click"], ["phone", "5", "0.8000"], ["tablet", "4", "-"]]
    rmse = [["device", "rows", "minutes"], ["phone", "5", "1.5000"], ["tablet", "4", "2.5000"]]
    by = ["by", "device"]
    assert shown("click", "share", "minutes") == [["AUC", *by], *auc, ["RMSE", *by], *rmse]
    assert shown("minutes") == [["RMSE", *by], *rmse]
    assert shown("share") == []


def test_the_mean_of_a_regression_is_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    spec = loads("""
name: shop
data: {impressions: log.csv, keys: {user: user, item: item}, split: {test: 0.1}}
features: [{name: user, owner: user, encode: vocabulary}]
tasks:
  - {name: click, label: {column: click}}
  - {name: share, label: {column: share}, loss: mse}
""")
    labels = {"train": {"click": 0.25, "share": 0.5}}
    show_features(spec, {"rows": {"train": 8}, "labels": labels}, Path("features"))
    shown = capsys.readouterr().out
    assert "click rate" in shown and "share mean" in shown


def test_days_are_one_line() -> None:
    days = {"2026-01-01": 1200, "2026-01-02": 900, "2026-01-03": 1000}
    assert counted(
        {"counts": {"day": days, "read": {"impressions": 3100}, "outside_split": 0}}
    ) == [
        "  read · impressions: 3,100",
        "  days: 3, 2026-01-01 to 2026-01-03; rows a day: 900 (2026-01-02) to 1,200 (2026-01-01)",
    ]
    alike = {"2026-01-01": 1200, "2026-01-02": 1200}
    said = "  days: 2, 2026-01-01 to 2026-01-02; rows a day: 1,200"
    assert counted({"counts": {"day": alike}}) == [said]
    assert counted({"counts": {"read": {"impressions": 1}}}) == ["  read · impressions: 1"]


def test_a_run_that_was_published_before_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    for already in (False, True):
        decision = decision_json(Promote(1, Path("models/1"), already=already))
        assert decision["published"] and decision["already"] is already
        show_decision(decision)
    assert capsys.readouterr().out.splitlines() == [
        "published version 1: models/1",
        "already published as version 1: models/1",
    ]


def test_the_best_epoch_is_counted_from_one() -> None:
    trained = {"best_epoch": 1, "epochs": 3, "score": 0.71236}
    assert best_epoch(trained) == "best epoch: 2 of 3, validation score 0.7124"
    assert "trained anew for 2 epochs on" in best_epoch({**trained, "refit_epochs": 2})
