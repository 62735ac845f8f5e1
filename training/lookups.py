"""How each model input is made from its raw value, in words that any language can follow.

Everything is read from the model's own SavedModel: the vocabularies from its assets, and
learned numbers from the operations of its transform graph that `recsys.spec.schema.learned_name`
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.spec.records import (
    Counter,
    Feature,
    Hash,
    History,
    Numeric,
    Piecewise,
    Quantiles,
    Spec,
    Vocabulary,
)
from recsys.spec.schema import (
    COUNTED,
    LIST_SEPARATOR,
    NUMBER,
    PADDING,
    WHITESPACE,
    ModelInput,
    RawColumn,
    counted_by,
    encoding_of,
    feature_inputs,
    learned_name,
    model_inputs,
    raw_columns,
    table_rows,
    vocabulary_name,
    weights_of,
)

HASH = "farmhash_fingerprint64"
"""What `tf.strings.to_hash_bucket_fast` computes, and `farmHashFingerprint64` of Guava."""

_REBUILD = "Build the features again and train on them: recsys features, recsys train"


def read_vocabularies(spec: Spec, export: Path) -> dict[str, list[str]]:
    """Tokens of each vocabulary that a SavedModel carries, by embedding table, in id order.

    Raises:
        UserError: The SavedModel lacks a vocabulary of the spec, or holds one that is damaged.
    """
    found: dict[str, list[str]] = {}
    for feature in spec.features:
        if isinstance(feature.encode, Vocabulary) and feature.table_name not in found:
            path = export / "assets" / vocabulary_name(feature.table_name)
            try:
                # Split at line feeds alone: a token may hold other separators of lines.
                lines = path.read_bytes().decode("utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"The vocabulary of table `{feature.table_name}` cannot be read.",
                    where=str(path),
                    expected="a text file among the assets of the exported model",
                    found=str(error),
                    fix=_REBUILD,
                ) from error
            found[feature.table_name] = lines[:-1] if lines[-1] == "" else lines
    return found


def vocabulary_tables(spec: Spec, vocabularies: Mapping[str, list[str]]) -> dict[str, int]:
    """Rows of each embedding table of a model with these vocabularies."""
    return table_rows(spec, lambda table: len(vocabularies[table]))


def describe(
    spec: Spec,
    transform_fn: Any,
    vocabularies: Mapping[str, list[str]],
    counters: Mapping[str, Mapping[str, Any]],
) -> list[Any]:
    """One record a model input, in the order of the spec, as `lookup.json` holds them.

    Args:
        spec: The spec.
        transform_fn: The transform graph, as a loaded SavedModel has it.
        vocabularies: Tokens by embedding table.
        counters: What the manifest of the features says of each counter.

    Raises:
        UserError: The graph does not hold the learned numbers under their names.
    """
    learned = _Learned(spec, transform_fn)
    columns = {column.name: column for column in raw_columns(spec)}
    records = [
        _input(spec, feature, item, columns, vocabularies, learned)
        for feature, item in zip(spec.features, feature_inputs(spec), strict=True)
    ]
    by = counted_by(spec)
    for record in records:
        if record["raw"]["computed_by_feature_job"] == "counter":
            name = record["raw"]["column"]
            record["raw"] |= {
                "by": list(by[name]),
                "table": f"counter-{name}.parquet",
                "value": COUNTED,
                "default": counters.get(name, {}).get("default"),
            }
    made = {record["name"]: record for record in records}
    for item in model_inputs(spec)[len(records) :]:
        records.append(_weights(spec.feature(str(item.weighs)), item, columns, made))
    return records


def _weights(
    feature: Feature,
    item: ModelInput,
    columns: Mapping[str, RawColumn],
    made: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """How the weights of a list's parts are made: split as the list itself."""
    split = made[feature.name]["split"]
    return {
        "name": item.name,
        "dtype": "float32",
        "shape": [None, item.length],
        "raw": _raw(columns[str(weights_of(feature))]) | {"number": NUMBER},
        "split": split | {"padding": 1.0},
        "kind": "weights",
        "list": None if split["separator"].isspace() else made[feature.name]["raw"]["column"],
        "missing": 1.0,
    }


def _raw(column: RawColumn) -> dict[str, Any]:
    return {
        "column": column.name,
        "type": "text" if column.dtype == "string" else "number",
        "owner": column.owner,
        "computed_by_feature_job": column.computed,
    }


def _input(
    spec: Spec,
    feature: Feature,
    item: ModelInput,
    columns: Mapping[str, RawColumn],
    vocabularies: Mapping[str, list[str]],
    learned: _Learned,
) -> dict[str, Any]:
    computed = isinstance(feature.encode, History | Counter)
    raw = columns[feature.name if computed else feature.raw]
    record: dict[str, Any] = {
        "name": item.name,
        "dtype": "int32" if item.kind in ("id", "ids") else "float32",
        "shape": [None] if item.kind in ("id", "number") else [None, item.length],
        "raw": _raw(raw),
    }
    encode = encoding_of(feature)
    if isinstance(encode, Vocabulary | Hash | History):
        holder = spec.feature(encode.of) if isinstance(encode, History) else feature
        if feature.is_list:
            record["split"] = {
                "separator": LIST_SEPARATOR
                if isinstance(encode, History)
                else feature.separator or LIST_SEPARATOR,
                "strip": "" if isinstance(encode, History) else WHITESPACE,
                "max_length": item.length,
                "padding": PADDING,
            }
        return record | _ids(holder, vocabularies)
    if raw.dtype == "string":
        record["raw"]["number"] = NUMBER
    if isinstance(encode, Quantiles):
        boundaries = _numbers(learned(feature.name, "boundaries"))
        return record | {"kind": "quantiles", "boundaries": boundaries, "missing": 0}
    if isinstance(encode, Piecewise):
        edges = _numbers(learned(feature.name, "edges"))
        return record | {"kind": "piecewise", "edges": edges, "missing": 0.0}
    return record | _scaling(feature.name, encode, learned)


def _ids(holder: Feature, vocabularies: Mapping[str, list[str]]) -> dict[str, Any]:
    encode, table = holder.encode, holder.table_name
    if isinstance(encode, Hash):
        return {
            "kind": "hash",
            "hash": HASH,
            "buckets": encode.buckets,
            "first_row": 1,
            "missing": 0,
        }
    assert isinstance(encode, Vocabulary)
    size = len(vocabularies[table])
    return {
        "kind": "vocabulary",
        "vocabulary": vocabulary_file(table),
        "size": size,
        "first_row": 1,
        "missing": 0,
        "oov": {"hash": HASH, "first_row": 1 + size, "buckets": encode.oov_buckets},
    }


def vocabulary_file(table: str) -> str:
    """Path of a vocabulary below the folder of a converted model."""
    return f"vocabularies/{table}.jsonl"


def _scaling(name: str, encode: Numeric, learned: _Learned) -> dict[str, Any]:
    record = {"kind": "numeric", "log": encode.scale == "log_zscore", "missing": 0.0}
    if encode.scale == "none":
        return record | {"mean": None, "deviation": None}
    mean, variance = (float(learned(name, value)) for value in ("mean", "variance"))
    return record | {"mean": mean, "deviation": float(np.sqrt(variance))}


def _numbers(values: NDArray[Any]) -> list[Any]:
    """Numbers as JSON has them; what is not finite as text."""
    return [
        value if np.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
        for value in values.astype(np.float64).tolist()
    ]


class _Learned:
    """Numbers that the transform graph learned, all read at once."""

    def __init__(self, spec: Spec, transform_fn: Any) -> None:
        self._values = _read_constants(
            transform_fn, [learned_name(f, v) for f, v in _learned_values(spec)]
        )

    def __call__(self, feature: str, value: str) -> NDArray[Any]:
        return self._values[learned_name(feature, value)]


def _learned_values(spec: Spec) -> list[tuple[str, str]]:
    values: list[tuple[str, str]] = []
    for feature in spec.features:
        encode = encoding_of(feature)
        if isinstance(encode, Quantiles):
            values.append((feature.name, "boundaries"))
        elif isinstance(encode, Piecewise):
            values.append((feature.name, "edges"))
        elif isinstance(encode, Numeric) and encode.scale != "none":
            values += [(feature.name, "mean"), (feature.name, "variance")]
    return values


def _read_constants(transform_fn: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    """Values of operations that depend on no input of the graph, by name."""
    import tensorflow as tf

    if not names:
        return {}
    graph = transform_fn.graph
    known = {operation.name for operation in graph.get_operations()}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(
            "The model's transform graph does not name what it learned.",
            where="the transform graph in the SavedModel",
            expected=", ".join(missing),
            found="no operation of that name (features of an earlier version)",
            fix=_REBUILD,
        )
    # What was learned reaches the graph as tensors that it captured; tables are none.
    captured = [(outer, inner) for outer, inner in graph.captures if outer.dtype != tf.resource]
    with tf.Graph().as_default():
        fetches = tf.graph_util.import_graph_def(
            graph.as_graph_def(),
            input_map={inner.name: tf.constant(outer.numpy()) for outer, inner in captured},
            return_elements=[f"{name}:0" for name in names],
        )
        with tf.compat.v1.Session() as session:
            return dict(zip(names, session.run(fetches), strict=True))
