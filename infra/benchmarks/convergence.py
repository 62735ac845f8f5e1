"""How near a run on the simulated world comes to the truth, which that world knows.

    python -m infra.benchmarks.convergence --out OUT --rows 2000000 --seeds 2 --write-docs
    python -m infra.benchmarks.convergence --out OUT --rows 200000 --set train.refit=false

Each seed is a world, which goes through `recsys run` in process; what OUT has already is not done
again. Of every answer it prints the AUC on the test day, that of the true probabilities on the same
rows, and which share of the way from 0.5 to that was made.

The labels of a day are one draw. "Expected" is the AUC with each row a positive by its true
probability and a negative by the rest, and so the same whatever was drawn; of conversion given a
click, each row counts by its true probability of a click. ECE is against labels and against the
true probabilities, in 15 bins of equally much.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from infra.benchmarks.docs import ROOT, machine, markdown_table, write_between
from infra.stages import run_all
from recsys.artifacts import MANIFEST
from recsys.errors import UserError
from recsys.metrics import auc, ece
from recsys.spec import Spec, change, load
from recsys.spec.schema import REQUEST_KEY, conditional_name
from recsys.world import read_truth, simulate

SPEC = ROOT / "infra" / "specs" / "world.yaml"
CLICK, CONVERSION, GIVEN = "click", "conversion", conditional_name("conversion", "click")
COLUMNS = (
    "Seed",
    "Answer",
    "AUC",
    "of the truth",
    "of the way",
    "expected AUC",
    "of the truth",
    "of the way",
    "ECE, labels",
    "ECE, truth",
)

_Array = NDArray[np.float64]


class Found(NamedTuple):
    """An answer against the truth: AUCs, those of the true probabilities, and errors."""

    auc: float
    best: float
    expected: float
    expected_best: float
    ece: float
    ece_truth: float


class Rows(NamedTuple):
    """Test rows: labels and the true p(click) and p(conversion given click), each [rows]."""

    click: _Array
    conversion: _Array
    p_click: _Array
    p_given: _Array


def compare(answers: Mapping[str, _Array], rows: Rows) -> dict[str, Found]:
    """Each answer against labels and true probabilities.

    Args:
        answers: Probabilities [rows] of `click`, `conversion` (of both) and
            `conversion_given_click`.
        rows: The rows' labels and truth.
    """
    everywhere, clicked = np.ones(len(rows.click)), rows.click == 1
    both = rows.p_click * rows.p_given
    return {
        CLICK: _found(answers[CLICK], rows.click, rows.p_click, everywhere),
        CONVERSION: _found(answers[CONVERSION], rows.conversion, both, everywhere),
        GIVEN: _found(
            answers[GIVEN],
            np.where(clicked, rows.conversion, np.nan),
            rows.p_given,
            rows.p_click,
        ),
    }


def _found(scores: _Array, labels: _Array, truth: _Array, weights: _Array) -> Found:
    return Found(
        auc(labels, scores),
        auc(labels, truth),
        expected_auc(scores, truth, weights),
        expected_auc(truth, truth, weights),
        ece(labels, scores),
        ece_of_truth(scores, truth, weights),
    )


def expected_auc(scores: _Array, truth: _Array, weights: _Array) -> float:
    """AUC of scores where each row is a positive by its probability and a negative by the rest.

    >>> expected_auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.ones(2))
    1.0
    """
    labels = np.repeat([1.0, 0.0], len(scores))
    counted = np.concatenate([weights * truth, weights * (1.0 - truth)])
    return auc(labels, np.tile(scores, 2), counted)


def ece_of_truth(scores: _Array, truth: _Array, weights: _Array, bins: int = 15) -> float:
    """Mean of |mean score - mean true probability| over bins of equal weight.

    >>> round(ece_of_truth(np.array([0.2, 0.4]), np.array([0.1, 0.4]), np.ones(2), 2), 3)
    0.05
    """
    order = np.argsort(scores, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    index = np.minimum(np.ceil(share * bins - 1e-9).astype(int) - 1, bins - 1)
    gaps = np.bincount(index, (weights * (scores - truth))[order], bins)
    return float(np.abs(gaps).sum() / weights.sum())


def truth_of(world: Path, requests: pa.ChunkedArray, items: pa.ChunkedArray) -> Rows:
    """Labels and truth of the impressions of these requests and items, in their order.

    Raises:
        UserError: An impression is not in the world.
    """
    shown = pa.concat_tables(
        pq.ParquetFile(path).read(columns=["impression_id", "request_id", "item_id"])
        for path in sorted((world / "impressions").glob("day=*/part-*.parquet"))
    )
    wanted = pa.table({"request_id": requests, "item_id": items, "row": np.arange(len(requests))})
    # A log that was made dirty has an impression twice.
    known = shown.group_by(["request_id", "item_id"]).aggregate([("impression_id", "min")])
    found = (
        wanted.join(known, ["request_id", "item_id"])
        .join(read_truth(world), "impression_id_min", "impression_id")
        .sort_by("row")
    )
    lost = found["p_click"].null_count
    if lost:
        raise UserError(
            "Test rows are not impressions of this world.",
            where=str(world),
            expected="requests and items of its impressions",
            found=f"{lost} of {len(found)} are not",
            fix="Name a new folder for the benchmark.",
        )
    names = ("click", "conversion", "p_click", "p_conversion_given_click")
    return Rows(*(found[name].to_numpy().astype(np.float64) for name in names))


def measure(world: Path, features: Path, run: Path) -> dict[str, Found]:
    """Compare the answers of a run's export on its test rows with the truth."""
    from training.evaluation import EXPORT, predict
    from training.input import open_raw, open_split, read_columns

    spec = load(run / "spec.yaml")
    answers = predict(spec, run / EXPORT, features, "test").answers
    examples = open_split(spec, features, "test")
    raw = open_raw(features, examples)
    requests, items = (
        pa.concat_tables([table for _, table in read_columns(split, [name])])[name]
        for split, name in ((examples, REQUEST_KEY), (raw, spec.data.keys.item))
    )
    rows = truth_of(world, requests, items)
    return compare({name: answer.astype(np.float64) for name, answer in answers.items()}, rows)


def table(found: Mapping[int, Mapping[str, Found]]) -> list[list[str]]:
    """Rows of `COLUMNS`, by seed and answer."""
    return [
        [
            str(seed),
            name.replace("_", " "),
            f"{each.auc:.4f}",
            f"{each.best:.4f}",
            f"{(each.auc - 0.5) / (each.best - 0.5):.1%}",
            f"{each.expected:.4f}",
            f"{each.expected_best:.4f}",
            f"{(each.expected - 0.5) / (each.expected_best - 0.5):.1%}",
            f"{each.ece:.4f}",
            f"{each.ece_truth:.4f}",
        ]
        for seed, answers in found.items()
        for name, each in answers.items()
    ]


def _one(spec: Spec, out: Path, rows: int, seed: int) -> dict[str, Found]:
    console = Console(stderr=True, highlight=False)
    folder = out / f"rows{rows}-seed{seed}"
    world = folder / "world"
    console.print(f"[bold]seed {seed}[/bold]: {rows:,} impressions")
    if not (world / MANIFEST).is_file():
        simulate(world, rows=rows, seed=seed)
    done = run_all(spec, world, folder / "out", force=True, say=console.print)
    return measure(world, Path(done["features"]), Path(done["run"]))


def main() -> int:
    """Measure the seeds, and print or write a table in Markdown."""
    parser = argparse.ArgumentParser(
        "python -m infra.benchmarks.convergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="worlds, features and runs")
    parser.add_argument("--rows", type=int, default=2_000_000, help="impressions of a world")
    parser.add_argument("--seeds", type=int, default=1, help="worlds: seeds 0, 1, ...")
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the spec")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    spec = change(load(given.spec), given.set or [], str(given.spec))
    found = {seed: _one(spec, given.out, given.rows, seed) for seed in range(given.seeds)}
    text = markdown_table(COLUMNS, table(found), left=2)
    print(text)
    if given.write_docs:
        command = f"python -m infra.benchmarks.convergence --out OUT --rows {given.rows}"
        command += f" --seeds {given.seeds}"
        command += "".join(f" --set {setting}" for setting in given.set or ())
        head = f"`{command}`, {machine()}:"
        write_between(ROOT / "docs" / "benchmarks.md", "convergence", f"{head}\n\n{text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
