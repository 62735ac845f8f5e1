"""Results in words and tables, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from recsys.spec.schema import conditional_name
from training.gate import Decision, Reject

if TYPE_CHECKING:
    from infra.infer import Inferred
    from recsys.spec.records import Spec

MOST_NAMED = 8
"""Names of columns, and doubts, that are printed of many."""
COLUMNS = ("auc", "gauc", "log_loss", "normalized_entropy", "ece")
REGRESSION_COLUMNS = ("mae", "rmse", "r2")
SHORT = {"normalized_entropy": "NE", "log_loss": "loss", "positives": "pos."}


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"


def _heading(metric: str) -> str:
    return SHORT.get(metric, metric.replace("_", " "))


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
        table.add_column(_heading(name), justify="right", no_wrap=True)
    for name, values in tasks.items():
        rows = values.get("rows", metrics.get("rows"))
        table.add_row(
            name,
            _number(rows),
            _number(values.get("positives")),
            *(_number(values.get(column)) for column in columns),
        )
    return table


def comparison_tables(
    tasks: Mapping[str, Mapping[str, Any]], champion: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """Metrics by answer beside a champion's, and the difference: probabilities, then numbers."""
    tables = []
    for columns in (COLUMNS, REGRESSION_COLUMNS):
        # The answers of this run first; those that the champion alone has after them.
        both = {name: (tasks.get(name, {}), champion.get(name, {})) for name in (*tasks, *champion)}
        names = [n for n, pair in both.items() if any(c in v for v in pair for c in columns)]
        if not names:
            continue
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
        table.add_column("task", no_wrap=True)
        table.add_column("")
        for column in columns:
            table.add_column(_heading(column), justify="right", no_wrap=True)
        for name in names:
            own, other = both[name]
            changes = [_difference(own.get(c), other.get(c)) for c in columns]
            table.add_row(name, "this run", *(_number(own.get(c)) for c in columns))
            table.add_row("", "champion", *(_number(other.get(c)) for c in columns))
            table.add_row("", "difference", *changes, end_section=name != names[-1])
        tables.append(table)
    return tables


def _difference(own: float | None, other: float | None) -> str:
    return "-" if own is None or other is None else f"{own - other:+.4f}"


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of a split, the champion's beside them, and its slices after them."""
    show(metrics_table(metrics, f"{metrics.get('split', 'test')}: {metrics['rows']:,} rows"))
    champion = metrics.get("champion")
    if champion:
        print(f"champion: {champion['path']}, on {champion['rows']:,} rows")
        for table in comparison_tables(metrics["tasks"], champion["tasks"]):
            show(table)
    for feature, slices in (metrics.get("slices") or {}).items():
        for figure in ("auc", "rmse"):
            # What is not defined over all rows is so in no slice of them.
            names = [n for n, v in metrics["tasks"].items() if v.get(figure) is not None]
            if names:
                show(_slices_table(feature, slices, figure, names))


def _slices_table(
    feature: str, slices: Mapping[str, Mapping[str, Any]], figure: str, names: Sequence[str]
) -> Table:
    """One figure of the answers `names`, a row a value of `feature`."""
    table = Table(title=f"{figure.upper()} by {feature}", box=box.SIMPLE_HEAD)
    table.add_column(feature)
    table.add_column("rows", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for value, part in slices.items():
        found = [(part["tasks"].get(name) or {}).get(figure) for name in names]
        table.add_row(str(value), _number(part["rows"]), *map(_number, found))
    return table


def show_inferred(spec: Spec, found: Inferred, table: Path, output: Path) -> None:
    """Print what columns an inferred spec took for what, and what to run next."""
    from beam_jobs.plan import plan_of
    from infra.infer import commands
    from recsys.spec.records import ColumnLabel

    keys, time = spec.data.keys, spec.data.time
    read = plan_of(spec).impressions.columns
    left_out = [name for name in found.columns if name not in read]
    counters = sum(feature.encode.kind == "counter" for feature in spec.features)
    labels = {t.name: t.label.column for t in spec.tasks if isinstance(t.label, ColumnLabel)}
    given = {t.name: f" (given {labels[t.given]})" if t.given else "" for t in spec.tasks}
    print(f"spec of {table} in {output}")
    for name, value in (
        ("user", keys.user),
        ("item", keys.item),
        ("request", keys.request or "none"),
        ("time", time.column if time else "none"),
        ("labels", ", ".join(f"{column}{given[name]}" for name, column in labels.items())),
        ("features", f"{len(spec.features)}" + f", {counters} of them counters" * bool(counters)),
        ("left out", f"{_few(left_out)}; why is in the file" if left_out else "no column"),
    ):
        print(f"  {name:<9} {value}")
    for name, lines in (("doubtful", found.doubts), ("split", found.gaps)):
        for line in lines[:MOST_NAMED]:
            print(f"  {name:<9} {line}")
        if len(lines) > MOST_NAMED:
            print(f"  {name:<9} and {len(lines) - MOST_NAMED} more; they are in the file")
    print("look it over, then:")
    for command in commands(table, output):
        print(f"  {command}")


def _few(names: Sequence[str]) -> str:
    """How many columns, and the names of the first."""
    shown = ", ".join(names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)} column{'s' * (len(names) > 1)}: {shown}{more}"


def show_features(spec: Spec, manifest: Mapping[str, Any], folder: Path) -> None:
    """Print what a feature job of `spec` did."""
    table = Table(title=f"features in {folder}")
    table.add_column("split")
    table.add_column("rows", justify="right")
    tasks = sorted({task for rates in manifest["labels"].values() for task in rates})
    numbers = {task.name for task in spec.tasks if task.is_regression}
    for task in tasks:
        table.add_column(f"{task} {'mean' if task in numbers else 'rate'}", justify="right")
    for split, rows in manifest["rows"].items():
        rates = manifest["labels"].get(split, {})
        table.add_row(split, f"{rows:,}", *(_number(rates.get(task)) for task in tasks))
    show(table)
    for line in counted(manifest):
        print(line)
    for warning in manifest.get("warnings", []):
        print(f"warning: {warning}")


def counted(manifest: Mapping[str, Any]) -> list[str]:
    """What a feature job counted, a line each, and one for the days."""
    counts = dict(manifest.get("counts", {}))
    days: Mapping[str, int] = counts.pop("day", {})
    lines = [f"  {name}: {count:,}" for name, count in _flat(counts) if count]
    if days:
        fewest, most = min(days, key=days.__getitem__), max(days, key=days.__getitem__)
        span = f"{days[fewest]:,} ({fewest}) to {days[most]:,} ({most})"
        if days[fewest] == days[most]:
            span = f"{days[most]:,}"
        lines.append(f"  days: {len(days):,}, {min(days)} to {max(days)}; rows a day: {span}")
    return lines


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
    """Print what validation says of a run, what it started from, and where it lies."""
    validation = result["validation"]
    show(metrics_table(validation, f"validation: {validation['rows']:,} rows"))
    if result["calibration"]:
        show(_calibration_table(result["calibration"]))
    print(best_epoch(result["trained"]))
    if result.get("warm_start"):
        show_warm_start(result["warm_start"])
    if "profile" in result:
        show_profile(result["profile"], folder)
    print(f"run in {folder}; TensorBoard: tensorboard --logdir {folder / 'logs'}")


def best_epoch(trained: Mapping[str, Any]) -> str:
    """Which epoch of a run was best, in words."""
    best, epochs = trained["best_epoch"] + 1, trained["epochs"]
    words = f"best epoch: {best} of {epochs}, validation score {trained['score']:.4f}"
    again = trained.get("refit_epochs")
    if again is None:
        return words
    # What is exported has seen the validation rows, on which nothing can be said of it.
    return (
        f"{words}\nthen trained anew for {again} epoch{'s' * (again > 1)} on training and "
        "validation rows; what validation says is of the model before"
    )


def _calibration_table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Calibration by task, of the rows that its own head speaks of."""
    table = Table(title="calibration on validation", box=box.SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    table.add_column("kind")
    for name in ("ece before", "ece after", "loss before", "loss after"):
        table.add_column(name, justify="right")
    for task, found in report.items():
        name = conditional_name(task, found["given"]) if found["given"] else task
        numbers = ("ece_before", "ece_after", "log_loss_before", "log_loss_after")
        table.add_row(name, found["kind"], *(_number(found[number]) for number in numbers))
    return table


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

    A published one has `version` and `path` too, and `already`: whether it was published before,
    so that nothing was done.
    """
    if isinstance(decision, Reject):
        return {"published": False, "reasons": list(decision.reasons), "notes": []}
    return {
        "published": True,
        "version": decision.version,
        "path": str(decision.path),
        "already": decision.already,
        "reasons": [],
        "notes": list(decision.notes),
    }


def show_decision(decision: Mapping[str, Any]) -> None:
    """Print a gate's decision with its reasons, and what it compared."""
    if decision.get("already"):
        print(f"already published as version {decision['version']}: {decision['path']}")
    elif decision["published"]:
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
