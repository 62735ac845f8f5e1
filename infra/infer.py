"""A spec written by looking at a table: `recsys spec infer TABLE`.

Labels, keys and time are found by name and content, each choice is told in a comment, and what
seems to be known only after a label is left out. The features get encodings that also serve items
that training never saw: ids by vocabularies with a minimum count, or not at all where most of the
newest rows have ids that training lacks; numbers both by quantile and by piecewise-linear
embeddings; and, where there is a time column, counters of what happened before to the user, the
item, their kinds and pairs of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from infra.leaks import Truth, doubt, leak, truths
from infra.tables import Column, label, look, missing, read
from infra.times import PARSED, Reading, days, holds_dates, reading, texts
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.spec.names import Names

SAMPLE_ROWS = 200_000
FEWEST_DAYS = 4
"""Days that a split by time takes: two to train on, and one each to choose and to test by."""
COUNTED_KINDS = 3
"""Categories of an owner whose past is counted: those of most values."""
MOST_KINDS = 2_000
SEEN = 5
"""Rows of training that an id needs to get an embedding of its own."""
UNSEEN_SHARE = 0.5
"""More than this of the newest rows with an id seldom seen before, and the id is left out."""
ROWS_A_REQUEST = 200
"""Rows that requests have at most on average: more, and the column names something else."""
NO_REQUEST = 0.01
"""Rows without a request above which none is read: each would be a bad record."""

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
_TIME = r"time|timestamp|ts|datetime|date_?time|shown_at|event_time|time_ms"
_DATED = r"(?i)date|time"

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


@dataclass(frozen=True)
class Time:
    """The time of the rows: its column, how it is read, and each row's day since the epoch."""

    name: str
    read: Reading
    day: np.ndarray
    dates: list[date]

    @property
    def told(self) -> str:
        """The line of the spec."""
        column = self.read.column
        how = f"format: {json.dumps(column.format)}" if column.format else f"unit: {column.unit}"
        return f"  time: {{column: {_quoted(self.name)}, {how}}}"


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
        UserError: The table cannot be read, a named column is not in it or is no label, key or
            time, or it has no user, item or label that can be told.
    """
    whole = read(path)
    # Whose a column is and what it holds shows in the first rows; days and ids take all of them.
    table, columns = look(whole.slice(0, SAMPLE_ROWS))
    roles = _roles(path, whole, table, columns, user, item, time, labels)
    likely = [c for c in columns if c.binary and (c in roles.labels or c in roles.label_like)]
    known = {c.name: label(table, c) for c in likely}
    tasks = _tasks({c.name: known[c.name] for c in roles.labels})
    names = Names(table.column_names, LONGEST_NAME)
    task_names = Names([name for name, _ in tasks], LONGEST_NAME)
    judged = truths(known, dict(_tasks(known)))
    features = _features(table, columns, roles, judged, names)
    keys, left_out = _keys(whole, roles, features.owned, names)
    encoded = list(features.lines)
    if roles.time and len(roles.time.dates) >= FEWEST_DAYS:
        kinds = {
            owner: sorted(of_owner, key=lambda c: -c.distinct)[:COUNTED_KINDS]
            for owner, of_owner in features.kinds.items()
        }
        encoded += _counters(roles.user, roles.item, kinds, names, task_names, left_out)
    lines = [
        f"# Written by `recsys spec infer {path.name}`; look it over, then: recsys run",
        f"name: {_quoted(names.allowed(path.stem))}",
        "data:",
        f"  impressions: {_quoted(path.name)}",
        *_keyless(table, roles.user, roles.item),
        *_infinite(table, encoded),
        *roles.request_notes,
        f"  keys: {{user: {_quoted(roles.user.name)}, item: {_quoted(roles.item.name)}"
        + (f", request: {_quoted(roles.request.name)}" if roles.request else "")
        + "}",
        *roles.time_notes,
        *_time_and_split(roles.time),
        "features:",
        *features.refused,
        *keys,
        *encoded,
    ]
    embedded = _embedded(yaml.safe_load("\n".join(lines))["features"])
    lines.append("tasks:")
    lines += [
        f"  # No task of {column.name!r}: all rows have one value."
        for column in roles.label_like
        if column.distinct < 2
    ]
    for name, given in tasks:
        lines += _blanks(known, name, given)
        lines.append(
            f"  - {{name: {_quoted(task_names.of[name])}, label: {{column: {_quoted(name)}}}"
            + (f", given: {_quoted(task_names.of[given])}" if given else "")
            + "}"
        )
    # Trees do not read the keys' own ids; where there is nothing else, there are none.
    return "\n".join(lines) + "\n" + _model(embedded) + (_TREES if encoded else "") + _TRAIN


@dataclass(frozen=True)
class _Roles:
    """What columns are beside features.

    `label_like` are named like labels, chosen or not; `taken` have a part other than a feature's.
    """

    user: Column
    item: Column
    labels: list[Column]
    label_like: list[Column]
    request: Column | None
    request_notes: list[str]
    time: Time | None
    time_notes: list[str]
    dates: list[Column]
    taken: set[str]


def _roles(
    path: Path,
    whole: pa.Table,
    table: pa.Table,
    columns: list[Column],
    user: str | None,
    item: str | None,
    time: str | None,
    labels: Sequence[str],
) -> _Roles:
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
    label_like = [c for c in columns if 1 <= c.known <= 2 and re.fullmatch(_LABELS, c.name, re.I)]
    label_columns = [c for c in columns if c.name in labels]
    label_columns = label_columns or [c for c in label_like if c.binary and c.name != time]
    _require_roles(path, user_column, item_column, time, label_columns if labels else [])
    label_columns = [c for c in label_columns if c not in (user_column, item_column)]
    _require_labels(path, table, columns, label_columns)
    taken = {user_column.name, item_column.name, *(c.name for c in label_columns)}
    free = [c for c in columns if c.name not in taken]
    request, request_notes = _request(table, free)
    taken |= {c.name for c in free if re.fullmatch(_REQUEST, c.name, re.I) and _many(c)}
    keys = {user_column.name, item_column.name}
    dates = [c for c in free if c != request and holds_dates(table[c.name], c.name)]
    when, time_notes = _time(whole, table, free, dates, time, keys, path)
    taken |= {when.name} if when else set()
    return _Roles(
        user_column,
        item_column,
        label_columns,
        label_like,
        request,
        request_notes,
        when,
        time_notes,
        dates,
        taken,
    )


@dataclass(frozen=True)
class _Features:
    """Lines of the spec: of features, and of columns that none is made of, with the reason.

    `kinds` are categories by owner, and `owned` the owners that have features.
    """

    refused: list[str]
    lines: list[str]
    kinds: dict[str, list[Column]]
    owned: set[str]


def _features(
    table: pa.Table, columns: list[Column], roles: _Roles, judged: list[Truth], names: Names
) -> _Features:
    made = _Features([], [], {"user": [], "item": [], "context": []}, set())
    for column in columns:
        if column.name in roles.taken:
            continue
        if column.distinct < 2 and column.kind != "none":
            if column not in roles.label_like:
                made.refused.append(
                    f"  # No feature of {column.name!r}: it has one value, or none."
                )
            continue
        unfit = _unfit(column, roles.label_like, roles.dates)
        if unfit:
            made.refused.append(f"  # No feature of {column.name!r}: {unfit}.")
            continue
        owner = _owner(table, column, roles.item.name, roles.user.name)
        encodings = _encodings(column, owner, names)
        late = leak(table[column.name], column, judged)
        if late:
            made.refused.extend(
                [
                    f"  # No feature of {column.name!r}: {late}, so it seems to be known only "
                    "after.",
                    "  # If it is known before, take these lines out of the comment:",
                    *(f"  # {line.strip()}" for line in encodings),
                ]
            )
            continue
        doubted = doubt(table[column.name], judged)
        if doubted:
            made.lines.append(
                f"  # {column.name!r} is there only where {doubted!r} is 1: leave it out if it is "
                "known only after."
            )
        made.owned.add(owner)
        made.lines.extend(encodings)
        if column.category and column.distinct <= MOST_KINDS:
            made.kinds[owner].append(column)
    return made


def _keys(
    whole: pa.Table, roles: _Roles, owned: set[str], names: Names
) -> tuple[list[str], set[str]]:
    """Lines of the ids' own features, and the columns of ids that get none."""
    lines: list[str] = []
    left_out: set[str] = set()
    newest = _newest(whole, roles.time)
    for column, owner in ((roles.user, "user"), (roles.item, "item")):
        unseen = _unseen(whole, column, newest)
        if unseen > UNSEEN_SHARE and owner in owned:
            left_out.add(column.name)
            lines.append(
                f"  # No embedding of {_quoted(column.name)}: {unseen:.0%} of the newest rows have "
                f"one seen fewer than {SEEN} times before."
            )
        else:
            encode = f"{{kind: vocabulary, min_count: {SEEN}}}"
            lines.append(_feature(names.of[column.name], owner, column, encode))
    return lines, left_out


def _require_roles(
    path: Path, user: Column, item: Column, time: str | None, labels: list[Column]
) -> None:
    """Each column that was named is one thing alone, and keys are values that can be told apart."""
    roles = [user.name, item.name, *([time] if time else []), *(c.name for c in labels)]
    twice = [name for name in dict.fromkeys(roles) if roles.count(name) > 1]
    if twice:
        raise UserError(
            f"The column {twice[0]!r} is named for two things.",
            where=str(path),
            expected="a column each for user, item, time and labels",
            found=f"user {user.name!r}, item {item.name!r}"
            + (f", time {time!r}" if time else "")
            + "".join(f", label {c.name!r}" for c in labels),
            fix="Name another column: --user, --item, --time or --label.",
            exit_code=EXIT_WRONG_USE,
        )
    for what, column in (("user", user), ("item", item)):
        if column.kind not in ("text", "number"):
            raise UserError(
                f"The column {column.name!r} cannot name a {what}.",
                where=str(path),
                expected="a text or a whole number in each row",
                found=column.why or f"{column.kind}s",
                fix=f"Name another column: --{what}.",
                exit_code=EXIT_WRONG_USE,
            )


def _require_labels(
    path: Path, table: pa.Table, columns: list[Column], labels: list[Column]
) -> None:
    for column in labels:
        if not column.binary:
            few = 0 < column.distinct <= 3
            raise UserError(
                f"The column {column.name!r} is no label.",
                where=str(path),
                expected="0 and 1, both of them",
                found=f"{column.distinct} distinct values"
                + (f": {texts(table[column.name].unique())}" if few else ""),
                fix="Name columns of 0 and 1; a task of numbers is written by hand (docs/spec.md).",
                exit_code=EXIT_WRONG_USE,
            )
    if not labels:
        found = [c.name for c in columns if c.binary]
        named = [
            f"; {c.name!r} holds {texts(table[c.name].unique())}"
            for c in columns
            if c.known <= 2 and c.kind != "none" and re.fullmatch(_LABELS, c.name, re.I)
        ]
        raise UserError(
            "No label was found.",
            where=str(path),
            expected="a column of 0 and 1 named like click, purchase, converted, label",
            found=f"columns of 0 and 1: {', '.join(found) or 'none'}" + "".join(named),
            fix="Name it: --label COLUMN.",
            exit_code=EXIT_WRONG_USE,
        )


def _request(table: pa.Table, columns: list[Column]) -> tuple[Column | None, list[str]]:
    """The request's column, or why the one that is named like it is none."""
    column = _find(columns, _REQUEST)
    if column is None:
        return None, []
    start = f"  # No request: {column.name!r} "
    if column.kind not in ("text", "number"):
        return None, [f"{start}holds neither texts nor numbers."]
    none = missing(table[column.name]).mean()
    if none >= NO_REQUEST:
        return None, [f"{start}is missing in {none:.0%} of the rows."]
    if not _many(column):
        values = f"{column.distinct:,} value{'s' * (column.distinct != 1)}"
        return None, [f"{start}has {values} in {len(table):,} rows."]
    return column, []


def _many(column: Column) -> bool:
    return column.distinct * ROWS_A_REQUEST >= column.rows


def _keyless(table: pa.Table, *keys: Column) -> list[str]:
    """What is to be said of keys that some rows lack."""
    shares = {column.name: missing(table[column.name]).mean() for column in keys}
    return [
        f"  # {share:.2%} of the rows have no {name!r}; the feature job calls them bad records."
        for name, share in shares.items()
        if share
    ]


def _infinite(table: pa.Table, encoded: Sequence[str]) -> list[str]:
    """What is to be said of features whose numbers are infinite in some rows."""
    features = yaml.safe_load("\n".join(encoded)) or []
    notes = []
    for name in dict.fromkeys(f.get("column", f["name"]) for f in features):
        if name in table.column_names and pa.types.is_floating(table[name].type):
            share = np.isinf(table[name].to_numpy()).mean()
            if share:
                notes.append(
                    f"  # {share:.2%} of the rows have an infinite {name!r}; the feature job calls "
                    "them bad records."
                )
    return notes


def _time(
    whole: pa.Table,
    table: pa.Table,
    columns: list[Column],
    dates: list[Column],
    named: str | None,
    keys: set[str],
    path: Path,
) -> tuple[Time | None, list[str]]:
    """The time: by its name, or the only column of dates that is neither the user's nor the item's.

    Returns:
        It, or None; and what is to be said of the choice.
    """
    notes: list[str] = []
    sample = whole.slice(0, SAMPLE_ROWS)
    tried = [named] if named else [c.name for c in columns if re.fullmatch(_TIME, c.name, re.I)]
    own = [c for c in dates if _owner(table, c, *sorted(keys)) == "context"]
    tried += [c.name for c in own if not named and len(own) == 1 and c.name not in tried]
    for name in tried:
        found = reading(sample[name], name)
        if isinstance(found, Reading):
            if found.note:
                notes.append(f"  # {name!r} {found.note}.")
            day = days(whole[name], found.column)
            seen = np.unique(day[~np.isnan(day)]).astype(int).tolist()
            return Time(name, found, day, [date(1970, 1, 1) + timedelta(d) for d in seen]), notes
        if named:
            raise UserError(
                f"The column {name!r} is no time: it {found}.",
                where=str(path),
                expected=f"epoch numbers, ISO 8601 or another date in {PARSED:.0%} of the rows",
                found=texts(sample[name]),
                fix="Name another column, or none: rows are then divided by chance.",
                exit_code=EXIT_WRONG_USE,
            )
        notes.append(f"  # No time by {name!r}: it {found}.")
    for column in columns:
        if named or column.name in tried or column in dates or not re.search(_DATED, column.name):
            continue
        found = reading(sample[column.name], column.name)
        if isinstance(found, str) and pa.types.is_string(sample[column.name].type):
            notes.append(f"  # No time by {column.name!r}: it {found}.")
    left = [repr(c.name) for c in dates if c.name not in tried]
    if left:
        hold = "holds dates; name it" if len(left) == 1 else "hold dates; name one"
        notes.append(f"  # No time: {', '.join(left)} {hold} with --time to split by day.")
    return None, notes


def _blanks(known: dict[str, np.ndarray], name: str, given: str | None) -> list[str]:
    """What is to be said of a label that some rows lack."""
    blank = np.isnan(known[name])
    if given is not None:
        blank &= known[given] > 0.5
    if not blank.any():
        return []
    of = f"the rows with {given!r}" if given else "the rows"
    rows = (known[given] > 0.5).sum() if given else len(blank)
    share = blank.sum() / rows
    return [f"  # {share:.2%} of {of} have no {name!r}; the feature job calls them bad records."]


def _unfit(column: Column, label_like: list[Column], dates: list[Column]) -> str:
    """Why no feature is made of a column, whatever the labels are; '' where one is."""
    if column in label_like:
        how = f"add --label {_quoted(column.name)}" if column.binary else "write 0 and 1"
        return f"it is named like a label; {how} to learn it"
    if column in dates:
        return "it holds dates"
    if column.one_a_row:
        return "each row has a value of its own"
    return column.why


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


def _tasks(labels: dict[str, np.ndarray]) -> list[tuple[str, str | None]]:
    """Labels by falling rate; one whose positives lie within another's follows it."""
    # A label that is blank did not happen: where the one before it did not, logs often say so.
    ones = {name: np.nan_to_num(values) > 0.5 for name, values in labels.items()}
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


def _held(dates: list[date]) -> int:
    """Days to choose by, and as many to test by: a tenth each, at least one."""
    return max(1, len(dates) // 10)


def _newest(table: pa.Table, time: Time | None) -> np.ndarray:
    """Which rows stand for those to come: those held out by time, or a tenth by chance."""
    if time is not None and len(time.dates) >= FEWEST_DAYS:
        first = (time.dates[-2 * _held(time.dates)] - date(1970, 1, 1)).days
        return time.day >= first
    return np.random.default_rng(0).random(len(table)) < 0.1


def _unseen(table: pa.Table, column: Column, newest: np.ndarray) -> float:
    """The share of the newest rows whose id has fewer than `SEEN` rows before them."""
    values = table[column.name].to_pandas()
    if not newest.any():
        return 0.0
    seen = values[~newest].value_counts()
    return float((values[newest].map(seen).fillna(0) < SEEN).mean())


def _time_and_split(time: Time | None) -> list[str]:
    fraction = "  split: {validation: 0.1, test: 0.1}"
    if time is None:
        return [fraction]
    if len(time.dates) < FEWEST_DAYS:
        return [time.told, fraction]
    held = _held(time.dates)
    train_to, validation_to = time.dates[-2 * held - 1], time.dates[-held - 1]
    return [
        time.told,
        f"  split: {{train_to: {train_to}, validation_to: {validation_to}}}",
    ]


def _encodings(column: Column, owner: str, names: Names) -> list[str]:
    name = names.of[column.name]
    minimum = 5 if column.distinct > 1000 else 1
    if column.kind == "list":
        encode = f"{{kind: vocabulary, min_count: {minimum}, max_length: {column.length}}}"
        return [_feature(name, owner, column, encode)]
    if column.name_like:
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
    if plain:
        return text
    # YAML refuses some marks that JSON leaves alone, and breaks lines at others.
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in quoted)
