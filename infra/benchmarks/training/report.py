"""Tables of the speed benchmark, on the terminal and in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infra.benchmarks.docs import machine, markdown_table, write_between
from infra.benchmarks.training import worker

Rounds = list[dict[str, float]]


def speeds(rounds: Rounds) -> np.ndarray:
    """Rows a second of each round."""
    return np.array([r["steps"] * worker.BATCH / r["seconds"] for r in rounds])


def race(rounds: dict[str, Rounds]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the race: the median speed, and ours against it round by round.

    A ratio above one says that ours is faster.
    """
    columns = ["", "rows/s", "ours / it", "least to most", "CPU ms a step", "peak MB"]
    table = []
    for name, mine in rounds.items():
        ratio, span = "", ""
        if name != "ours" and "ours" in rounds:
            ratios = speeds(rounds["ours"]) / speeds(mine)
            ratio = f"{np.median(ratios):.2f}"
            span = f"{ratios.min():.2f} to {ratios.max():.2f}"
        cpu = np.median([r["cpu"] / r["steps"] * 1e3 for r in mine])
        peak = max(r["peak"] for r in mine) / 1e6
        table.append(
            [name, f"{np.median(speeds(mine)):,.0f}", ratio, span, f"{cpu:.0f}", f"{peak:,.0f}"]
        )
    return columns, table


def scaling(sizes: list[int], rounds: list[Rounds]) -> list[dict[str, Any]]:
    """Milliseconds, ratios and bytes at each size, the first of which is the yardstick."""
    base = speeds(rounds[0])
    found = []
    for rows, mine in zip(sizes, rounds, strict=True):
        ratios = base / speeds(mine)
        found.append(
            {
                "rows": rows,
                "ms": float(np.median(worker.BATCH / speeds(mine) * 1e3)),
                "ratio": float(np.median(ratios)),
                "span": (float(ratios.min()), float(ratios.max())),
                "peak": max(r["peak"] for r in mine),
                "table": rows * (worker.DIM + 1) * 4,
            }
        )
    return found


def scaling_rows(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for `scaling`."""
    columns = [
        "rows",
        "ms a step",
        "to the smallest",
        "least to most",
        "peak MB",
        "table and one accumulator a row, MB",
        "all else MB",
    ]
    return columns, [
        [
            f"{f['rows']:,}",
            f"{f['ms']:.1f}",
            f"{f['ratio']:.2f}",
            f"{f['span'][0]:.2f} to {f['span'][1]:.2f}",
            f"{f['peak'] / 1e6:,.0f}",
            f"{f['table'] / 1e6:,.0f}",
            f"{(f['peak'] - f['table']) / 1e6:,.0f}",
        ]
        for f in found
    ]


def input_rows(alone: dict[str, float], step: float) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the input alone."""
    columns = ["", "rows/s", "to the step"]
    return columns, [
        [
            "batches, shuffled, of decoded rows",
            f"{alone['rows_s']:,.0f}",
            f"{alone['rows_s'] / step:.1f}",
        ],
        [
            "decoding Parquet files, once a run",
            f"{alone['decoded_rows_s']:,.0f}",
            f"{alone['decoded_rows_s'] / step:.1f}",
        ],
    ]


def write_docs(
    page: Path,
    sections: list[tuple[str, list[str], list[list[str]]]],
    command: str,
    threads: int,
) -> None:
    """Put the tables between the marks of the page, which is made if there is none."""
    lines = [
        "## Speed of the training step",
        "",
        f"Machine: {machine()}; {threads} threads each. Command: `{command.strip()}`.",
        "",
        f"{worker.FIELDS} categorical and {worker.NUMBERS} numeric fields, dim {worker.DIM}, "
        f"two tasks, tower {'-'.join(map(str, worker.UNITS))}, batch {worker.BATCH:,}. Each "
        "contestant is a process; they take turns, and ratios are taken within a round. "
        "`floor` is the same dense network and Adam without embeddings; `floor, input "
        "gradient` also computes the gradient that embeddings need. Libraries train by Adam, "
        "as they document, with regularizers off.",
    ]
    for title, columns, rows in sections:
        lines += ["", f"### {title}", "", markdown_table(columns, rows)]
    write_between(page, "speed", "\n".join(lines))
