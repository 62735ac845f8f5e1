"""Metrics of what is served: examples through an exported SavedModel, by task and slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.artifacts import (
    MANIFEST,
    read_json,
    read_manifest,
    require_fingerprint,
    require_learned,
    same_learned,
    write_json,
)
from recsys.errors import UserError, kind_and_line
from recsys.spec import load
from recsys.spec.names import argument_names
from recsys.spec.records import Spec
from recsys.spec.schema import (
    USER_KEY,
    label_column,
    model_inputs,
    output_names,
    raw_columns,
    slice_column,
)
from training.input import (
    Split,
    has_raw,
    hash_keys,
    open_raw,
    open_split,
    read_columns,
    require_split,
    to_numpy,
)
from training.scoring import SCORE_BATCH, measure

EXPORT = "export"

MADE = "features_created"
"""Key of the metrics: when the features were made that they are of."""

TRAINED = "trained.yaml"
"""File in a run with the spec that it was trained by, beside spec.yaml, which may be edited."""


def evaluate(
    run: str | Path,
    split: str = "test",
    features: str | Path | None = None,
    champion: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run's export on a split, and write the metrics into the run.

    `RUN/metrics.json` is of the test split, `RUN/metrics-<split>.json` of another;
    `RUN/plots/` gets a calibration curve of each probability.

    Args:
        run: A finished run.
        split: train, validation or test.
        features: The features folder; by default the one that the run was trained on.
        champion: A run or a model version to compare with, on the same examples.

    Returns:
        The metrics: `split`, `rows`, `tasks` by output name, `slices` by feature and value,
        `features_created`, which tells the rows from others, and `champion` with the other's
        `tasks`, where one was given.

    Raises:
        UserError: The run is unfinished, or the examples are of another spec, damaged, or of a
            validation split that the run was trained anew on.
    """
    require_split(split)
    run = Path(run)
    manifest = read_manifest(run, "run")
    spec = load_trained(run, manifest)
    folder = features_of(manifest, features)
    made = check_features(spec, folder)
    require_learned(
        manifest,
        made,
        where=folder,
        fix="Evaluate on the features that the run was trained on, or train on these.",
    )
    if _same_rows(manifest, made, folder):
        _refuse_seen(spec, run, split)
    return write_metrics(spec, run, folder, split, champion)


def _same_rows(run: Mapping[str, Any], features: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder holds the rows that a run was trained on, there or since moved."""
    if folder.resolve() == Path(run["features_folder"]).resolve():
        return True
    ranges = run.get("trained", {}).get("time_range", {})
    return (run.get("rows"), ranges) == (features.get("rows"), features.get("time_range", {}))


def _refuse_seen(spec: Spec, model: Path, split: str) -> None:
    """Refuse the validation rows to what was trained on them too."""
    if spec.train.refit and split == "validation":
        raise UserError(
            "The model was trained anew on the validation rows (train.refit), so that they would "
            "flatter it.",
            where=str(model),
            expected="--split test",
            found="--split validation",
            fix="Evaluate on test. What validation said before is in the run's "
            "metrics-validation.json.",
        )


def write_metrics(
    spec: Spec, run: Path, features: Path, split: str, champion: str | Path | None = None
) -> dict[str, Any]:
    """As `evaluate`, of a run that may be unfinished but has its export."""
    metrics, answers, labels = _evaluate_model(spec, run / EXPORT, features, split)
    metrics[MADE] = read_manifest(features, "features").get("created")
    if champion is not None:
        metrics["champion"] = _champion_metrics(Path(champion), spec, features, split)
    name = "metrics.json" if split == "test" else f"metrics-{split}.json"
    write_json(run / name, metrics)
    _plot(spec, run / "plots", split, labels, answers)
    return metrics


def features_of(manifest: Mapping[str, Any], features: str | Path | None) -> Path:
    """The features folder to use: the one given, or that of the run.

    Raises:
        UserError: None is given, and the run's is no longer where it was.
    """
    if features is not None:
        return Path(features)
    folder = Path(manifest["features_folder"])
    if not (folder / MANIFEST).is_file():
        raise UserError(
            "The run's features are no longer where they were; --features says where they are.",
            where=str(folder),
            expected=f"a folder with a {MANIFEST}",
            found=f"no {MANIFEST}" if folder.exists() else "no such folder",
            fix="Name their folder: --features FEATURES",
        )
    return folder


def load_trained(folder: Path, manifest: Mapping[str, Any]) -> Spec:
    """The spec of a run or a version, of which the gate and the serving limits may be edited.

    Args:
        folder: The run or version.
        manifest: Its manifest.

    Raises:
        UserError: What its features or its training depend on was edited; the export, into which
            the blend goes too, is not of that spec.
    """
    spec = load(folder / "spec.yaml")
    for section in ("features", "model"):
        require_fingerprint(
            manifest,
            section,
            spec,
            where=folder,
            own=TRAINED,
            fix=f"Take the edits of {folder / 'spec.yaml'} back, or train by that spec into "
            "another folder. What may be edited is the gate, and `serve` save its blend.",
        )
    return spec


def check_features(spec: Spec, folder: Path) -> dict[str, Any]:
    """The manifest of a features folder that was built from this spec.

    Raises:
        UserError: It was built from another.
    """
    manifest = read_manifest(folder, "features")
    require_fingerprint(
        manifest,
        "features",
        spec,
        where=folder,
        fix="Train by the spec of the features, with each --set that `recsys features` was given, "
        "or build them again: recsys features SPEC --input IN --output FEATURES",
    )
    return manifest


def evaluate_other(
    manifest: Mapping[str, Any],
    spec: Spec,
    export: Path,
    features: Path,
    split: str,
    model: Any = None,
) -> dict[str, Any]:
    """Metrics of a model of the same feature spec, on features that it may not have been made with.

    Where its ids mean other tokens than the examples', it reads the rows' raw columns through its
    own transform graph.

    Args:
        manifest: Of the run or version.
        spec: Its spec.
        export: Its SavedModel.
        features: The features folder.
        split: train, validation or test.
        model: The SavedModel, where it is loaded already.

    Raises:
        UserError: The model has other ids, and the folder has no raw columns of the split.
    """
    theirs = read_manifest(features, "features")
    raw = not same_learned(manifest, theirs)
    if raw and not has_raw(features, split):
        require_learned(
            manifest,
            theirs,
            where=features,
            fix="Compare the two by their own metrics.json, or on the test split, of which the "
            "feature job keeps the raw columns.",
        )
    return _evaluate_model(spec, export, features, split, raw, model)[0]


def _champion_metrics(champion: Path, spec: Spec, features: Path, split: str) -> dict[str, Any]:
    version = (champion / "saved_model.pb").is_file()
    manifest = read_manifest(champion, "model" if version else "run")
    theirs = load_trained(champion, manifest)
    require_fingerprint(
        manifest,
        "features",
        spec,
        where=champion,
        fix="A champion of another feature spec reads other examples: compare the two by "
        "their own metrics.json.",
    )
    _refuse_seen(theirs, champion, split)
    export = champion if version else champion / EXPORT
    return {"path": str(champion), **evaluate_other(manifest, theirs, export, features, split)}


def _evaluate_model(
    spec: Spec, export: Path, features: Path, split: str, raw: bool = False, model: Any = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]], NDArray[Any]]:
    found = predict(spec, export, features, split, raw, model)
    answers, labels, users = found.answers, found.labels, found.users
    tasks = measure(spec, labels, answers, users)
    metrics: dict[str, Any] = {"split": split, "rows": len(labels), "tasks": tasks, "slices": {}}
    for feature, values in found.slices.items():
        metrics["slices"][feature] = _by_slice(spec, values, labels, answers, users)
    return metrics, answers, labels


def _by_slice(
    spec: Spec,
    values: NDArray[Any],
    labels: NDArray[Any],
    answers: Mapping[str, NDArray[Any]],
    users: NDArray[Any],
) -> dict[str, Any]:
    names, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[: spec.evaluate.largest]
    return {
        str(names[which]): {
            "rows": int(counts[which]),
            "tasks": measure(
                spec,
                labels[rows],
                {name: answer[rows] for name, answer in answers.items()},
                users[rows],
            ),
        }
        for which in largest
        for rows in [np.flatnonzero(index == which)]
    }


def load_numeric(export: Path) -> Any:
    """The numeric signature of a SavedModel.

    Raises:
        UserError: It is missing or damaged.
    """
    return _load_signature(export, "numeric")


def _load_signature(export: Path, name: str, model: Any = None) -> Any:
    import tensorflow as tf

    try:
        if model is None:
            model = tf.saved_model.load(str(export))
        signature = model.signatures[name]
    except Exception as error:  # TensorFlow raises as many kinds as there are damages
        raise UserError(
            "An exported model cannot be loaded.",
            where=str(export),
            expected=f"a SavedModel with the signature `{name}`",
            found=kind_and_line(error),
            fix="Train again.",
        ) from error
    # The signature holds no reference to the model, which owns its variables.
    signature.owner = model
    return signature


class Predicted(NamedTuple):
    """What a model answers for a split's rows, in the order of its files.

    Attributes:
        answers: By output name, float32 [rows].
        labels: float32 [rows, tasks].
        users: Hashes of the users' keys, [rows].
        slices: By feature, text [rows].
    """

    answers: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    users: NDArray[Any]
    slices: dict[str, NDArray[Any]]


def predict(
    spec: Spec, export: Path, features: Path, split: str, raw: bool = False, model: Any = None
) -> Predicted:
    """A split's rows through an exported model.

    Args:
        spec: The model's spec.
        export: The SavedModel.
        features: The features folder.
        split: train, validation or test.
        raw: Read the rows' raw columns, through the model's own transform graph.
        model: The SavedModel, where it is loaded already.

    Raises:
        UserError: The model or the examples are damaged, or the split is empty.
    """
    import tensorflow as tf

    signature = _load_signature(export, "serving_default" if raw else "numeric", model)
    examples = open_split(spec, features, split)
    labels = [label_column(task.name) for task in spec.tasks]
    slices = [slice_column(name) for name in spec.evaluate.slices]
    where = f"examples/{split}"
    parts: dict[str, list[Any]] = {
        name: [] for name in (*output_names(spec), "labels", "users", *slices)
    }
    for table, columns in _read_inputs(spec, features, examples, [*labels, USER_KEY, *slices], raw):
        for start in range(0, len(table), SCORE_BATCH):
            batch = {
                name: tf.constant(column[start : start + SCORE_BATCH])
                for name, column in columns.items()
            }
            answers = signature(**batch)
            for name in output_names(spec):
                parts[name].append(answers[name].numpy())
        parts["labels"].append(np.stack([to_numpy(table, n, where) for n in labels], axis=1))
        parts["users"].append(hash_keys(table, USER_KEY))
        for name in slices:
            parts[name].append(np.asarray(table.column(name).to_pylist(), dtype=object).astype(str))
    if not parts["labels"]:
        raise UserError(
            "The split has no rows, so there is nothing to evaluate.",
            where=f"{features}/examples/{split}",
            fix="Change data.split in the spec.",
        )
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    found = {name: joined[name] for name in output_names(spec)}
    for name, answer in found.items():
        bad = int((~np.isfinite(answer)).sum())
        if bad:
            raise UserError(
                "A model answers what is no number.",
                where=f"{export}, rows of {where}",
                expected="finite answers",
                found=f"`{name}` is NaN or infinite in {bad} of {len(answer)} rows",
                fix="Look for numbers that are too large for train.precision (scale: none), or "
                "train again with lower learning rates.",
            )
    by_slice = {name: joined[slice_column(name)] for name in spec.evaluate.slices}
    return Predicted(found, joined["labels"], joined["users"], by_slice)


def _read_inputs(
    spec: Spec, features: Path, examples: Split, others: list[str], raw: bool
) -> Iterator[tuple[pa.Table, dict[str, NDArray[Any]]]]:
    """A split's other columns, and beside them the inputs of a signature, by argument."""
    if not raw:
        inputs = [item.name for item in model_inputs(spec)]
        where = f"examples/{examples.name}"
        for _, table in read_columns(examples, [*inputs, *others]):
            yield table, {name: to_numpy(table, name, where) for name in inputs}
        return
    arguments = argument_names(column.name for column in raw_columns(spec))
    known = read_columns(examples, others)
    beside = read_columns(open_raw(features, examples), list(arguments))
    for (_, table), (_, source) in zip(known, beside, strict=True):
        yield (
            table,
            {
                argument: source.column(name).combine_chunks().to_numpy(zero_copy_only=False)
                for name, argument in arguments.items()
            },
        )


def _plot(
    spec: Spec, folder: Path, split: str, labels: NDArray[Any], answers: Mapping[str, Any]
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for index, task in enumerate(spec.tasks):
        if task.is_regression:
            continue
        order = np.argsort(answers[task.name], kind="stable")
        bins = [part for part in np.array_split(order, 20) if part.size]
        predicted = [float(answers[task.name][part].mean()) for part in bins]
        happened = [float(labels[part, index].mean()) for part in bins]
        figure, axes = pyplot.subplots(figsize=(4, 4))
        most = max(*predicted, *happened, 1e-6)
        axes.plot([0, most], [0, most], color="gray", linewidth=1)
        axes.plot(predicted, happened, marker="o")
        axes.set_xlabel(f"predicted p({task.name})")
        axes.set_ylabel("share of rows")
        axes.set_title(f"{spec.name}: {task.name}, {split}, 20 bins of equally many rows")
        axes.title.set_fontsize(8)
        figure.tight_layout()
        figure.savefig(folder / f"calibration-{task.name}-{split}.png", dpi=110)
        pyplot.close(figure)


def stored_metrics(run: Path) -> dict[str, Any] | None:
    """The test metrics that a run already has, or None."""
    return read_json(run / "metrics.json") if (run / "metrics.json").is_file() else None
