"""A spec written by looking at a table: `recsys spec infer TABLE`.

Labels, keys and time are found by name and content, each choice is told in a comment, and what
seems to be known only after a label is left out. The features get encodings that also serve items
that training never saw: ids by vocabularies with a minimum count, or not at all where most of the
newest rows have ids that training lacks; numbers both by quantile and by piecewise-linear
embeddings; and, where there is a time column, counters of what happened before to the user, the
item, their kinds and pairs of these.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.bad_rows import bad_rows, repeated
from infra.choices import choices, unused_keys
from infra.columns import label, look
from infra.leaks import truths
from infra.roles import Named, repeats, roles, tasks
from infra.splits import split
from infra.tables import read
from infra.writing import Findings, doubts, gaps, spec

SAMPLE_ROWS = 200_000


@dataclass(frozen=True)
class Inferred:
    """A spec's text for a table, and what the command line says of it beside.

    Attributes:
        columns: Names of the table's columns.
        doubts: Features that may be known only after a label, and why.
        gaps: Labels that rows of a part of the split all have, or none of them, or perhaps none.
    """

    text: str
    columns: list[str]
    doubts: list[str]
    gaps: list[str]


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
        YAML, with a comment for each choice, the table's columns, and what is to be looked at
        first.

    Raises:
        UserError: The table cannot be read, a named column is not in it or is no label, key,
            request or time, or it has no user, item or label that can be told.
    """
    whole = read(path)
    # Whose a column is and what it holds shows in some rows; days, ids and labels take all of them.
    looked = look(whole, SAMPLE_ROWS)
    found = roles(looked, named)
    marked = [*found.labels, *found.label_like]
    likely = [c for c in looked.columns if c.binary and c in marked]
    known = {c.name: label(whole.table, c) for c in likely}
    same = repeats({c.name: known[c.name] for c in found.labels})
    if not named.labels:  # who names both wants both
        known = {name: values for name, values in known.items() if name not in same}
    learned = tasks({c.name: known[c.name] for c in found.labels if c.name in known})
    of_sample = {c.name: label(looked.sample, c) for c in likely if c.name in known}
    judged = truths(of_sample, {task.name: task.given for task in tasks(known)})
    time = found.timing.time
    day = time.day if time else None
    divided = split(day, {task.name: known[task.name] for task in learned})
    newest = divided.held
    if newest is None:
        newest = np.random.default_rng(0).random(len(whole.table)) < 0.1
    made = choices(looked, found, judged, newest)
    features = [choice.column for choice in made if choice.made]
    numbers = [column for column in features if column.kind == "number" and not column.category]
    blank = [task.blank for task in learned]
    findings = Findings(
        looked=looked,
        commands=commands(path, output),
        roles=found,
        bad=bad_rows(whole, (found.user, found.item), numbers, blank, day),
        # With the time of the day, equal rows are one.
        repeated=0.0 if time and time.of_day else repeated(whole.table),
        split=divided,
        not_judged=[name for name in of_sample if name not in {truth.name for truth in judged}],
        unused_keys=unused_keys(whole.table, found, made, newest),
        choices=made,
        tasks=learned,
        same=same,
    )
    text = spec(findings)
    return Inferred(text, whole.table.column_names, doubts(made), gaps(divided))
