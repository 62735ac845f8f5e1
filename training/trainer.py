"""`train`: from a features folder to a run with the best weights, calibrated and exported."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifacts import (
    MANIFEST,
    read_json,
    read_manifest,
    write_folder,
    write_json,
    write_manifest,
    write_text,
)
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.spec import dumps, fingerprints, load
from recsys.spec.records import Spec
from training.checkpoints import Position, Store
from training.evaluation import EXPORT, check_features, evaluate
from training.input import load_rows, open_split
from training.loop import CHECKPOINTS, Job, fit
from training.progress import FOLDER, Progress, silent
from training.scoring import score_rows


def train(
    spec: Spec,
    features: str | Path,
    output: str | Path,
    workers: int = 0,
    gpu: bool = False,
    ray_address: str | None = None,
    resume: bool = False,
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
        eager: Run steps eagerly, checking every layer for values that are not finite.
        profile: Time and trace some steps of the first epoch, and say in `RUN/profile.json`
            what bounds the run (see `training.profile`). What is trained is the same.
        progress: Called with stage, done, total and a few words.

    Returns:
        The run's manifest.

    Raises:
        UserError: The features are of another spec or damaged, the output is taken, workers
            cannot be had, the loss is not finite, or there are no steps to profile.
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
    if resume and (run / MANIFEST).is_file():
        _check_same(spec, run)
        if profile:
            raise UserError(
                "The run is finished: there are no steps left to profile.",
                where=str(run),
                fix="Leave --profile out, or name another output folder.",
            )
        return read_manifest(run, "run")
    run_id = _open_run(spec, run, resume)
    job = Job(spec, features, run, eager=eager, profile=profile)
    model = None
    if workers == 0:
        model = fit(job, progress=tell)
    else:
        from training.launch import fit_on_ray

        fit_on_ray(job, workers, gpu=gpu, address=ray_address, progress=tell)
    return _finish(job, model, run_id, workers, manifest, tell)


def _open_run(spec: Spec, run: Path, resume: bool) -> str:
    record = run / "run.json"
    if (run / MANIFEST).is_file():
        raise UserError(
            "The output holds a finished run.",
            where=str(run),
            fix="Name another output folder, or remove this one.",
        )
    if record.is_file():
        if not resume:
            raise UserError(
                "The output holds an unfinished run.",
                where=str(run),
                fix="Go on with it: add --resume. Or name another output folder, or remove "
                "this one.",
            )
        _check_same(spec, run)
        for leftover in (*run.glob(".rows-*"), *run.glob(f"{CHECKPOINTS}/.*.partial")):
            shutil.rmtree(leftover, ignore_errors=True)
        return str(read_json(record)["run"])
    if run.is_file() or (run.is_dir() and any(run.iterdir())):
        raise UserError(
            "The output exists and is no run.",
            where=str(run),
            fix="Name another output folder.",
        )
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "spec.yaml", dumps(spec))
    run_id = uuid.uuid4().hex
    write_json(record, {"run": run_id})
    return run_id


def _check_same(spec: Spec, run: Path) -> None:
    ours, theirs = fingerprints(spec), fingerprints(load(run / "spec.yaml"))
    for section in ("features", "model"):
        if ours[section] != theirs[section]:
            raise UserError(
                f"The run was begun with another spec: its `{section}` differ.",
                where=str(run),
                expected=f"{section} {ours[section]}",
                found=f"{section} {theirs[section]}",
                fix="Name another output folder, or resume with the spec in it (spec.yaml).",
            )


def _finish(
    job: Job, model: Any, run_id: str, workers: int, features: dict[str, Any], tell: Progress
) -> dict[str, Any]:
    from recsys.export import export
    from recsys.model import build

    spec, run = job.spec, job.run
    tell("finish", 0, 4, "best weights")
    if model is None:
        model = build(spec, features["tables"])
    position = Store(run / CHECKPOINTS).restore_best(
        model, warn=lambda text: tell("warning", 0, 1, text)
    )
    tell("finish", 1, 4, "calibrating")
    calibrations = calibrate(job, model)
    tell("finish", 2, 4, "exporting")
    with write_folder(run / EXPORT, replace=True) as folder:
        export(model, spec, job.features / "transform", folder, calibrations)
    write_manifest(run, "run", *_content(job, run_id, workers, position, features))
    tell("finish", 3, 4, "evaluating on validation")
    try:
        evaluate(run, "validation")
    except BaseException:
        (run / MANIFEST).unlink()
        raise
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    tell("finish", 4, 4, "done")
    return read_manifest(run, "run")


def calibrate(job: Job, model: Any) -> dict[str, Any]:
    """Fit each task's calibration on validation, and write `calibration.json`.

    Returns:
        Calibration by task.
    """
    from recsys.calibration import calibration_report, fit_funnel
    from training.scoring import happened

    spec = job.spec
    rows = load_rows(spec, open_split(spec, job.features, "validation"))
    logits = score_rows(model, rows)
    binary = [(i, task) for i, task in enumerate(spec.tasks) if not task.is_regression]
    labels = {task.name: rows.labels[:, i] for i, task in binary}
    own = {task.name: logits[:, i] for i, task in binary}
    calibrations = fit_funnel(
        {task.name: spec.train.calibration for _, task in binary},
        labels,
        own,
        {task.name: task.given for _, task in binary},
    )
    report = {}
    for _, task in binary:
        observed = np.flatnonzero(happened(spec, task.name, rows.labels))
        fitted = calibrations[task.name]
        report[task.name] = {
            "given": task.given,
            **calibration_report(fitted, labels[task.name][observed], own[task.name][observed]),
            "calibration": fitted.to_json(),
        }
    write_json(job.run / "calibration.json", report)
    return calibrations


def _content(
    job: Job, run_id: str, workers: int, position: Position, features: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    prints = fingerprints(job.spec)
    best = position.best or {}
    return (
        {name: prints[name] for name in ("features", "model")},
        {
            "run": run_id,
            "spec": job.spec.name,
            "features_folder": str(job.features),
            "rows": features["rows"],
            "trained": {
                "workers": workers,
                "steps": position.step,
                "epochs": len(position.history),
                "best_epoch": best.get("epoch"),
                "score": best.get("score"),
                "time_range": features.get("time_range", {}),
            },
        },
    )
