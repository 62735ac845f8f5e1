"""Which stages of `recsys run` must run, and how results and interruptions are shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from infra.report import show, show_run
from infra.stages import _listing, _Stages
from recsys.spec import loads
from recsys.world import simulate

ROOT = Path(__file__).parents[2]
SPEC = """
name: shop
data:
  impressions: shown/*.csv
  tables: {item: {path: items.csv, key: item}}
  keys: {user: user, item: item}
  split: {test: 0.1}
features:
- {name: user, owner: user, encode: vocabulary}
- {name: price, owner: item, encode: numeric}
tasks:
- {name: click, label: {column: clicked}}
"""


def test_what_the_spec_reads_counts_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    for name in ("shown/a.csv", "shown/b.csv", "items.csv"):
        (tmp_path / name).write_text("user,item,clicked\n")
    before = _listing(loads(SPEC), tmp_path)
    assert [name for name, *_ in before] == ["items.csv", "shown/a.csv", "shown/b.csv"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.json").write_text("{}")  # an output within the input
    (tmp_path / "notes.txt").write_text("mine")
    assert _listing(loads(SPEC), tmp_path) == before
    (tmp_path / "items.csv").write_text("item,price\n")
    assert _listing(loads(SPEC), tmp_path) != before


def test_features_that_another_command_replaced_are_built_again(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    ours = {"fingerprints": {"features": "a"}, "learned": "b", "created": "2026-01-01"}
    manifest.write_text(json.dumps(ours))
    _Stages(tmp_path / "stages.json", print).done("features", "key", ours)
    stages = _Stages(tmp_path / "stages.json", print)
    assert not stages.stale("features", "key", manifest)
    # Of another spec; of the same spec and other logs.
    for change in ({"fingerprints": {"features": "c"}}, {"learned": "c"}):
        manifest.write_text(json.dumps(ours | change))
        assert stages.stale("features", "key", manifest)
    assert stages.skipped == ["features"]


def test_a_first_model_that_is_refused_leaves_nothing_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {name: str(tmp_path / name) for name in ("features", "run", "models")}
    decision = {"published": False, "reasons": ["click: AUC 0.5 is low"], "notes": []}
    metrics = {"rows": 1, "tasks": {"click": {"auc": 0.5}}}
    show_run({**result, "metrics": metrics, "decision": decision})
    shown = capsys.readouterr().out
    assert "refused; nothing was published" in shown
    assert "champion" not in shown and "recsys serve" not in shown


def test_numbers_are_shown_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table()
    for name in ("a long heading", "another one"):
        table.add_column(name)
    table.add_row("123456.789012", "0.987654321")
    show(table)
    shown = capsys.readouterr().out
    assert "123456.789012" in shown and "0.987654321" in shown and "a long heading" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_said_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    world, spec = tmp_path / "world", ROOT / "infra" / "specs" / "world.yaml"
    simulate(world, rows=3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "features", str(spec), "--input", str(world),
         "--output", str(tmp_path / "out" / "features")],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("join: 0/"):  # the pipeline begins
            os.kill(process.pid, number)
    assert process.wait() == 128 + number, "".join(lines)
    assert lines[-1] == "error: Interrupted.\n"
    assert list((tmp_path / "out").iterdir()) == []
