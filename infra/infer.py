"""A spec written by looking at a table: `recsys spec infer TABLE`.

Labels, keys and time are found by name and content, each choice is told in a comment, and the
features get encodings that also serve items that training never saw: ids by vocabularies with a
minimum count, or not at all where most of the newest rows have ids that training lacks; numbers
both by quantile and by piecewise-linear embeddings; and, where there is a time column, counters of
what happened before to the user, the item, their kinds and pairs of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.spec.names import Names

SAMPLE_ROWS = 200_000
FEWEST_DAYS = 4
"""Days that a split by time takes: two to train on, and one each to choose and to test by."""
COUNTED_KINDS = 3
"""Categories of an owner whose past is counted: those of most values."""
MOST_KINDS = 2_000
FEW_VALUES = 12
"""Numbers of no more values than this are categories."""
SEEN = 5
"""Rows of training that an id needs to get an embedding of its own."""
UNSEEN_SHARE = 0.5
"""More than this of the newest rows with an id seldom seen before, and the id is left out."""

MOST_CROSSED = 200
"""Features whose dot products are all told apart. Of 225, on a table of 100 numbers, they gave
0.001 of AUC for four times the training time (docs/benchmarks.md)."""

LONGEST_NAME = 60
"""Characters of a name that are kept; the spec allows 100, with what counters add."""

_LABELS = (
    r"(is_|has_|did_|was_|label_|y_)?"
    r"(click(s|ed)?|convert(ed)?|conversions?|purchased?|bought|buy|order(ed)?|paid|pay|like[sd]?|"
    r"share[sd]?|follow(s|ed)?|comment(s|ed)?|favou?rited?|save[sd]?|install(s|ed)?|cart(ed)?|"
    r"add_to_cart|long_view|watch(ed)?|finish(ed)?|subscribed?|signup|sale|lead|label|target)"
    r"(_label)?"
)
_USER = r"user|user_?id|uid|customer|customer_?id|member_?id|visitor_?id"
_ITEM = r"item|item_?id|iid|product|product_?id|video_?id|article_?id|ad_?id|doc_?id|sku|movie_?id"
_REQUEST = r"request|request_?id|session|session_?id|impression_group|query_?id"
_ROW = r"(unnamed: *\d+|index|row|id|(row|impression|event|log|example|sample)_?id)"
_TIME = r"time|timestamp|ts|datetime|date_?time|shown_at|event_time|time_ms"

_MODEL = """\
# For tables of many numbers: {products},
# weight decay and the mean of narrow networks. Three networks have dropout, one has none, and
# boosted trees stand beside them: how much each kind counts for a task, validation says.
model:
  dim: 8
  interactions: {interactions}
  shared: [32]
  towers: [32]
  dropout: 0.1
  embedding_dropout: 0.2
  members: 3
  variants: [{{members: 1, dropout: 0.0, embedding_dropout: 0.0}}]
"""
_TREES = "  trees: {}\n"
_TRAIN = """\
train:
  epochs: 3
  table_learning_rate: 0.03
  dense_learning_rate: 0.002
  weight_decay: 1.0
"""


@dataclass
class Column:
    """What a column holds, as far as a sample tells."""

    name: str
    text: bool
    distinct: int
    rows: int
    values: list[Any] = field(default_factory=list)

    @property
    def binary(self) -> bool:
        """Whether it holds 0 and 1 alone, both of them."""
        return sorted(map(str, self.values)) in (["0", "1"], ["0.0", "1.0"], ["False", "True"])

    @property
    def one_a_row(self) -> bool:
        """Whether it is a text or a number of the row itself, of which new rows have none."""
        named = self.text or re.fullmatch(_ROW, self.name, re.I) is not None
        return named and self.distinct == self.rows

    @property
    def category(self) -> bool:
        """Whether its values are names rather than amounts."""
        return self.text or self.distinct <= FEW_VALUES


def infer(
    path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    labels: Sequence[str] = (),
) -> str:
    """A spec's text for one table, one row an impression.

    Args:
        path: A CSV or Parquet file.
        user: The user's column; None to tell it by its name, as all the others.
        item: The item's column.
        time: The time's column.
        labels: The columns of the labels, 0 and 1 each.

    Returns:
        YAML, with a comment for each choice.

    Raises:
        UserError: The table cannot be read, a named column is not in it or is no label, or it
            has no user, item or label that can be told.
    """
    whole = _named(_read(path), path)
    # Whose a column is and what it holds shows in the first rows; days and ids take all of them.
    table = whole.slice(0, SAMPLE_ROWS)
    columns = [_column(table, name) for name in table.column_names]
    by_name = {column.name: column for column in columns}
    for name in (user, item, time, *labels):
        if name is not None and name not in by_name:
            raise UserError(
                f"The table has no column {name!r}.",
                where=str(path),
                found=", ".join(by_name),
                fix="Name one of these.",
                exit_code=EXIT_WRONG_USE,
            )
    user_column = by_name[user] if user else _one(columns, _USER, "user", path)
    item_column = by_name[item] if item else _one(columns, _ITEM, "item", path)
    request = _find(columns, _REQUEST)
    time_column = by_name[time] if time else _find(columns, _TIME)
    label_columns = [
        c
        for c in columns
        if (c.name in labels if labels else c.binary and re.fullmatch(_LABELS, c.name, re.I))
    ]
    for column in label_columns:
        if not column.binary:
            raise UserError(
                f"The column {column.name!r} is no label.",
                where=str(path),
                expected="0 and 1, both of them",
                found=f"{column.distinct} distinct values",
                fix="Name columns of 0 and 1; a task of numbers is written by hand (docs/spec.md).",
                exit_code=EXIT_WRONG_USE,
            )
    if not label_columns:
        found = [c.name for c in columns if c.binary]
        raise UserError(
            "No label was found.",
            where=str(path),
            expected="a column of 0 and 1 named like click, purchase, converted, label",
            found=f"columns of 0 and 1: {', '.join(found) or 'none'}",
            fix="Name it: --label COLUMN.",
            exit_code=EXIT_WRONG_USE,
        )
    tasks = _tasks(table, label_columns)
    names = Names(table.column_names, LONGEST_NAME)
    task_names = Names([name for name, _ in tasks], LONGEST_NAME)
    taken = {c.name for c in (user_column, item_column, request, time_column) if c}
    taken |= {c.name for c in label_columns}
    lines = [
        f"# Written by `recsys spec infer {path.name}`; look it over, then: recsys run",
        f"name: {_quoted(names.allowed(path.stem))}",
        "data:",
        f"  impressions: {_quoted(path.name)}",
        f"  keys: {{user: {_quoted(user_column.name)}, item: {_quoted(item_column.name)}"
        + (f", request: {_quoted(request.name)}" if request else "")
        + "}",
    ]
    days = _days(whole, time_column)
    lines += _time_and_split(whole, time_column, days)
    lines.append("features:")
    kinds: dict[str, list[Column]] = {"user": [], "item": [], "context": []}
    owned, encoded = set(), []
    for column in columns:
        if column.name in taken or column.distinct < 2:
            continue
        if column.one_a_row:
            lines.append(f"  # No feature of {column.name!r}: each row has a value of its own.")
        else:
            owner = _owner(table, column, item_column.name, user_column.name)
            owned.add(owner)
            encoded += _encodings(column, owner, names)
            if column.category and column.distinct <= MOST_KINDS:
                kinds[owner].append(column)
    newest, left_out = _newest(whole, time_column, days), set()
    for column, owner in ((user_column, "user"), (item_column, "item")):
        unseen = _unseen(whole, column, newest)
        if unseen > UNSEEN_SHARE and owner in owned:
            left_out.add(column.name)
            lines.append(
                f"  # No embedding of {column.name}: {unseen:.0%} of the newest rows have one seen "
                f"fewer than {SEEN} times before."
            )
        else:
            encode = f"{{kind: vocabulary, min_count: {SEEN}}}"
            lines.append(_feature(names.of[column.name], owner, column, encode))
    if len(days) >= FEWEST_DAYS:
        for owner, of_owner in kinds.items():
            kinds[owner] = sorted(of_owner, key=lambda c: -c.distinct)[:COUNTED_KINDS]
        encoded += _counters(user_column, item_column, kinds, names, task_names, left_out)
    lines += encoded
    embedded = _embedded(yaml.safe_load("\n".join(lines))["features"])
    lines.append("tasks:")
    lines += [
        f"  - {{name: {_quoted(task_names.of[name])}, label: {{column: {_quoted(name)}}}"
        + (f", given: {_quoted(task_names.of[given])}" if given else "")
        + "}"
        for name, given in tasks
    ]
    # Trees do not read the keys' own ids; where there is nothing else, there are none.
    return "\n".join(lines) + "\n" + _model(embedded) + (_TREES if encoded else "") + _TRAIN


def _embedded(features: list[dict[str, Any]]) -> int:
    """How many features have embeddings: all but plain numbers, also of counters."""
    encodings = [feature["encode"] for feature in features]
    kinds = [e if isinstance(e, str) else e.get("as", e)["kind"] for e in encodings]
    return sum(kind != "numeric" for kind in kinds)


def _model(embedded: int) -> str:
    """The model's section, for that many features with embeddings."""
    if embedded <= MOST_CROSSED:
        return _MODEL.format(products="products of pairs", interactions="[fm, dot]")
    pairs = embedded * (embedded - 1) // 2
    return _MODEL.format(
        products=f"the sum of the products of pairs (each of {pairs:,} alone takes long)",
        interactions="[fm]",
    )


def _counters(
    user: Column,
    item: Column,
    kinds: dict[str, list[Column]],
    names: Names,
    tasks: Names,
    left_out: set[str],
) -> list[str]:
    """Counters to the end of the day before, which also know what the towers never saw.

    Target statistics in time order, as in CatBoost (Prokhorenkova et al., 2018); those of pairs
    stand for the cross-product features of Wide & Deep (Cheng et al., 2016).
    """
    lines = ["  # What was known at the end of the day before, of users, items and their kinds."]
    counted: list[tuple[str, tuple[Column, ...], int]] = [
        ("user", (user,), 5),
        ("item", (item,), 20),
    ]
    counted += [("item", (kind,), 20) for kind in kinds["item"]]
    counted += [("context", (user, kind), 3) for kind in kinds["item"]]
    counted += [
        ("context", (other, kind), 20)
        for other in (*kinds["user"], *kinds["context"])
        for kind in kinds["item"]
    ]
    for owner, by, prior in counted:
        name = "_".join(names.of[column.name] for column in by)
        # An id that is left out is no feature; the counter knows its column.
        keys = ", ".join(
            _quoted(column.name if column.name in left_out else names.of[column.name])
            for column in by
        )
        start = f"owner: {owner}, encode: {{kind: counter, by: [{keys}]"
        lines.append(
            f"  - {{name: {names.new(f'{name}_seen')}, {start}, statistic: impressions, "
            "as: {kind: numeric, scale: log_zscore}}}"
        )
        lines += [
            f"  - {{name: {names.new(f'{name}_{task}_rate')}, {start}, task: {_quoted(task)}, "
            f"prior_weight: {prior}, as: {{kind: piecewise, bins: 16}}}}}}"
            for task in tasks.of.values()
        ]
    return lines


def _read(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)
    except FileNotFoundError:
        raise UserError("The table does not exist.", where=str(path), exit_code=2) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            "The table cannot be read.",
            where=str(path),
            expected="CSV with a header, or Parquet",
            found=str(error),
        ) from None


def _named(table: Any, path: Path) -> Any:
    """The columns that have a name: an index that pandas wrote has none.

    Raises:
        UserError: Two have the same.
    """
    names = [name for name in table.column_names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            "Columns of the table have the same name.",
            where=str(path),
            found=", ".join(twice),
            fix="Give each a name of its own.",
        )
    return table.select(names)


def _column(table: Any, name: str) -> Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table[name]
    distinct = pc.unique(values.drop_null())
    few = distinct.to_pylist() if len(distinct) <= 2 else []
    kind = values.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return Column(name, not number, len(distinct), len(values), few)


def _find(columns: list[Column], pattern: str) -> Column | None:
    return next((c for c in columns if re.fullmatch(pattern, c.name, re.I)), None)


def _one(columns: list[Column], pattern: str, what: str, path: Path) -> Column:
    column = _find(columns, pattern)
    if column is None:
        raise UserError(
            f"No {what} column was found.",
            where=str(path),
            expected=f"a column named like {what}, {what}_id",
            found=", ".join(c.name for c in columns),
            fix=f"Name it: --{what} COLUMN.",
            exit_code=EXIT_WRONG_USE,
        )
    return column


def _tasks(table: Any, labels: list[Column]) -> list[tuple[str, str | None]]:
    """Labels by falling rate; one whose positives lie within another's follows it."""
    import numpy as np

    ones = {
        c.name: np.asarray(table[c.name].to_pandas().fillna(0), dtype=float) > 0.5 for c in labels
    }
    order = sorted(ones, key=lambda name: -ones[name].mean())
    tasks: list[tuple[str, str | None]] = []
    for index, name in enumerate(order):
        given = None
        for other in reversed(order[:index]):
            outside = (ones[name] & ~ones[other]).sum()
            # Real logs have a few strays; the feature job repairs them.
            if outside <= 0.01 * max(1, ones[name].sum()):
                given = other
                break
        tasks.append((name, given))
    return tasks


def _unit(table: Any, time: Column) -> Any:
    """The unit of a time column: ISO text, or epoch numbers by their size."""
    import pyarrow.types as types

    if not types.is_integer(table[time.name].type):
        return "iso"
    largest = float(table[time.name].to_pandas().max())
    units = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": float("inf")}
    return next(name for name, bound in units.items() if largest < bound)


def _dates(table: Any, time: Column) -> Any:
    """The day of each row."""
    import pandas as pd

    unit = _unit(table, time)
    values = table[time.name].to_pandas()
    if unit == "iso":
        when = pd.to_datetime(values, utc=True, errors="coerce")
    else:
        when = pd.to_datetime(values, unit=unit, utc=True)
    return when.dt.date


def _days(table: Any, time: Column | None) -> list[Any]:
    """The days of the rows, sorted; none without a time."""
    return [] if time is None else sorted(set(_dates(table, time).dropna()))


def _held(days: list[Any]) -> int:
    """Days to choose by, and as many to test by: a tenth each, at least one."""
    return max(1, len(days) // 10)


def _newest(table: Any, time: Column | None, days: list[Any]) -> Any:
    """Which rows stand for those to come: those held out by time, or a tenth by chance."""
    import numpy as np

    if time is not None and len(days) >= FEWEST_DAYS:
        return (_dates(table, time) >= days[-2 * _held(days)]).to_numpy()
    return np.random.default_rng(0).random(len(table)) < 0.1


def _unseen(table: Any, column: Column, newest: Any) -> float:
    """The share of the newest rows whose id has fewer than `SEEN` rows before them."""
    values = table[column.name].to_pandas()
    if not newest.any():
        return 0.0
    seen = values[~newest].value_counts()
    return float((values[newest].map(seen).fillna(0) < SEEN).mean())


def _time_and_split(table: Any, time: Column | None, days: list[Any]) -> list[str]:
    fraction = "  split: {validation: 0.1, test: 0.1}"
    if time is None:
        return [fraction]
    told = f"  time: {{column: {time.name}, unit: {_unit(table, time)}}}"
    if len(days) < FEWEST_DAYS:
        return [told, fraction]
    held = _held(days)
    return [
        told,
        f"  split: {{train_to: {days[-2 * held - 1]}, validation_to: {days[-held - 1]}}}",
    ]


def _encodings(column: Column, owner: str, names: Names) -> list[str]:
    name = names.of[column.name]
    if column.text:
        minimum = 5 if column.distinct > 1000 else 1
        return [_feature(name, owner, column, f"{{kind: vocabulary, min_count: {minimum}}}")]
    if column.category:
        return [_feature(name, owner, column, "vocabulary")]
    return [
        _feature(name, owner, column, "{kind: piecewise, bins: 16}"),
        _feature(names.new(f"{name}_bucket"), owner, column, "{kind: quantiles, buckets: 20}"),
    ]


def _owner(table: Any, column: Column, item: str, user: str) -> str:
    """Whose a column is: the item's or user's where it takes one value for each of them."""
    frame = table.select([item, user, column.name]).to_pandas()
    for key, owner in ((item, "item"), (user, "user")):
        repeated = frame[frame.duplicated(key, keep=False)]
        if len(repeated) and (repeated.groupby(key)[column.name].nunique() <= 1).mean() > 0.99:
            return owner
    return "context"


def _feature(name: str, owner: str, column: Column, encode: str) -> str:
    raw = f", column: {_quoted(column.name)}" if column.name != name else ""
    return f"  - {{name: {_quoted(name)}, owner: {owner}{raw}, encode: {encode}}}"


def _quoted(text: str) -> str:
    """Text as YAML: in quotes where YAML would read something else, as in `on` and `72`."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9_.-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
