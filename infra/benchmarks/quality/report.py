"""Results to a Markdown table and a plot."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.benchmarks.docs import markdown_table
from recsys.spec.records import Spec
from recsys.spec.schema import conditional_name

Result = dict[str, Any]
Column = tuple[str, str, str]
"""Title, task (or `<task>_given_<given>`), metric."""

OURS = "ours"


@dataclass(frozen=True)
class Line:
    """One model in one setting: its results of the chosen candidate, by seed."""

    model: str
    setting: str
    results: tuple[Result, ...]

    def values(self, rows: str, task: str, metric: str) -> np.ndarray:
        """float64 [seeds] of the test split."""
        found = [r["test"][rows][task][metric] for r in self.results]
        return np.array([math.nan if value is None else value for value in found])


def columns(spec: Spec) -> list[Column]:
    """AUC of all outputs, then GAUC of the first task, log loss and ECE of each."""
    found: list[Column] = []
    for task in spec.tasks:
        found.append((f"{task.name} AUC", task.name, "auc"))
        if task.given:
            name = conditional_name(task.name, task.given)
            found.append((f"{task.name} AUC on {task.given}", name, "auc"))
    found.append((f"{spec.tasks[0].name} GAUC", spec.tasks[0].name, "gauc"))
    for metric, title in (("log_loss", "log loss"), ("ece", "ECE")):
        found += [(f"{task.name} {title}", task.name, metric) for task in spec.tasks]
    return found


def lines(results: list[Result]) -> list[Line]:
    """Results by model and setting, each by the candidate that was best on validation."""
    found = []
    for model, setting in dict.fromkeys((r["model"], r["setting"]) for r in results):
        own = [r for r in results if (r["model"], r["setting"]) == (model, setting)]
        best = chosen(own)
        kept = sorted((r for r in own if r["candidate"] == best), key=lambda r: r["seed"])
        found.append(Line(model, setting, tuple(kept)))
    return found


def chosen(results: list[Result]) -> int:
    """The candidate with the best validation score at the first seed."""
    first = min(r["seed"] for r in results)
    return int(
        max((r for r in results if r["seed"] == first), key=lambda r: r["selection"])["candidate"]
    )


def lead(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Difference of the means, and the same in units of its standard error over seeds.

    >>> gap, errors = lead(np.array([0.75, 0.77]), np.array([0.73, 0.75]))
    >>> round(gap, 3), round(errors, 2)
    (0.02, 1.41)
    """
    gap = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return gap, math.nan
    error = math.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    return gap, gap / error if error > 0 else math.copysign(math.inf, gap)


def table(spec: Spec, found: list[Line], rows: str = "all", steps: bool = False) -> str:
    """A Markdown table: mean ± deviation over seeds, the best AUC first.

    Args:
        spec: The spec.
        found: What to show.
        rows: All rows, or a slice's name.
        steps: Show milliseconds a step in place of the lead of ours.
    """
    aucs = [task.name for task in spec.tasks]
    ours = next((line for line in found if line.model == OURS), None)
    leads = [] if steps or ours is None else aucs
    titles = ["model", "features", "seeds", *(title for title, _, _ in columns(spec))]
    titles += [f"ours ahead, {name} AUC" for name in leads] + (["ms a step"] if steps else [])
    out: list[list[str]] = []
    order = (
        found
        if steps
        else sorted(
            found, key=lambda line: -sum(line.values(rows, name, "auc").mean() for name in aucs)
        )
    )
    for line in order:
        cells = [
            f"**{line.model}**" if line.model == OURS else line.model,
            line.setting,
            str(len(line.results)),
        ]
        cells += [_spread(line.values(rows, task, metric)) for _, task, metric in columns(spec)]
        for name in leads:
            assert ours is not None
            gap, errors = lead(ours.values(rows, name, "auc"), line.values(rows, name, "auc"))
            cells.append(
                ""
                if line is ours
                else f"{gap:+.4f}" + ("" if math.isnan(errors) else f" ({errors:+.1f} se)")
            )
        if steps:
            took = [r["step_ms"] for r in line.results if r["step_ms"] is not None]
            cells.append(f"{np.median(took):.1f}" if took else "")
        out.append(cells)
    return markdown_table(titles, out, left=2) + "\n"


def _spread(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return ""
    if len(values) < 2:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"


def plot(spec: Spec, found: list[Line], path: Path) -> None:
    """AUC of each task by model, mean and deviation over seeds, as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [task.name for task in spec.tasks]
    order = sorted(
        dict.fromkeys(line.model for line in found),
        key=lambda model: max(
            line.values("all", names[0], "auc").mean() for line in found if line.model == model
        ),
    )
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(9, 1.1 + 0.32 * len(order)), sharey=True, squeeze=False
    )
    settings = list(dict.fromkeys(line.setting for line in found))
    for panel, name in zip(axes[0], names, strict=True):
        for at, setting in enumerate(settings):
            own = [line for line in found if line.setting == setting]
            values = [line.values("all", name, "auc") for line in own]
            spread = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values]
            panel.errorbar(
                [v.mean() for v in values],
                [order.index(line.model) for line in own],
                xerr=spread,
                fmt="osD^"[at % 4],
                markersize=5,
                capsize=2,
                label=setting,
            )
        panel.set_xlabel(f"test AUC, {name}")
        panel.grid(axis="x", linewidth=0.3)
    axes[0][0].set_yticks(range(len(order)), order)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        [f"features: {label}" for label in labels],
        fontsize=8,
        loc="upper center",
        ncols=len(labels),
    )
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def read_results(path: Path) -> list[Result]:
    """All lines of a results file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
