"""Results in words and tables, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from training.gate import Decision, Reject

COLUMNS = ("auc", "gauc", "log_loss", "normalized_entropy", "ece")
REGRESSION_COLUMNS = ("mae", "rmse", "r2")
SHORT = {"normalized_entropy": "NE", "log_loss": "loss", "positives": "pos."}


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"


def show(table: Table) -> None:
    """Print a table as wide as it is: numbers that are cut off tell nothing."""
    console = Console()
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def metrics_table(metrics: Mapping[str, Any], title: str) -> Table:
    """One row an answer of the model: AUC, GAUC, log loss, normalized entropy, ECE."""
    tasks: Mapping[str, Mapping[str, Any]] = metrics["tasks"]
    columns = [c for c in (*COLUMNS, *REGRESSION_COLUMNS) if any(c in v for v in tasks.values())]
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", no_wrap=True)
    for name in ("rows", "positives", *columns):
        table.add_column(SHORT.get(name, name.replace("_", " ")), justify="right", no_wrap=True)
    for name, values in tasks.items():
        rows = values.get("rows", metrics.get("rows"))
        table.add_row(
            name.replace("_given_", " | "),
            _number(rows),
            _number(values.get("positives")),
            *(_number(values.get(column)) for column in columns),
        )
    return table


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of a split, its slices after it."""
    show(metrics_table(metrics, f"{metrics.get('split', 'test')}: {metrics['rows']:,} rows"))
    for feature, values in (metrics.get("slices") or {}).items():
        table = Table(title=f"AUC by {feature}", box=box.SIMPLE_HEAD)
        table.add_column(feature)
        table.add_column("rows", justify="right")
        names = list(metrics["tasks"])
        for name in names:
            table.add_column(name.replace("_given_", " | "), justify="right")
        for value, part in values.items():
            table.add_row(
                str(value),
                _number(part["rows"]),
                *(_number((part["tasks"].get(name) or {}).get("auc")) for name in names),
            )
        show(table)


def show_features(manifest: Mapping[str, Any], folder: Path) -> None:
    """Print what a feature job did."""
    table = Table(title=f"features in {folder}")
    table.add_column("split")
    table.add_column("rows", justify="right")
    tasks = sorted({task for rates in manifest["labels"].values() for task in rates})
    for task in tasks:
        # A mean over all rows; of 0 and 1 a rate.
        share = all(0 <= rates.get(task, 0) <= 1 for rates in manifest["labels"].values())
        table.add_column(f"{task} {'rate' if share else 'mean'}", justify="right")
    for split, rows in manifest["rows"].items():
        rates = manifest["labels"].get(split, {})
        table.add_row(split, f"{rows:,}", *(_number(rates.get(task)) for task in tasks))
    show(table)
    for line in counted(manifest):
        print(line)
    for warning in manifest.get("warnings", []):
        print(f"warning: {warning}")


def counted(manifest: Mapping[str, Any]) -> list[str]:
    """What a feature job counted, a line each."""
    counts = _flat(manifest.get("counts", {}))
    return [f"  {name}: {count:,}" for name, count in counts if count]


def _flat(counts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    for name, value in counts.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{label} · ")
        else:
            rows.append((label, value))
    return rows


def show_training(result: Mapping[str, Any], folder: Path) -> None:
    """Print where a run lies and how it ended."""
    validation = result.get("validation")
    if validation:
        show(metrics_table(validation, "validation"))
    if result.get("warm_start"):
        show_warm_start(result["warm_start"])
    if "profile" in result:
        show_profile(result["profile"], folder)
    print(f"run in {folder}; TensorBoard: tensorboard --logdir {folder / 'logs'}")


def show_warm_start(record: Mapping[str, Any]) -> None:
    """Print what a run took over from another one, table by table."""
    table = Table(title=f"started from run {record['run']}", box=box.SIMPLE_HEAD)
    table.add_column("table")
    for name in ("kept", "new", "dropped"):
        table.add_column(f"{name} rows", justify="right")
    for name, rows in record["tables"].items():
        table.add_row(name, *(_number(rows[part]) for part in ("kept", "new", "dropped")))
    show(table)


def show_conversion(result: Mapping[str, Any], folder: Path) -> None:
    """Print where a converted model lies, and how far it is from the SavedModel."""
    check = result["check"]
    print(
        f"model of {result['bytes']:,} bytes in {folder}; on {check['rows']:,} validation rows the "
        f"largest difference is {max(check['largest'].values()):.2g} "
        f"(at most {check['tolerance']:g} is allowed)"
    )


def show_profile(found: Mapping[str, Any], folder: Path) -> None:
    """Print what bounds a run, its parts, and how to open the trace."""
    from training.profile import FILE, PARTS

    print(
        f"a step of {found['rows']:,} rows: {found['step_ms']:.2f} ms, "
        f"{found['rows_per_s']:,.0f} rows/s"
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("share", justify="right")
    for part, share in sorted(found["shares"].items(), key=lambda item: -item[1]):
        table.add_row(PARTS[part], f"{share:.1%}")
    show(table)
    costliest = ", ".join(f"{scope} {share:.1%}" for scope, share in found["costliest"].items())
    print(f"costliest layers: {costliest}")
    for line in found["words"]:
        print(line)
    print(
        f"profile in {folder / FILE}; trace in {folder / found['trace']}\n"
        "to open the trace: pip install tensorboard-plugin-profile, then TensorBoard as below, "
        "tab Profile"
    )


def decision_json(decision: Decision) -> dict[str, Any]:
    """A gate's decision as JSON: `published`, `reasons` against it, and what it compared (`notes`).

    A published one has `version` and `path` too.
    """
    if isinstance(decision, Reject):
        return {"published": False, "reasons": list(decision.reasons), "notes": []}
    return {
        "published": True,
        "version": decision.version,
        "path": str(decision.path),
        "reasons": [],
        "notes": list(decision.notes),
    }


def show_decision(decision: Mapping[str, Any]) -> None:
    """Print a gate's decision with its reasons, and what it compared."""
    if decision["published"]:
        print(f"published version {decision['version']}: {decision['path']}")
    else:
        print("refused; nothing was published")
    for line in (*decision["reasons"], *decision.get("notes", [])):
        print(f"  - {line}")


def show_run(result: Mapping[str, Any]) -> None:
    """Print a whole run: its metrics, its decision, and where everything lies."""
    show_metrics(result["metrics"])
    show_decision(result["decision"])
    print(f"features {result['features']}\nrun      {result['run']}")
    if Path(result["models"]).is_dir():  # a first model that is refused leaves none
        print(
            f"models   {result['models']}\n"
            f"serve    recsys serve {result['models']} --features {result['features']}"
        )
