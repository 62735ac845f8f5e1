"""`train`: from a features folder to a run with the best weights, calibrated and exported."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys.artifacts import (
    LEARNED,
    MANIFEST,
    read_json,
    read_manifest,
    remove_leftovers,
    require_learned,
    write_folder,
    write_json,
    write_manifest,
    write_text,
)
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.locks import LOCK, sole_trainer
from recsys.spec import covered, differences, dumps, fingerprints, load
from recsys.spec.records import Spec
from training.boosting import fit_trees, refit_trees
from training.checkpoints import Position, Store
from training.evaluation import EXPORT, TRAINED, check_features, write_metrics
from training.input import Rows, load_rows, open_split
from training.loop import CHECKPOINTS, REFIT, ROWS, Job, fit
from training.progress import FOLDER, Progress, silent
from training.scoring import answered, score_rows
from training.warm_start import check_source, seen_validation, start_from
from training.weighing import weigh_kinds
from training.writing import writing

RECORD = "run.json"
"""Id of a run, and what it starts from, written before it trains."""

SPEC = "spec.yaml"


def train(
    spec: Spec,
    features: str | Path,
    output: str | Path,
    workers: int = 0,
    gpu: bool = False,
    ray_address: str | None = None,
    resume: bool = False,
    warm_start: str | Path | None = None,
    eager: bool = False,
    profile: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a spec on its features.

    The run folder holds checkpoints while it trains, and gets its manifest last: without one
    it is unfinished, and `resume` goes on with it (on any number of workers).

    Args:
        spec: The spec.
        features: A features folder built from it.
        output: The run folder.
        workers: Ray Train workers; 0 trains in this process.
        gpu: Give each worker a GPU.
        ray_address: A Ray cluster; None starts one on this machine.
        resume: Go on with an unfinished run.
        warm_start: A finished run of the same shape to start from: its best weights, rows of
            tables by token, and its optimizer's state. Steps and epochs count from 0.
        eager: Run steps eagerly, checking every layer for values that are not finite.
        profile: Time and trace some steps of the first epoch, and say in `RUN/profile.json`
            what bounds the run (see `training.profile`). What is trained is the same.
        progress: Called with stage, done, total and a few words.

    Returns:
        The run's manifest.

    Raises:
        UserError: The features are of another spec or damaged, the output is taken or being
            trained by another process, the run to start from has another shape, workers cannot
            be had, the loss is not finite, or there are no steps to profile.
    """
    if profile and eager:
        raise UserError(
            "A run cannot be profiled and eager at once.",
            expected="--profile or --eager",
            found="both",
            fix="Leave one of them out: an eager step says nothing about a compiled one.",
            exit_code=EXIT_WRONG_USE,
        )
    features, run = Path(features).absolute(), Path(output).absolute()
    tell = progress or silent
    manifest = check_features(spec, features)
    for split in ("train", "validation"):
        if not open_split(spec, features, split).rows:
            raise UserError(
                f"The {split} split has no rows.",
                where=str(features / "examples" / split),
                expected="at least one row",
                found="0",
                fix="Change data.split in the spec.",
            )
    start = None
    if warm_start is not None:
        source = Path(warm_start).absolute()
        start = {"run": check_source(spec, source)["run"], "folder": str(source)}
        seen = seen_validation(source, manifest)
        if seen:
            tell("warning", 0, 1, seen)
    if resume and (run / MANIFEST).is_file():
        _check_same(spec, run)
        if profile:
            raise UserError(
                "The run is finished: there are no steps left to profile.",
                where=str(run),
                fix="Leave --profile out, or name another output folder.",
            )
        finished = read_manifest(run, "run")
        _check_same_features(finished, manifest, run)
        _check_same_start(finished.get("warm_start"), start, run)
        return finished
    _require_ours(spec, run)
    with sole_trainer(run):
        record = _open_run(spec, run, resume, start, manifest)
        job = Job(spec, features, run, eager=eager, profile=profile)
        try:
            _train(job, record, manifest, workers, gpu, ray_address, tell)
        finally:
            # Workers may have been killed.
            _remove_leftovers(run)
    tell("finish", 5, 5, "done")
    return read_manifest(run, "run")


def _train(
    job: Job,
    record: dict[str, Any],
    features: dict[str, Any],
    workers: int,
    gpu: bool,
    ray_address: str | None,
    tell: Progress,
) -> None:
    """Make a run that is begun a finished one."""
    run, tables = job.run, features["tables"]
    # Before the workers start, so that each finds it as it would find any checkpoint.
    if "warm_start" in record and not Store(run / job.checkpoints).names():
        record = _start_from(job, record, tables, tell)
    job = replace(job, past_steps=_past_steps(record))

    if workers:
        from training.launch import fit_on_ray

        fit_on_ray(job, workers, gpu=gpu, address=ray_address, progress=tell)

    def fitted(job: Job) -> Any:
        return None if workers else fit(job, progress=tell)[0]

    settled = _settle(job, fitted(job), tables, tell)
    if job.spec.train.refit:
        again = job.again(settled.position)
        _export_refit(again, fitted(again), tables, settled, tell)
    write_text(run / TRAINED, dumps(job.spec))
    write_manifest(run, "run", *_content(job, record, workers, settled, features))
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _start_from(
    job: Job, record: dict[str, Any], tables: dict[str, int], tell: Progress
) -> dict[str, Any]:
    """Write the checkpoint of step 0 from another run; returns the record with its tables."""
    start = record["warm_start"]
    source = Path(start["folder"])
    tell("warm start", 0, 1, f"from {source}")
    theirs = check_source(job.spec, source)
    found = theirs["run"]
    if found != start["run"]:
        raise UserError(
            "The folder of the run to start from holds another run now.",
            where=str(source),
            expected=f"run {start['run']}",
            found=f"run {found}",
            fix="Start a new run in another output folder.",
        )
    model, moved, steps = start_from(
        job.spec, job.features, tables, source, lambda text: tell("warning", 0, 1, text)
    )
    steps += _past_steps(theirs)
    record = {**record, "warm_start": {**start, "tables": moved, "steps": steps}}
    # The checkpoint comes last: where it stands, the record is whole.
    write_json(job.run / RECORD, record)
    if job.spec.train.refit:
        Store(job.run / REFIT).save(model, Position())
    Store(job.run / job.checkpoints).save(model, Position())
    tell("warm start", 1, 1, f"from {source}")
    return record


def _past_steps(record: Mapping[str, Any]) -> int:
    """Steps of earlier runs behind a run's optimizer."""
    return int((record.get("warm_start") or {}).get("steps", 0))


def _check_same_start(
    begun: dict[str, Any] | None, asked: dict[str, Any] | None, run: Path
) -> None:
    """Resuming may leave the warm start out, but not name another."""
    if asked is not None and (begun or {}).get("run") != asked["run"]:
        raise UserError(
            "The run did not start from the run that is named.",
            where=str(run),
            expected=f"a start from run {begun['run']}" if begun else "no --warm-start",
            found=f"--warm-start {asked['folder']} (run {asked['run']})",
            fix="Resume without --warm-start, or name another output folder.",
        )


def _check_same_features(made: dict[str, Any], features: dict[str, Any], run: Path) -> None:
    require_learned(
        made,
        features,
        where=run,
        fix="Name another output folder. To go on from what a finished run has learned, add "
        "--warm-start RUN, which moves the rows of tables by token.",
    )


def _require_ours(spec: Spec, run: Path) -> None:
    """Refuse an output that is a finished run, or none; nothing is written."""
    if (run / MANIFEST).is_file():
        raise UserError(
            "The output holds a finished run.",
            where=str(run),
            fix="Name another output folder, or remove this one.",
        )
    if run.is_file() or (run.is_dir() and not (run / RECORD).is_file() and not _is_new(spec, run)):
        raise UserError(
            "The output exists and is no run.",
            where=str(run),
            fix="Name another output folder.",
        )


def _is_new(spec: Spec, run: Path) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed as it began a run."""
    names = {path.name for path in run.iterdir()}
    rest = {name for name in names if not (name.startswith(".") and name.endswith(".partial"))}
    if rest == {SPEC}:
        # With no lock beside it, it may be the user's own.
        return (run / SPEC).read_text(encoding="utf-8", errors="replace") == dumps(spec)
    return rest <= {SPEC, LOCK}


def _open_run(
    spec: Spec, run: Path, resume: bool, start: dict[str, Any] | None, features: dict[str, Any]
) -> dict[str, Any]:
    """The run's record: its id, what its features learned, and the run it starts from, if any.

    The run's lock is held: another process may have begun or ended it until then.
    """
    _require_ours(spec, run)
    record = run / RECORD
    if record.is_file():
        if not resume:
            raise UserError(
                "The output holds an unfinished run.",
                where=str(run),
                fix="Go on with it: add --resume. Or name another output folder, or remove "
                "this one.",
            )
        begun = _read_record(record)
        _check_same(spec, run)
        _check_same_features(begun, features, run)
        _check_same_start(begun.get("warm_start"), start, run)
        _remove_leftovers(run)
        return begun
    _remove_leftovers(run)
    write_text(run / SPEC, dumps(spec))
    content = {"run": uuid.uuid4().hex, LEARNED: features.get(LEARNED)}
    if start:
        content["warm_start"] = start
    write_json(record, content)
    return content


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or "run" not in record:
        raise UserError(
            "The record of a run is damaged.",
            where=str(path),
            expected="a mapping with the run's id (run)",
            found=", ".join(record) or "nothing in it"
            if isinstance(record, dict)
            else f"a {type(record).__name__}",
            fix="Name another output folder, or remove this one, and train from the start.",
        )
    return record


def _remove_leftovers(run: Path) -> None:
    """Remove what killed processes left in a run; its lock is held."""
    for rows in run.glob(f"{ROWS}*"):
        shutil.rmtree(rows, ignore_errors=True)
    for folder in (run, run / CHECKPOINTS, run / REFIT):
        remove_leftovers(folder)


def _check_same(spec: Spec, run: Path) -> None:
    ours, theirs = covered(spec), covered(load(run / SPEC))
    for section in ("features", "model"):
        named = differences(ours[section], theirs[section])
        if named:
            raise UserError(
                f"The run was begun with another spec: its `{section}` differ.",
                where=str(run),
                expected=named[0],
                found=named[1],
                fix="Name another output folder, or resume with the spec in it (spec.yaml).",
            )


@dataclass(frozen=True)
class _Settled:
    """What validation settled.

    Attributes:
        position: Where the run stands, with its best epoch.
        calibrations: Calibration by task.
        trees: Trees of each task; None where the spec has none.
        weights: Of the kinds of network and of trees, float32 [kinds, tasks], or None.
        by_kind: The same two for the manifest.
    """

    position: Position
    calibrations: dict[str, Any]
    trees: list[int] | None
    weights: Any
    by_kind: dict[str, Any]


def _settle(job: Job, model: Any, tables: dict[str, int], tell: Progress) -> _Settled:
    """Export the best weights, with what validation tells about them, and their metrics."""
    from recsys.model import build

    spec, run = job.spec, job.run
    tell("finish", 0, 5, "best weights")
    if model is None or spec.model.trees is not None:
        # What was traced while training would not know of trees.
        model = build(spec, tables)
    position = Store(run / job.checkpoints).restore_best(model, warn=_warning(tell))
    rows = load_rows(spec, open_split(spec, job.features, "validation"))
    by_kind: dict[str, Any] = {}
    counts = None
    if spec.model.trees is not None:
        tell("finish", 1, 5, "boosting trees")
        forests = fit_trees(spec, job.features, rows)
        model.attach(forests)
        counts = [forest.trees for forest in forests]
        by_kind["trees"] = dict(zip([task.name for task in spec.tasks], counts, strict=True))
    tell("finish", 2, 5, "calibrating")
    if model.kind_weights is not None:
        by_kind["weights_of_kinds"] = weigh_kinds(spec, model, rows)
    calibrations = calibrate(job, model, rows)
    tell("finish", 3, 5, "exporting")
    _export(job, model, calibrations)
    tell("finish", 4, 5, "evaluating on validation")
    write_metrics(spec, run, job.features, "validation")
    weights = None if model.kind_weights is None else model.kind_weights.numpy()
    return _Settled(position, calibrations, counts, weights, by_kind)


def _export_refit(
    job: Job, model: Any, tables: dict[str, int], settled: _Settled, tell: Progress
) -> None:
    """Export what was trained on validation rows too, by what had been settled without them."""
    from recsys.model import build

    spec = job.spec
    if model is None or settled.trees is not None:
        model = build(spec, tables)
        Store(job.run / job.checkpoints).restore_latest(model, warn=_warning(tell))
    if settled.trees is not None:
        tell("finish", 4, 5, "boosting trees anew")
        model.attach(refit_trees(spec, job.features, settled.trees))
    if settled.weights is not None:
        model.kind_weights.assign(settled.weights)
    tell("finish", 4, 5, "exporting")
    _export(job, model, settled.calibrations)


def _export(job: Job, model: Any, calibrations: dict[str, Any]) -> None:
    from recsys.export import export

    path = job.run / EXPORT
    with writing(path), write_folder(path, replace=True) as folder:
        export(model, job.spec, job.features / "transform", folder, calibrations)


def _warning(tell: Progress) -> Callable[[str], None]:
    return lambda text: tell("warning", 0, 1, text)


def calibrate(job: Job, model: Any, rows: Rows) -> dict[str, Any]:
    """Fit each task's calibration on validation, and write `calibration.json`.

    Returns:
        Calibration by task.
    """
    from recsys.calibration import calibration_report, fit_calibration

    spec = job.spec
    logits = score_rows(model, rows)
    calibrations, report = {}, {}
    for index, task in enumerate(spec.tasks):
        if task.is_regression:
            continue
        # On these rows, the product along a funnel of calibrated parts is calibrated too.
        observed = answered(spec, task.name, rows.labels)
        labels, own = rows.labels[observed, index], logits[observed, index]
        fitted = fit_calibration(spec.train.calibration, labels, own)
        calibrations[task.name] = fitted
        report[task.name] = {
            "given": None if task.space == "joint" else task.given,
            **calibration_report(fitted, labels, own),
            "calibration": fitted.to_json(),
        }
    write_json(job.run / "calibration.json", report)
    return calibrations


def _content(
    job: Job,
    record: dict[str, Any],
    workers: int,
    settled: _Settled,
    features: dict[str, Any],
) -> tuple[dict[str, str], dict[str, Any]]:
    prints = fingerprints(job.spec)
    position = settled.position
    best = position.best or {}
    return (
        {name: prints[name] for name in ("features", "model")},
        {
            "run": record["run"],
            LEARNED: record.get(LEARNED),
            "spec": job.spec.name,
            "features_folder": str(job.features),
            "rows": features["rows"],
            "trained": {
                "workers": workers,
                "steps": position.step,
                "epochs": len(position.history),
                "best_epoch": best.get("epoch"),
                "score": best.get("score"),
                **({"refit_epochs": position.best_epochs} if job.spec.train.refit else {}),
                "time_range": features.get("time_range", {}),
                **settled.by_kind,
            },
            **({"warm_start": record["warm_start"]} if "warm_start" in record else {}),
        },
    )
