"""Start from another run: dense weights as they are, rows of tables by token.

Vocabularies are learned anew by every feature job, so a token's row may move. Rows follow
their tokens, and what the optimizers remember follows the rows. The result is a checkpoint
of step 0 in the new run's folder, which every worker, and a resumed run, starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.artifacts import read_manifest
from recsys.errors import UserError
from recsys.spec import differences, load
from recsys.spec.places import values_by_place
from recsys.spec.records import Spec
from training.checkpoints import Store
from training.evaluation import EXPORT
from training.lookups import read_vocabularies, vocabulary_tables
from training.loop import CHECKPOINTS, REFIT

# What may differ between the runs: it changes neither a shape nor what a weight means.
_LEARNED = ("min_count", "top_k")
_TRAINING_ONLY = ("dropout", "embedding_dropout", "recompute", "xla")

FRESH = -1
"""Source of a row that the other run does not have."""


def check_source(spec: Spec, source: Path) -> dict[str, Any]:
    """The manifest of a run that a model of this spec can start from.

    Raises:
        UserError: It is no finished run, has no checkpoints, or its spec differs in what
            shapes the model: features (save `min_count` and `top_k`), tasks, or `model` (save
            dropout, recomputation and XLA).
    """
    manifest = read_manifest(source, "run")
    ours, theirs = _shape(spec), _shape(load(source / "spec.yaml"))
    named = differences(ours, theirs)
    if named:
        raise UserError(
            "The run to start from has a model of another shape.",
            where=str(source / "spec.yaml"),
            expected=named[0],
            found=named[1],
            fix="Make these alike in the spec, or train without --warm-start.",
        )
    if not _store(source).names():
        raise UserError(
            "The run to start from has no checkpoints.",
            where=str(_store(source).folder),
            expected="the checkpoints that training left",
            found="none",
            fix="Name a run whose folder is whole, or train without --warm-start.",
        )
    return manifest


def seen_validation(source: Path, features: Mapping[str, Any]) -> str | None:
    """A warning where validation begins before the end of what the other run was trained on.

    Args:
        source: The run to start from.
        features: The manifest of the features to train on.
    """
    splits = ["train", *(["validation"] if load(source / "spec.yaml").train.refit else [])]
    theirs = read_manifest(source, "run")["trained"].get("time_range") or {}
    ends = [theirs[split][1] for split in splits if theirs.get(split)]
    ours = (features.get("time_range") or {}).get("validation")
    if not ends or not ours or ours[0] > max(ends):
        return None
    return (
        f"validation begins at {_moment(ours[0])}, and the run to start from was trained on rows "
        f"to {_moment(max(ends))}: what it has seen of them flatters validation"
    )


def _moment(milliseconds: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(milliseconds=milliseconds)).isoformat(" ", "seconds")


def _store(source: Path) -> Store:
    """The checkpoints with the weights that a run serves."""
    refit = load(source / "spec.yaml").train.refit
    return Store(source / (REFIT if refit else CHECKPOINTS))


def _shape(spec: Spec) -> dict[str, Any]:
    """What shapes a model, by its place in the spec."""
    left_out = [f"model.{name}" for name in _TRAINING_ONLY]
    left_out += [f"features.{f.name}.encode.{name}" for f in spec.features for name in _LEARNED]
    shape = {
        place: value
        for place, value in values_by_place(spec).items()
        if place.split(".")[0] in ("features", "model") or place == "tasks"
        if place not in left_out
    }
    for task in spec.tasks:
        shape[f"tasks.{task.name}.given"] = task.given
        shape[f"tasks.{task.name}.joint"] = task.space == "joint"
        shape[f"tasks.{task.name}.regression"] = task.is_regression
        shape[f"tasks.{task.name}.loss.log"] = task.by_logarithm
    return shape


def start_from(
    spec: Spec,
    features: Path,
    tables: Mapping[str, int],
    source: Path,
    warn: Callable[[str], None] | None = None,
) -> tuple[Any, dict[str, dict[str, int]], int]:
    """A model of this spec with the best weights of a run, as `check_source` let pass.

    Args:
        spec: The spec.
        features: The features folder, whose transform graph holds the new vocabularies.
        tables: Rows of each of its embedding tables.
        source: The run to start from. Its vocabularies are those of its own export.
        warn: Told of damaged checkpoints.

    Returns:
        The model, with its optimizer's state; `kept`, `new` and `dropped` rows by table
        (rows for missing values, out-of-vocabulary rows and buckets count as well); and the
        steps that the run had taken.

    Raises:
        UserError: A vocabulary or a checkpoint cannot be read.
    """
    from recsys.model import build
    from recsys.optimizers import create_slots, parts

    theirs = load(source / "spec.yaml")
    old_words = read_vocabularies(theirs, source / EXPORT)
    new_words = read_vocabularies(spec, features / "transform" / "transform_fn")
    old_tables = vocabulary_tables(theirs, old_words)
    old = build(theirs, old_tables)
    # Values of slots are read into slots that exist.
    create_slots(old.optimizer)
    _store(source).restore_best(old, warn)
    model = build(spec, tables)
    create_slots(model.optimizer)

    sources = {
        table: row_sources(rows, old_words.get(table), new_words.get(table))
        for table, rows in tables.items()
    }
    pairs = list(_pairs(model, old))
    for new, before, places in pairs:
        _copy(new, before, places, sources)
    if model.label_units is not None:
        # What the old weights say is meant in the old unit.
        model.label_units.assign(old.label_units)
    olds = {new.ref(): (before, places) for new, before, places in pairs}
    for (mine, variables), (other, _) in zip(
        parts(model.optimizer), parts(old.optimizer), strict=True
    ):
        # Steps count from 0: the learning rates of the new run follow their own schedule.
        for new in variables:
            before, places = olds[new.ref()]
            for name in mine.get_slot_names():
                _copy(mine.get_slot(new, name), other.get_slot(before, name), places, sources)
    counts = {
        table: {
            "kept": int((rows != FRESH).sum()),
            "new": int((rows == FRESH).sum()),
            "dropped": old_tables[table] - int((rows != FRESH).sum()),
        }
        for table, rows in sources.items()
    }
    return model, counts, int(old.optimizer.iterations)


def row_sources(
    rows: int, old: list[str] | None = None, new: list[str] | None = None
) -> NDArray[np.int64]:
    """Row of the other run's table for each row of a new table, `FRESH` where it has none.

    Args:
        rows: Rows of the new table.
        old: The other run's vocabulary; None where the table has none, and rows keep their
            places.
        new: The new vocabulary.

    Returns:
        int64 [rows]. The first row (missing) and the out-of-vocabulary rows map by index.

    >>> row_sources(6, ["a", "b"], ["b", "c", "a"]).tolist()
    [0, 2, -1, 1, 3, 4]
    """
    if old is None or new is None:
        return np.arange(rows)
    at = {token: row for row, token in enumerate(old, 1)}
    words = [at.get(token, FRESH) for token in new]
    beyond = np.arange(rows - 1 - len(new)) + 1 + len(old)
    return np.concatenate([[0], words, beyond]).astype(np.int64)


Places = dict[str, tuple[int, int]]
"""First row of each table in the new variable and in the old one."""


def _pairs(model: Any, old: Any) -> Iterator[tuple[Any, Any, Places]]:
    """Variables of the two models that mean the same, and the tables that lie in them.

    The state of loss balancing and of loss scaling is none of them: it starts anew.
    """
    for ours, theirs in zip(model.networks, old.networks, strict=True):
        places = {}
        for layer, before in zip(_embeddings(ours), _embeddings(theirs), strict=True):
            places[layer.table.ref()] = {
                table: (layer.offset(table), before.offset(table)) for table in layer.tables
            }
        if ours.position_tower is not None:
            table = model.spec.feature(model.spec.model.position).table_name
            places[ours.position_tower.logits.ref()] = {table: (0, 0)}
        for new, before in zip(ours.variables, theirs.variables, strict=True):
            yield new, before, places.get(new.ref(), {})


def _embeddings(network: Any) -> list[Any]:
    layers = [network.groups[name] for name in sorted(network.groups)]
    return layers if network.first_order is None else [*layers, network.first_order]


def _copy(new: Any, old: Any, places: Places, sources: Mapping[str, NDArray[np.int64]]) -> None:
    """Copy a variable, or move its rows, which lie along its first axis."""
    before = old.numpy()
    if not places:
        new.assign(before)
        return
    values = new.numpy()
    for table, (at, from_) in places.items():
        rows = np.flatnonzero(sources[table] != FRESH)
        values[at + rows] = before[from_ + sources[table][rows]]
    new.assign(values)
