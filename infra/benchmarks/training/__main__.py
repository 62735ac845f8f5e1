"""Speed of the training step against other libraries: rows a second, and ratios.

    python -m infra.benchmarks.training --peer-python PYTHON --deepctr-path FOLDER
    python -m infra.benchmarks.training --rows 1000000 --only ours --only floor

Every contestant is a process of its own, with two threads (--threads). They take turns, round by
round, and only one runs at a time, so that a busy machine slows all alike; ratios are taken
within a round. Ours reads Parquet files through training's own input; the others are fed
from memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import recsys  # noqa: F401  (Keras switch first)
from infra.benchmarks.docs import ROOT
from infra.benchmarks.training import report, worker
from infra.benchmarks.training.ours import MODELS, write_examples

OURS = (*MODELS, "floor", "floor, input gradient")
TORCH = ("PyTorch by hand", "torch-rechub", "deepctr-torch", "FuxiCTR")
ROWS = (100_000, 1_000_000, 10_000_000)
DRAWN = 32 * worker.BATCH


@dataclass
class Contestant:
    """A process that takes steps when told to.

    Attributes:
        name: What it is.
        process: The process.
        rounds: Its answers.
    """

    name: str
    process: subprocess.Popen
    rounds: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> dict[str, Any]:
        """Its next message.

        Raises:
            RuntimeError: It ended instead; the text is the last of what it said.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        assert self.process.stderr is not None
        self.process.stderr.seek(0)
        said = [text for text in self.process.stderr.read().splitlines() if text.strip()]
        raise RuntimeError(said[-1] if said else f"it ended with {self.process.wait()}")

    def round(self, seconds: float) -> dict[str, float]:
        """Steps for some seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start(name: str, rows: int, folder: Path, options: argparse.Namespace) -> Contestant:
    """Start a contestant and wait until it has warmed up.

    Raises:
        RuntimeError: It cannot run; the text says why.
    """
    python, module = sys.executable, "ours"
    path = [str(ROOT)]
    if name in TORCH:
        if options.peer_python is None:
            raise RuntimeError("no --peer-python was given")
        python, module = str(options.peer_python), "torch_peers"
    elif name == "DeepCTR":
        if options.deepctr_path is None:
            raise RuntimeError("no --deepctr-path was given")
        module = "deepctr_peer"
        path.append(str(options.deepctr_path))
    threads = {
        name: str(options.threads)
        for name in ("BENCHMARK_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    # A file, not a pipe: nobody reads it while the contestant runs.
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen(
        [python, "-m", f"infra.benchmarks.training.{module}", name, str(rows), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            **threads,
            "PYTHONPATH": os.pathsep.join(path),
            "CUDA_VISIBLE_DEVICES": "-1",
        },
    )
    process.stderr = said  # type: ignore[assignment]
    contestant = Contestant(name, process)
    contestant.read()
    return contestant


def compete(
    names: list[str], rows: int, folder: Path, options: argparse.Namespace, console: Console
) -> list[Contestant]:
    """Rounds among contestants at one size of the tables; each gets its turn in each round."""
    field_: list[Contestant] = []
    for name in names:
        try:
            field_.append(start(name, rows, folder, options))
        except RuntimeError as error:
            console.print(f"skipped {name} at {rows:,} rows: {error}")
    try:
        for turn in range(options.rounds):
            # The order alternates, so that nobody always runs after the same neighbour.
            for contestant in field_ if turn % 2 == 0 else field_[::-1]:
                contestant.rounds.append(contestant.round(options.seconds))
    finally:
        for contestant in field_:
            contestant.close()
    return field_


def draw(rows: int, folder: Path) -> Path:
    """A folder with the drawn rows."""
    target = folder / str(rows)
    target.mkdir()
    data = worker.draw(rows, DRAWN)
    write_examples(target, data)
    return target


def distinct(rows: int) -> int:
    """Distinct ids of a batch."""
    ids = worker.draw(rows, worker.BATCH)["ids"]
    return sum(len(np.unique(ids[:, n])) for n in range(worker.FIELDS))


def measure_input(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The input alone: median over rounds."""
    reader = start("input", ROWS[0], folder, options)
    rounds = [reader.round(options.seconds) for _ in range(options.rounds)]
    reader.close()
    return {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}


def measure_scaling(folders: dict[int, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our step at the smallest and the largest tables, by turns, and its memory."""
    sizes = [min(folders), max(folders)]
    field_ = [start("ours", rows, folders[rows], options) for rows in sizes]
    for _ in range(options.rounds):
        for contestant in field_:
            contestant.rounds.append(contestant.round(options.seconds))
    for contestant in field_:
        contestant.close()
    return report.scaling(sizes, [contestant.rounds for contestant in field_])


def show(title: str, columns: list[str], rows: list[list[str]], console: Console) -> None:
    """Print a table."""
    table = Table(title=title)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="rows of all tables together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant")
    parser.add_argument("--peer-python", type=Path, help="Python of the PyTorch peers")
    parser.add_argument("--deepctr-path", type=Path, help="folder that DeepCTR is installed in")
    parser.add_argument("--only", action="append", choices=[*OURS, *TORCH, "DeepCTR"])
    parser.add_argument("--table-scaling", action="store_true", help="smallest against largest")
    parser.add_argument("--input", action="store_true", help="the input alone")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    console = Console(width=110)
    sizes = options.rows or list(ROWS)
    names = options.only or [*OURS, *TORCH, "DeepCTR"]
    sections: list[tuple[str, list[str], list[list[str]]]] = []
    with tempfile.TemporaryDirectory(prefix="recsys-training-") as scratch:
        folders = {rows: draw(rows, Path(scratch)) for rows in sizes}
        for rows in sizes:
            field_ = compete(names, rows, folders[rows], options, console)
            title = f"{rows:,} rows in the tables, {distinct(rows):,} ids of a batch distinct"
            sections.append((title, *report.race({c.name: c.rounds for c in field_})))
            show(*sections[-1], console)
        ours = [row[1] for _, _, table in sections for row in table if row[0] == "ours"]
        if options.table_scaling and len(sizes) > 1:
            found = measure_scaling(folders, options)
            sections.append(("Table size and memory, ours", *report.scaling_rows(found)))
            show(*sections[-1], console)
        if options.input:
            alone = measure_input(folders[sizes[0]], options)
            step = float(ours[0].replace(",", "")) if ours else float("nan")
            sections.append(("Input alone", *report.input_rows(alone, step)))
            show(*sections[-1], console)
    if options.write_docs:
        command = "python -m infra.benchmarks.training " + " ".join(
            "PATH" if "/" in argument else argument for argument in sys.argv[1:]
        )
        report.write_docs(ROOT / "docs" / "benchmarks.md", sections, command, options.threads)


if __name__ == "__main__":
    main()
