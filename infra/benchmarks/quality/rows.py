"""A features folder as plain arrays: the same rows and features for every peer.

Written once into a folder: `{train,validation,test}.npz` with ids, numbers and labels, and
`columns.json` that says what they are. Ids are as the feature job made them. A list of ids
becomes its first two values, a column each; a piecewise number becomes the sum of its bins,
which grows with the number; numbers are standardised by the training rows. Histories are left
out: none of the peers that are compared here takes a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.artifacts import read_manifest, write_folder, write_json
from recsys.spec.records import History, Spec
from recsys.spec.schema import (
    SPLITS,
    ModelInput,
    encoding_of,
    feature_inputs,
    label_column,
    slice_column,
)
from recsys.spec.schema import USER_KEY as USER
from recsys.spec.schema import raw_columns as raw

VALUES_OF_A_LIST = 2


@dataclass
class Keys:
    """What a split's metrics need beside predictions.

    Attributes:
        labels: float32 [rows, tasks].
        users: int64 [rows], a code each.
        slice: bool [rows]: rows of the slice that is reported apart.
        slice_name: Such as `tab=1`; empty where the spec has no slices.
    """

    labels: NDArray[np.float32]
    users: NDArray[np.int64]
    slice: NDArray[np.bool_]
    slice_name: str


def parts(features: Path, split: str) -> list[Path]:
    """The split's files, in the order of their rows."""
    return sorted((features / "examples" / split).glob("part-*.parquet"))


def read(features: Path, split: str, columns: list[str]) -> pa.Table:
    """Columns of a split, in the order in which all predictions are made."""
    return pa.concat_tables(
        [pq.read_table(part, columns=columns) for part in parts(features, split)]
    )


def read_keys(spec: Spec, features: Path, split: str) -> Keys:
    """Labels, users, and the slice: the largest value of the first sliced feature in test."""
    tasks = [label_column(task.name) for task in spec.tasks]
    sliced = [slice_column(name) for name in spec.evaluate.slices[:1]]
    table = read(features, split, [*tasks, USER, *sliced])
    labels = np.stack([table.column(name).to_numpy() for name in tasks], axis=1)
    users = np.unique(table.column(USER).to_numpy(zero_copy_only=False), return_inverse=True)[1]
    within, name = np.zeros(len(table), bool), ""
    if sliced:
        test = read(features, "test", sliced).column(0).to_numpy(zero_copy_only=False)
        values, counts = np.unique(test.astype(str), return_counts=True)
        value = values[np.argmax(counts)]
        within = table.column(sliced[0]).to_numpy(zero_copy_only=False).astype(str) == value
        name = f"{spec.evaluate.slices[0]}={value}"
    return Keys(labels, users.astype(np.int64), within, name)


def write_shared(spec: Spec, features: Path, folder: Path) -> None:
    """Write the shared rows of a features folder."""
    tables = read_manifest(features, "features")["tables"]
    computed = {column.name for column in raw(spec) if column.computed}
    inputs = [
        item
        for item in feature_inputs(spec)
        if not isinstance(spec.feature(item.name).encode, History)
    ]
    described: dict[str, list[dict[str, Any]]] = {"ids": [], "numbers": []}
    for item in inputs:
        feature = spec.feature(item.name)
        kind = "ids" if item.kind in ("id", "ids") else "numbers"
        column: dict[str, Any] = {
            "name": item.name,
            "owner": feature.owner,
            "computed": item.name in computed,
        }
        if kind == "ids":
            column["rows"] = item.buckets + 1 if item.buckets else tables[item.table]
            column["ordered"] = encoding_of(feature).kind == "quantiles"
        times = min(VALUES_OF_A_LIST, item.length) if item.kind == "ids" else 1
        described[kind] += [column] * times
    widths = {
        "dim": spec.model.dim,
        "shared": list(spec.model.shared),
        "towers": list(spec.model.towers),
    }
    tasks = [{"name": task.name, "given": task.given} for task in spec.tasks]
    scale: tuple[NDArray[Any], NDArray[Any]] | None = None
    with write_folder(folder) as aside:
        for split in SPLITS:
            table = read(features, split, [item.name for item in inputs])
            columns = [(item, _values(table, item)) for item in inputs]
            ids = _stack([v for i, v in columns if i.kind in ("id", "ids")], len(table), np.int32)
            numbers = _stack(
                [v for i, v in columns if i.kind in ("number", "numbers")], len(table), np.float32
            )
            if scale is None:
                scale = numbers.mean(0), numbers.std(0) + 1e-6
            numbers = ((numbers - scale[0]) / scale[1]).astype(np.float32)
            labels = read_keys(spec, features, split).labels
            np.savez(aside / f"{split}.npz", ids=ids, numbers=numbers, labels=labels)
        write_json(aside / "columns.json", {**described, "tasks": tasks, "widths": widths})


def _values(table: pa.Table, item: ModelInput) -> NDArray[Any]:
    """[rows, columns] of one model input."""
    column = table.column(item.name).combine_chunks()
    if item.kind in ("id", "number"):
        values = column.to_numpy(zero_copy_only=False)[:, None]
    else:
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), item.length)
    if item.kind == "numbers":
        return values.sum(axis=1, keepdims=True)
    if item.kind == "number":
        return values
    values = np.maximum(values[:, :VALUES_OF_A_LIST], 0)
    # With several hashes an id is a long one, of which a table row is made by the model.
    return np.where(values > 0, (values - 1) % item.buckets + 1, 0) if item.buckets else values


def _stack(columns: list[NDArray[Any]], rows: int, dtype: Any) -> NDArray[Any]:
    if not columns:
        return np.zeros((rows, 0), dtype)
    return np.concatenate(columns, axis=1).astype(dtype)
