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
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from infra.bad_rows import alike, bad_rows
from infra.leaks import FEWEST, Truth, late, truths
from infra.roles import Named, Roles, is_label_like, roles, tasks
from infra.splits import split
from infra.tables import Column, label, look, read, sample
from infra.writing import TRAIN, counters, embedded, encodings, feature, model, quoted
from recsys.spec.names import Names
from recsys.spec.schema import RESERVED

SAMPLE_ROWS = 200_000
COUNTED_KINDS = 3
"""Categories of an owner whose past is counted: those of most values."""
MOST_KINDS = 2_000
SEEN = 5
"""Rows of training that an id needs to get an embedding of its own."""
UNSEEN_SHARE = 0.5
"""More than this of the newest rows with an id seldom seen before, and the id is left out."""
LONGEST_NAME = 60
"""Characters of a name that are kept; the spec allows 100, with what counters add."""
FEW_TIMES = {"number": 31, "text": 12}
"""Values up to which a column that is named like a time is a category, such as the hour."""


@dataclass(frozen=True)
class Inferred:
    """A spec's text for a table, and the names of the table's columns."""

    text: str
    columns: list[str]


def commands(table: Path, spec: Path | None) -> list[str]:
    """What to run once a spec has been looked over; `SPEC` stands for one without a file."""
    file = "SPEC" if spec is None else shlex.quote(str(spec))
    return [
        f"recsys check {file}",
        f"recsys run {file} --input {shlex.quote(str(table))} --output out",
    ]


def infer(
    path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    request: str | None = None,
    labels: Sequence[str] = (),
) -> str:
    """As `look_over`, the spec's text alone.

    Args:
        path: A CSV or Parquet file.
        user: The user's column; None to tell it by its name, as all the others.
        item: The item's column.
        time: The time's column.
        request: The column of the request, whose rows were shown together.
        labels: The columns of the labels, 0 and 1 each.
    """
    return look_over(path, Named(user, item, time, request, labels)).text


def look_over(path: Path, named: Named, output: Path | None = None) -> Inferred:
    """A spec for one table, one row an impression.

    Args:
        path: A CSV or Parquet file.
        named: Columns whose part is known; the others' is told by name and content.
        output: Where the spec is to lie, for the commands at its head.

    Returns:
        YAML, with a comment for each choice, and the table's columns.

    Raises:
        UserError: The table cannot be read, a named column is not in it or is no label, key,
            request or time, or it has no user, item or label that can be told.
    """
    whole = read(path)
    # Whose a column is and what it holds shows in some rows; days, ids and labels take all of them.
    table, columns = look(sample(whole.table, SAMPLE_ROWS), whole.table, whole.is_csv)
    found = roles(path, whole, table, columns, named)
    likely = [c for c in columns if c.binary and (c in found.labels or c in found.label_like)]
    known = {c.name: label(whole.table, c) for c in likely}
    chosen, nested_notes = tasks({c.name: known[c.name] for c in found.labels})
    given = dict(chosen)
    of_sample = {c.name: label(table, c) for c in likely}
    judged = truths(of_sample, dict(tasks(known)[0]))
    names = Names(table.column_names, LONGEST_NAME)
    task_names = Names([name for name, _ in chosen], LONGEST_NAME)
    day = found.time.day if found.time else None
    divided = split(day, {name: known[name] for name, _ in chosen})
    newest = divided.held
    if newest is None:
        newest = np.random.default_rng(0).random(len(whole.table)) < 0.1
    features = _features(table, columns, found, judged, names, whole.table, newest)
    keys, left_out = _keys(whole.table, found, newest, features.owned, names)
    encoded = list(features.lines)
    if divided.days:
        kinds = {
            owner: sorted(of_owner, key=lambda c: -c.distinct)[:COUNTED_KINDS]
            for owner, of_owner in features.kinds.items()
        }
        encoded += counters(found.user, found.item, kinds, names, task_names, left_out)
    lines = [
        *_head(path, output),
        f"name: {quoted(names.allowed(path.stem))}",
        "data:",
        f"  impressions: {quoted(path.name)}",
        *bad_rows(
            whole,
            (found.user, found.item),
            features.numbers,
            {name: known[name] for name, _ in chosen},
            given,
            day,
        ),
        *alike(whole.table, found.time is not None and found.time.of_day),
        *found.key_notes,
        *found.request_notes,
        f"  keys: {{user: {quoted(found.user.name)}, item: {quoted(found.item.name)}"
        + (f", request: {quoted(found.request.name)}" if found.request else "")
        + "}",
        *found.time_notes,
        *([found.time.told] if found.time else []),
        *divided.notes,
        divided.line,
        "features:",
        *_not_judged(of_sample, judged),
        *features.refused,
        *keys,
        *encoded,
    ]
    count = embedded(yaml.safe_load("\n".join(lines))["features"])
    lines.append("tasks:")
    lines += [
        f"  # No task of {column.name!r}: all rows have one value."
        for column in found.label_like
        if column.distinct < 2
    ]
    lines += [*found.label_notes, *nested_notes]
    for name, parent in chosen:
        lines += _blanks(known, name, parent)
        lines.append(
            f"  - {{name: {quoted(task_names.of[name])}, label: {{column: {quoted(name)}}}"
            + (f", given: {quoted(task_names.of[parent])}" if parent else "")
            + "}"
        )
    # Trees do not read the keys' own ids; where there is nothing else, there are none.
    text = "\n".join(lines) + "\n" + model(count, trees=_any(encoded, found.place))
    if found.place:
        text += f"  position: {quoted(names.of[found.place.name])}\n"
    return Inferred(text + TRAIN, whole.table.column_names)


def _head(table: Path, spec: Path | None) -> list[str]:
    """Where the spec comes from, and what to do with it."""
    lines = [
        f"# Written by `recsys spec infer {table.name}`; look it over, then:",
        *(f"#   {command}" for command in commands(table, spec)),
    ]
    # A path may hold what ends a comment.
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


@dataclass(frozen=True)
class _Features:
    """Lines of the spec: of features, and of columns that none is made of, with the reason.

    `kinds` are categories by owner, `owned` the owners that have features, and `numbers` the
    columns that are read as numbers.
    """

    refused: list[str]
    lines: list[str]
    kinds: dict[str, list[Column]]
    owned: set[str]
    numbers: list[Column]


def _features(
    table: pa.Table,
    columns: list[Column],
    found: Roles,
    judged: list[Truth],
    names: Names,
    whole: pa.Table,
    newest: np.ndarray,
) -> _Features:
    made = _Features([], [], {"user": [], "item": [], "context": []}, set(), [])
    shared: list[str] = []
    for column in columns:
        if column.name in found.taken:
            continue
        if column.distinct < 2 and column.kind != "none":
            if column not in found.label_like:
                made.refused.append(
                    f"  # No feature of {column.name!r}: it has one value, or none."
                )
            continue
        unfit = _unfit(column, found)
        if unfit:
            made.refused.append(f"  # No feature of {column.name!r}: {unfit}.")
            made.refused.extend(_parted(column))
            continue
        # As with the keys: ids that the rows to come lack are no more than their number's size.
        if column.numbers_names and _unseen(whole, column, newest) > UNSEEN_SHARE:
            made.refused.append(
                f"  # No feature of {column.name!r}: most of the newest rows have one seldom seen "
                "before."
            )
            continue
        if column == found.place:
            made.lines.extend(_place(column, names))
            continue
        owner: str = found.owners.of(column.name)
        of_moment = owner == "context"
        inline = of_moment and found.owners.differs_in_requests(column.name)
        owner = "item" if inline else owner
        lines = encodings(column, owner, names)
        told = late(table[column.name], column, judged, of_moment)
        if told and told.sure:
            made.refused.extend(_left_out(column, told.why, lines))
            continue
        if told:
            made.lines.append(
                f"  # {column.name!r}: {told.why}. Leave it out if it is known only after."
            )
        if inline:
            made.lines.append(
                f"  # {column.name!r} differs within requests: each candidate brings its own."
            )
        made.lines.extend(_parted(column))
        if owner == "context":
            shared.append(column.name)
        made.owned.add(owner)
        made.lines.extend(lines)
        if column.kind == "number" and not column.category:
            made.numbers.append(column)
        if column.category and column.distinct <= MOST_KINDS:
            made.kinds[owner].append(column)
    if shared and (found.request is None or found.request.distinct == found.request.rows):
        made.refused.extend(
            [
                "  # No request tells what was shown together. A feature of the context has one "
                "value for all that is",
                "  # ranked at once; those that differ between candidates are to have owner: item.",
            ]
        )
    return made


def _parted(column: Column) -> list[str]:
    """What is to be said of texts that seem to be lists."""
    if not column.seems:
        return []
    return [
        f"  # {column.name!r} seems to hold lists: to read their parts, give its vocabulary a "
        f"max_length, and the",
        f"  # feature separator: {json.dumps(column.seems)}.",
    ]


def _place(column: Column, names: Names) -> list[str]:
    return [
        f"  # {column.name!r} is where the item stood, of which the model learns the effect apart.",
        feature(names.of[column.name], "context", column, "vocabulary"),
    ]


def _left_out(column: Column, why: str, lines: list[str]) -> list[str]:
    """A column that seems to be known only after a label, with its lines in a comment."""
    how = []
    if column.binary:
        how = [f"  # If it is an outcome to learn: --label {quoted(column.name)}."]
    elif is_label_like(column):
        how = ["  # It is named like a label: write 0 and 1 to learn it."]
    return [
        f"  # No feature of {column.name!r}: {why}, so it seems to be known only after.",
        *how,
        "  # If it is known before, take these lines out of the comment:",
        *(f"  # {line.strip()}" for line in lines),
    ]


def _any(encoded: list[str], place: Column | None) -> bool:
    """Whether any of the lines is a feature's, the place aside."""
    return sum(line.startswith("  - ") for line in encoded) > (place is not None)


def _not_judged(labels: dict[str, np.ndarray], judged: list[Truth]) -> list[str]:
    """What is to be said of labels of so few rows that no column can be seen to follow them."""
    seen = {truth.name for truth in judged}
    return [
        f"  # Whether a column is known only after {name!r} was not judged: fewer than {FEWEST} "
        "rows differ."
        for name in labels
        if name not in seen
    ]


def _keys(
    whole: pa.Table, found: Roles, newest: np.ndarray, owned: set[str], names: Names
) -> tuple[list[str], set[str]]:
    """Lines of the ids' own features, and the columns of ids that get none."""
    lines: list[str] = []
    left_out: set[str] = set()
    for column, owner in ((found.user, "user"), (found.item, "item")):
        unseen = _unseen(whole, column, newest)
        if unseen > UNSEEN_SHARE and owner in owned:
            left_out.add(column.name)
            lines.append(
                f"  # No embedding of {quoted(column.name)}: {unseen:.0%} of the newest rows have "
                f"one seen fewer than {SEEN} times before."
            )
        else:
            encode = f"{{kind: vocabulary, min_count: {SEEN}}}"
            lines.append(feature(names.of[column.name], owner, column, encode))
    return lines, left_out


def _unseen(table: pa.Table, column: Column, newest: np.ndarray) -> float:
    """The share of the newest rows whose id has fewer than `SEEN` rows before them."""
    values = table[column.name].to_pandas()
    if not newest.any():
        return 0.0
    seen = values[~newest].value_counts()
    return float((values[newest].map(seen).fillna(0) < SEEN).mean())


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


def _unfit(column: Column, found: Roles) -> str:
    """Why no feature is made of a column, whatever the labels are; '' where one is."""
    if column in found.label_like:
        how = f"add --label {quoted(column.name)}" if column.binary else "write 0 and 1"
        return f"it is named like a label; {how} to learn it"
    if column.name.startswith(RESERVED):
        return f"names that begin with {RESERVED!r} are the feature job's own"
    if column in found.dates:
        return "it holds dates"
    if column.name in found.untimed and column.distinct > FEW_TIMES.get(column.kind, 0):
        return f"it is named like a time, but {found.untimed[column.name]}"
    if column.one_a_row:
        return "each row has a value of its own"
    return column.why
