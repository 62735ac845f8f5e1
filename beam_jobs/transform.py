"""The transform graph: raw columns to model inputs, by TF Transform, derived from the spec.

Row 0 of every embedding table stands for a missing value. Analyzers see training rows only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import tensorflow as tf
import tensorflow_transform as tft
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.tfxio.tensor_adapter import TensorAdapterConfig

from beam_jobs import distributions
from beam_jobs.vocabularies import Wanted, learn_vocabularies
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
    LIST_SEPARATOR,
    NUMBER,
    PADDING,
    RawColumn,
    encoding_of,
    learned_name,
    raw_columns,
    table_rows,
    vocabulary_name,
    weights_name,
    weights_of,
)

Tensors = dict[str, tf.Tensor]

# Numbers a row up to which features are encoded together. It bounds the memory of a batch: all
# piecewise bins of hundreds of features at once, several times over, would be gigabytes.
_WIDEST = 512

# Ids of a compositional hash are hashed again by the model: one id, as wide as int32 allows.
WIDE_HASH = 2**31 - 2


def adapter_config(spec: Spec, passthrough: pa.Schema) -> TensorAdapterConfig:
    """How record batches become tensors: one scalar a row for each raw column.

    Args:
        spec: The spec.
        passthrough: Columns that travel beside the transform graph.
    """
    representations = {
        column.name: schema_pb2.TensorRepresentation(
            dense_tensor=schema_pb2.TensorRepresentation.DenseTensor(
                column_name=column.name, shape=schema_pb2.FixedShape()
            )
        )
        for column in raw_columns(spec)
    }
    columns = [pa.field(c.name, arrow_type(c)) for c in raw_columns(spec)]
    return TensorAdapterConfig(pa.schema([*columns, *passthrough]), representations)


def arrow_type(column: RawColumn) -> pa.DataType:
    """The list type in which TF Transform takes a raw column: one value a row."""
    return pa.large_list(pa.large_binary() if column.dtype == "string" else pa.float32())


def raw_feature_spec(spec: Spec) -> dict[str, tf.io.FixedLenFeature]:
    """The raw columns as a feature spec, for parsing tf.Example and for schemas."""
    return {
        column.name: tf.io.FixedLenFeature([], tf.as_dtype(column.dtype))
        for column in raw_columns(spec)
    }


def write_schema(spec: Spec, folder: Path) -> None:
    """Write the tensorflow-metadata schema of the raw columns, for readers and for TF Transform."""
    metadata = tft.DatasetMetadata.from_feature_spec(raw_feature_spec(spec))
    text = text_format.MessageToString(metadata.schema)
    for path in (folder / "schema.pbtxt", folder / "transform" / "metadata" / "schema.pbtxt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def preprocessing_fn(spec: Spec) -> Callable[[Tensors], Tensors]:
    """TF Transform's preprocessing function for a spec.

    The function takes one dense tensor a raw column, [batch], string or float32, and answers
    one tensor a model input, as `recsys.spec.schema.model_inputs` describes them, ids in int64.
    """

    def transform(inputs: Tensors) -> Tensors:
        vocabularies = _vocabularies(spec, inputs)
        numbers = _numbers(spec, inputs)
        made = {
            feature.name: numbers[feature.name]
            if feature.name in numbers
            else _encode(spec, feature, inputs, vocabularies)
            for feature in spec.features
        }
        for feature in spec.features:
            column = weights_of(feature)
            if column is not None:
                made[weights_name(feature.name)] = _weights(
                    inputs[column], inputs[feature.raw], feature
                )
        return made

    return transform


def rows_of_tables(spec: Spec, output: tft.TFTransformOutput) -> dict[str, int]:
    """Rows of each embedding table, from the spec and the learned vocabularies."""
    return table_rows(spec, lambda table: output.vocabulary_size_by_name(vocabulary_name(table)))


# ------------------------------------------------------------------------------------- ids


def _vocabularies(spec: Spec, inputs: Tensors) -> dict[str, tf.Tensor]:
    """One vocabulary a table, over the values of all features that share it."""
    values: dict[str, list[tf.Tensor]] = {}
    wanted: dict[str, Wanted] = {}
    for feature in spec.features:
        encode = feature.encode
        if isinstance(encode, Vocabulary):
            text = inputs[feature.raw]
            parts = tf.reshape(_parts(text, feature), [-1]) if feature.is_list else text
            name = vocabulary_name(feature.table_name)
            values.setdefault(name, []).append(parts)
            wanted.setdefault(name, Wanted(name, encode.min_count, encode.top_k))
    if not wanted:
        return {}
    return learn_vocabularies(
        list(wanted.values()), [tf.concat(values[name], axis=0) for name in wanted]
    )


def _separator(feature: Feature) -> str:
    own = feature.separator if not isinstance(feature.encode, History) else None
    return own or LIST_SEPARATOR


def _parts(text: tf.Tensor, feature: Feature) -> tf.Tensor:
    """The first `max_length` non-empty parts of lists, string [batch, max_length], padded by ''."""
    separator = _separator(feature)
    # Regular expressions rather than ragged masks: the graph is traced five times over, and
    # ragged arithmetic is most of it.
    mark = re.escape(separator)
    plain = separator.replace("\\", r"\\")
    if isinstance(feature.encode, History):
        # Ids as they are: the vocabulary that they are looked up in does not trim its own.
        text = tf.strings.regex_replace(text, rf"{mark}+", plain)
        text = tf.strings.regex_replace(text, rf"^{mark}|{mark}$", "")
    else:
        text = tf.strings.regex_replace(text, rf"\s*{mark}(\s|{mark})*", plain)
        text = tf.strings.regex_replace(text, rf"^(\s|{mark})+|(\s|{mark})+$", "")
    parts = tf.strings.split(text, sep=separator)
    length = feature.encode.max_length  # type: ignore[union-attr]
    return parts.to_tensor("", shape=[None, length])


def _weights(text: tf.Tensor, parts: tf.Tensor, feature: Feature) -> tf.Tensor:
    """What each part of a list weighs, float32 [batch, max_length]; 1 where that is not said."""
    # Between spaces there is no blank.
    runs = _separator(feature).isspace()
    own = _parts(text, feature) if runs else _in_place(text, parts, feature)
    numbers = _number(own, log=False)
    return tf.where(tf.math.is_nan(numbers), 1.0, tf.nn.relu(numbers))


def _in_place(text: tf.Tensor, parts: tf.Tensor, feature: Feature) -> tf.Tensor:
    """The weights of the parts that are not blank, string [batch, max_length], blank ones too.

    A list with as many parts as weights has one for each, and a blank part takes its own along;
    of another length, the weights are those of the parts that are not blank.
    """
    length = feature.encode.max_length  # type: ignore[union-attr]
    weights, owners = (
        tf.strings.split(column, sep=_separator(feature)) for column in (text, parts)
    )
    paired = tf.equal(weights.row_lengths(), owners.row_lengths())
    width = tf.maximum(tf.maximum(weights.bounding_shape(1), owners.bounding_shape(1)), length)
    weights, owners = (
        tf.strings.regex_replace(
            column.to_tensor("", shape=tf.stack([-1, width])), r"^\s+|\s+$", ""
        )
        for column in (weights, owners)
    )
    dropped = paired[:, tf.newaxis] & tf.equal(owners, "")
    kept_first = tf.argsort(tf.cast(dropped, tf.int32), axis=1, stable=True)[:, :length]
    kept = tf.gather(tf.where(dropped, "", weights), kept_first, batch_dims=1)
    return tf.ensure_shape(kept, [None, length])


def _ids(
    text: tf.Tensor, encode: Vocabulary | Hash, table: str, vocabularies: dict[str, tf.Tensor]
) -> tf.Tensor:
    """Rows of the embedding table for strings of any shape; 0 where missing."""
    if isinstance(encode, Hash):
        ids = tft.hash_strings(text, WIDE_HASH if encode.hashes > 1 else encode.buckets)
    else:
        ids = tft.apply_vocabulary(
            text, vocabularies[vocabulary_name(table)], num_oov_buckets=encode.oov_buckets
        )
    return tf.where(tf.equal(text, ""), tf.zeros_like(ids), ids + 1)


def _encode(
    spec: Spec, feature: Feature, inputs: Tensors, vocabularies: dict[str, tf.Tensor]
) -> tf.Tensor:
    encode = encoding_of(feature)
    holder = spec.feature(encode.of) if isinstance(encode, History) else feature
    text = inputs[feature.name if isinstance(encode, History) else feature.raw]
    if not feature.is_list:
        return _ids(text, holder.encode, holder.table_name, vocabularies)  # type: ignore[arg-type]
    dense = _parts(text, feature)
    ids = _ids(dense, holder.encode, holder.table_name, vocabularies)  # type: ignore[arg-type]
    return tf.where(tf.equal(dense, ""), tf.constant(PADDING, ids.dtype), ids)


# --------------------------------------------------------------------------------- numbers


def _numbers(spec: Spec, inputs: Tensors) -> Tensors:
    """The features that are numbers, by name.

    All that they learn is learned at once, and those encoded alike are encoded together: a graph
    of a dozen operations for each of hundreds of features takes long to trace, load and run.
    """
    columns: dict[tuple[str, bool], tf.Tensor] = {}
    plain: dict[str, int] = {}
    groups: list[tuple[type, dict[str, distributions.Wanted]]] = []
    latest: dict[tuple[type, int], dict[str, distributions.Wanted]] = {}
    for feature in spec.features:
        encode = encoding_of(feature)
        if not isinstance(encode, Numeric | Piecewise | Quantiles):
            continue
        name = feature.name if isinstance(feature.encode, Counter) else feature.raw
        log = isinstance(encode, Numeric) and encode.scale == "log_zscore"
        if (name, log) not in columns:
            columns[name, log] = _number(inputs[name], log)
        place = list(columns).index((name, log))
        if isinstance(encode, Numeric) and encode.scale == "none":
            plain[feature.name] = place
            continue
        bins = 0
        if not isinstance(encode, Numeric):
            bins = encode.bins if isinstance(encode, Piecewise) else encode.buckets
        wanted = distributions.Wanted(place, bins)
        group = latest.get((type(encode), bins))
        if group is None or len(group) * wanted.size >= _WIDEST:
            group = latest[type(encode), bins] = {}
            groups.append((type(encode), group))
        group[feature.name] = wanted
    if not columns:
        return {}
    matrix = tf.stack(list(columns.values()))
    learned = distributions.learn(matrix, [list(group.values()) for _, group in groups])
    encoded = {name: _filled(matrix[place]) for name, place in plain.items()}
    for (kind, group), numbers in zip(groups, learned, strict=True):
        values = tf.gather(matrix, [wanted.column for wanted in group.values()])
        rows = _ENCODERS[kind](values, numbers, list(group))
        encoded |= zip(group, tf.unstack(rows), strict=True)
    return encoded


def _number(values: tf.Tensor, log: bool) -> tf.Tensor:
    """A column as float32, or as its logarithm; text that is no number is missing."""
    if values.dtype == tf.string:
        fits = tf.strings.regex_full_match(values, NUMBER)
        values = tf.strings.to_number(tf.where(fits, values, "nan"), tf.float32)
        # As text it is a value as any other, so that the row was not refused for its size.
        values = tf.where(tf.math.is_inf(values), float("nan"), values)
    return tf.sign(values) * tf.math.log1p(tf.abs(values)) if log else values


def _filled(values: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_nan(values), 0.0, values)


def _named(features: list[str], name: str, rows: tf.Tensor) -> tf.Tensor:
    """Rows of learned values, each passed on under a name by which it is found in the graph."""
    return tf.stack(
        [
            tf.identity(row, name=learned_name(feature, name))
            for feature, row in zip(features, tf.unstack(rows), strict=True)
        ]
    )


# Encoders take the columns of features that are encoded alike, [features, batch], what was
# learned of each, [features, any], and their names.


def _bucketed(values: tf.Tensor, learned: tf.Tensor, features: list[str]) -> tf.Tensor:
    boundaries = _named(features, "boundaries", tf.cast(learned[:, 1:-1], tf.float32))
    ids = tf.searchsorted(boundaries, _filled(values), side="right", out_type=tf.int64)
    return tf.where(tf.math.is_nan(values), tf.zeros_like(ids), ids + 1)


def _scaled(values: tf.Tensor, learned: tf.Tensor, features: list[str]) -> tf.Tensor:
    mean = _named(features, "mean", learned[:, 0])[:, tf.newaxis]
    spread = tf.sqrt(_named(features, "variance", learned[:, 1]))[:, tf.newaxis]
    wide = tf.cast(values, tf.float64) - mean
    return _filled(tf.cast(tf.math.divide_no_nan(wide, spread), tf.float32))


def _piecewise(values: tf.Tensor, learned: tf.Tensor, features: list[str]) -> tf.Tensor:
    """How full each quantile bin is: 0 below it, 1 above it, linear within; 0 where missing."""
    edges = _named(features, "edges", tf.cast(learned, tf.float32))[:, tf.newaxis, :]
    begin, width = edges[..., :-1], edges[..., 1:] - edges[..., :-1]
    gap = values[..., tf.newaxis] - begin
    # A bin without width (many equal values) is a step.
    step = tf.cast(gap >= 0.0, tf.float32)
    fill = tf.where(width > 0.0, tf.math.divide_no_nan(gap, width), step)
    return tf.where(tf.math.is_nan(fill), 0.0, tf.clip_by_value(fill, 0.0, 1.0))


_ENCODERS: dict[type, Callable[[tf.Tensor, tf.Tensor, list[str]], tf.Tensor]] = {
    Numeric: _scaled,
    Piecewise: _piecewise,
    Quantiles: _bucketed,
}
