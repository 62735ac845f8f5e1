"""What derives from a spec: raw columns, example columns, model inputs and outputs.

The feature job writes by these records, training reads by them, and the service builds its
request schema from them, so that a feature or a task is named in the spec alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from recsys.spec.records import (
    Counter,
    Feature,
    Hash,
    History,
    Piecewise,
    Quantiles,
    Spec,
    Vocabulary,
)

Owner = Literal["user", "item", "context"]

LIST_SEPARATOR = ","
"""Joins the parts of histories and of Parquet list columns in a raw string column."""

PADDING = -1
"""Fills the tail of a list of ids."""

WHITESPACE = "\t\n\f\r "
"""What the transform graph strips off the parts of a list, histories aside."""

NUMBER = r"^[\t\n\f\r ]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?[\t\n\f\r ]*$"
"""Text that is a number, where a text column is read as one too; any other is missing.

Without `\\s` and `\\d`, which mean something else in each language.
"""

SCORE = "score"
"""Name of the blend of all tasks in the answers."""

SPLITS = ("train", "validation", "test")
"""The splits of the rows, each a folder of the examples; the feature job numbers them by place."""

USER_KEY = "key:user"
REQUEST_KEY = "key:request"
TIME = "key:time"
WEIGHT = "key:weight"
"""Example column with how much a row counts in training (float32), where the spec names one."""
OWNER_KEY = "key:owner"
"""Column of the serving tables with the id of a row's user or item, as no raw column is named."""
COUNTED = "key:value"
"""Column of the serving tables of counters with the number."""
RESERVED = "key:"
"""What no raw column's name begins with."""


def label_column(task: str) -> str:
    """Example column of a task's label (float32)."""
    return f"label:{task}"


def slice_column(feature: str) -> str:
    """Example column of the raw value (string) by which metrics are cut."""
    return f"slice:{feature}"


@dataclass(frozen=True)
class RawColumn:
    """A raw input of the transform graph: one scalar a row, a string or a float32.

    Ids, categories and lists are strings ('' where missing); numbers are float32 (NaN where
    missing). `computed` columns (histories, counters) are made by the feature job.
    """

    name: str
    dtype: Literal["string", "float32"]
    owner: Owner
    computed: Literal["", "history", "counter"] = ""

    @property
    def default(self) -> str | float:
        """The value that stands for a missing one."""
        return "" if self.dtype == "string" else float("nan")


@dataclass(frozen=True)
class ModelInput:
    """A numeric input of the model, as the transform graph makes it.

    `id`: int32 [batch]; `ids`: int32 [batch, length], tail filled with -1; `number`: float32
    [batch]; `numbers`: float32 [batch, length]. `weighs` names the list whose parts the numbers
    weigh.
    """

    name: str
    kind: Literal["id", "ids", "number", "numbers"]
    length: int
    table: str | None
    combiner: Literal["mean", "sum", "history"] = "mean"
    buckets: int = 0
    hashes: int = 1
    weighs: str | None = None


def encoding_of(feature: Feature) -> Any:
    """The encoding of the feature's value; a counter is encoded `as` a number."""
    return feature.encode.as_ if isinstance(feature.encode, Counter) else feature.encode


def vocabulary_name(table: str) -> str:
    """Name of the vocabulary (and of its file among the assets) of an embedding table."""
    return f"vocabulary_{table}"


def learned_name(feature: str, value: str) -> str:
    """Name of the operation of the transform graph that holds a value learned for a feature.

    `mean` and `variance` of a scaled number, `boundaries` of quantile buckets, `edges` of
    piecewise bins.
    """
    return f"learned/{feature}/{value}"


def table_rows(spec: Spec, vocabulary_size: Callable[[str], int]) -> dict[str, int]:
    """Rows of each embedding table, from the spec and the sizes of the vocabularies.

    Args:
        spec: The spec.
        vocabulary_size: Tokens of a table's vocabulary.
    """
    rows: dict[str, int] = {}
    for feature in spec.features:
        encode = encoding_of(feature)
        if isinstance(encode, Vocabulary):
            count = 1 + vocabulary_size(feature.table_name) + encode.oov_buckets
        elif isinstance(encode, Hash | Quantiles):
            count = 1 + encode.buckets
        else:
            continue
        rows[feature.table_name] = max(rows.get(feature.table_name, 0), count)
    return rows


def raw_columns(spec: Spec) -> tuple[RawColumn, ...]:
    """The transform graph's raw inputs, each once, in the order of the spec."""
    columns: dict[str, RawColumn] = {}
    for feature in spec.features:
        encode = feature.encode
        if isinstance(encode, History):
            column = RawColumn(feature.name, "string", feature.owner, "history")
        elif isinstance(encode, Counter):
            column = RawColumn(feature.name, "float32", feature.owner, "counter")
        else:
            text = isinstance(encode, Vocabulary | Hash)
            column = RawColumn(feature.raw, "string" if text else "float32", feature.owner)
        read = [column]
        if weights_of(feature):
            read.append(RawColumn(str(weights_of(feature)), "string", feature.owner))
        for column in read:
            # Two features may read one column differently; text carries both.
            known = columns.get(column.name)
            if known is None or (known.dtype != column.dtype and column.dtype == "string"):
                columns[column.name] = column
    return tuple(columns.values())


def separators(spec: Spec) -> dict[str, str]:
    """The raw columns that hold lists, each with the text between the parts."""
    lists: dict[str, str] = {}
    for feature in spec.features:
        if feature.encode.kind == "history":
            lists[feature.name] = LIST_SEPARATOR
        elif feature.is_list:
            for column in (feature.raw, weights_of(feature)):
                if column is not None:
                    lists.setdefault(column, feature.separator or LIST_SEPARATOR)
    return lists


def is_own_id(spec: Spec, column: RawColumn) -> bool:
    """Whether a raw column of the user or the item is the id that these are looked up by."""
    if column.owner == "context":
        return False
    table = getattr(spec.data.tables, column.owner)
    names = {getattr(spec.data.keys, column.owner)} | ({table.key} if table else set())
    return column.name in names


def counted_by(spec: Spec) -> dict[str, tuple[str, ...]]:
    """The counters, each with the raw columns, or columns of the impressions, that it counts by."""
    sources = {
        feature.name: feature.raw
        for feature in spec.features
        if feature.encode.kind not in ("counter", "history")
    }
    return {
        feature.name: tuple(sources.get(name, name) for name in feature.encode.by)
        for feature in spec.features
        if isinstance(feature.encode, Counter)
    }


def only_counted_by(spec: Spec) -> tuple[str, ...]:
    """Columns of the impressions that counters count by and that no feature reads."""
    read = {column.name for column in raw_columns(spec)}
    names = dict.fromkeys(name for by in counted_by(spec).values() for name in by)
    return tuple(name for name in names if name not in read)


def weights_of(feature: Feature) -> str | None:
    """The raw column that weighs the parts of a list, if there is one."""
    encode = feature.encode
    return encode.weights if isinstance(encode, Vocabulary | Hash) else None


def weights_name(feature: str) -> str:
    """The model input with the weights of a list's parts."""
    return f"{feature}_weights"


def model_inputs(spec: Spec) -> tuple[ModelInput, ...]:
    """The model's numeric inputs: one a feature, in the spec's order, then weights of lists."""
    weights = [
        ModelInput(weights_name(item.name), "numbers", item.length, None, weighs=item.name)
        for feature, item in zip(spec.features, feature_inputs(spec), strict=True)
        if weights_of(feature)
    ]
    return (*feature_inputs(spec), *weights)


def feature_inputs(spec: Spec) -> tuple[ModelInput, ...]:
    """The inputs that are features, one each, in the order of the spec."""
    return tuple(_model_input(spec, feature) for feature in spec.features)


def tree_inputs(spec: Spec) -> tuple[tuple[ModelInput, ModelInput | None], ...]:
    """What boosted trees read: numbers, and single ids whose order means something.

    Lists, hashes and the keys' own ids are left to the networks, and so is the position, which
    serving does not know. A column that is both a number and quantile buckets is read once.

    Returns:
        Model inputs, a number with the buckets of its column, if any, which tell whether it is
        missing.
    """
    numbers = {f.raw for f in spec.features if f.encode.kind in ("numeric", "piecewise")}
    keys = {spec.data.keys.user, spec.data.keys.item}
    buckets: dict[str, ModelInput] = {}
    found: list[tuple[Feature, ModelInput]] = []
    for feature, item in zip(spec.features, feature_inputs(spec), strict=True):
        if feature.encode.kind == "quantiles" and feature.raw in numbers:
            buckets[feature.raw] = item
        elif feature.raw in keys or feature.name == spec.model.position:
            continue
        elif item.kind != "ids" and not item.buckets:
            found.append((feature, item))
    return tuple(
        (item, buckets.get(f.raw) if f.encode.kind in ("numeric", "piecewise") else None)
        for f, item in found
    )


def _model_input(spec: Spec, feature: Feature) -> ModelInput:
    encode = encoding_of(feature)
    if isinstance(encode, History):
        holder = spec.feature(encode.of)
        hashes = holder.encode.hashes if isinstance(holder.encode, Hash) else 1
        return ModelInput(
            feature.name, "ids", encode.max_length, holder.table_name, "history", hashes=hashes
        )
    if isinstance(encode, Vocabulary | Hash):
        return ModelInput(
            feature.name,
            "ids" if feature.is_list else "id",
            encode.max_length or 1,
            feature.table_name,
            encode.combiner,
            encode.buckets if isinstance(encode, Hash) else 0,
            encode.hashes if isinstance(encode, Hash) else 1,
        )
    if isinstance(encode, Piecewise):
        return ModelInput(feature.name, "numbers", encode.bins, None)
    if encode.kind == "quantiles":
        return ModelInput(feature.name, "id", 1, feature.table_name)
    return ModelInput(feature.name, "number", 1, None)


def example_columns(spec: Spec) -> tuple[str, ...]:
    """All columns of an examples file: inputs, labels, keys, slices and time."""
    return (
        *(item.name for item in model_inputs(spec)),
        *(label_column(task.name) for task in spec.tasks),
        USER_KEY,
        REQUEST_KEY,
        *([WEIGHT] if spec.data.weight else []),
        *(slice_column(name) for name in spec.evaluate.slices),
        TIME,
    )


def output_names(spec: Spec) -> tuple[str, ...]:
    """What a model answers: each task, and each task given the one it follows.

    A task with `given` answers p(task and all before it) under its own name, and
    p(task | given) as `<task>_given_<given>`; a regression task answers a number.
    """
    names: list[str] = []
    for task in spec.tasks:
        names.append(task.name)
        if task.given is not None:
            names.append(conditional_name(task.name, task.given))
    return tuple(names)


def value_names(spec: Spec) -> tuple[str, ...]:
    """Those of `output_names` that are numbers in the unit of a label, no probabilities."""
    regressions = [task for task in spec.tasks if task.is_regression]
    return tuple(
        name
        for task in regressions
        for name in (task.name, *([conditional_name(task.name, task.given)] if task.given else []))
    )


def conditional_name(task: str, given: str) -> str:
    """Name of p(task | given) in metrics and answers."""
    return f"{task}_given_{given}"
