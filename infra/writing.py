"""The text of an inferred spec, with what is to be said of each choice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from infra.bad_rows import ALLOWED, BadRows
from infra.choices import SEEN, Choice
from infra.columns import Column, Looked
from infra.leaks import FEWEST, Late
from infra.roles import Request, Roles, Task, Timing, is_label_like
from infra.splits import Split
from recsys.spec import Spec, loads
from recsys.spec.names import Names
from recsys.spec.schema import encoding_of, tree_inputs

COUNTED_KINDS = 3
"""Categories of an owner whose past is counted: those of most values."""
MOST_KINDS = 2_000
LONGEST_NAME = 60
"""Characters of a name that are kept; the spec allows 100, with what counters add."""
MOST_CROSSED = 200
"""Features whose dot products are all told apart. Of 225, on a table of 100 numbers, they gave
0.001 of AUC for four times the training time (docs/benchmarks.md)."""

ALIKE = 0.01
"""Rows equal to another from which nobody can think that each was written twice."""

_MODEL = """\
# Narrow networks side by side, three with dropout and one without{trees}:
# how much each kind counts for a task, validation says. They read
# {products}.
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
TRAIN = """\
train:
  epochs: 3
  table_learning_rate: 0.03
  dense_learning_rate: 0.002
  weight_decay: 1.0
"""


@dataclass(frozen=True)
class Findings:
    """All that a spec is written of.

    Attributes:
        commands: What to run once it has been looked over.
        unused_keys: The share of the newest rows with one seldom seen before, of keys that get no
            embedding.
        same: Labels that say what another one says, and that one.
        repeated: The share of rows to keep though they equal others.
        not_judged: Labels of so few rows that no column can be seen to follow them.
    """

    looked: Looked
    commands: list[str]
    roles: Roles
    bad: BadRows
    repeated: float
    split: Split
    not_judged: list[str]
    unused_keys: dict[str, float]
    choices: list[Choice]
    tasks: list[Task]
    same: dict[str, str]


def spec(found: Findings) -> str:
    """The text of the spec, with a comment for each choice."""
    names = Names(found.looked.read.table.column_names, LONGEST_NAME)
    task_names = Names([task.name for task in found.tasks], LONGEST_NAME)
    refused, made = _features(found, names)
    if found.split.days:
        made += counters(found, names, task_names)
    features = ["features:", *refused, *_keys(found, names), *made]
    body = "\n".join([*_head(found), *_data(found, names), *features, *_tasks(found, task_names)])
    place = next((choice.column for choice in found.choices if choice.is_place), None)
    rest = TRAIN if place is None else f"  position: {quoted(names.of[place.name])}\n{TRAIN}"
    draft = loads(f"{body}\n{model(0, False)}{rest}", "the inferred spec")
    return f"{body}\n{model(embedded(draft), bool(tree_inputs(draft)))}{rest}"


def _head(found: Findings) -> list[str]:
    """Where the spec comes from, and what to do with it."""
    lines = [
        f"# Written by `recsys spec infer {found.looked.read.path.name}`; look it over, then:",
        *(f"#   {command}" for command in found.commands),
    ]
    # A path may hold what ends a comment.
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


def _data(found: Findings, names: Names) -> list[str]:
    path, roles = found.looked.read.path, found.roles
    keys = {"user": roles.user, "item": roles.item}
    rivals = [
        f"The {what} is {key.name!r}; {_listed(roles.rivals[what])} could be it: --{what} names it."
        for what, key in keys.items()
        if roles.rivals[what]
    ]
    if roles.request.column:
        keys["request"] = roles.request.column
    written = ", ".join(f"{what}: {quoted(key.name)}" for what, key in keys.items())
    return [
        f"name: {quoted(names.allowed(path.stem))}",
        "data:",
        f"  impressions: {quoted(path.name)}",
        *_bad_records(found.bad),
        *_duplicates(found.repeated),
        *_comments(rivals),
        *_request(roles.request),
        f"  keys: {{{written}}}",
        *_time(roles.timing),
        *_division(found.split),
    ]


def _comments(texts: Iterable[str]) -> list[str]:
    return [f"  # {text}" for text in texts]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _request(request: Request) -> list[str]:
    said = []
    if request.why_not:
        said.append(f"No request: {request.why_not}.")
    if request.column and request.single:
        said.append(f"Each row has a request of its own, by {request.column.name!r}.")
    if request.others:
        others = _listed(request.others)
        said.append(f"No features of {others}, which could name requests: --request.")
    return _comments(said)


def _time(timing: Timing) -> list[str]:
    said = [f"No time by {name!r}: it {why}." for name, why in timing.untimed.items()]
    time, dates, rivals = timing.time, timing.dates, timing.rivals
    if dates:
        hold = "holds dates; name it" if len(dates) == 1 else "hold dates; name one"
        said.append(f"No time: {_listed(dates)} {hold} with --time to split by day.")
    if timing.parts:
        said.append(
            f"No time: join {_listed(timing.parts)} into one column of dates (YYYY-MM-DD) to split "
            "by day."
        )
    if timing.numbers:
        said.append(f"{_listed(timing.numbers)} could be times: name one with --time if so.")
    if time is None:
        return _comments(said)
    how = timing.how
    if rivals:
        how = f"the earliest; {_listed(rivals)} hold{'s' * (len(rivals) == 1)} times too"
    if timing.how:
        said.append(f"The time is {time.name!r}, {how}.")
    if time.read.note:
        said.append(f"{time.name!r} {time.read.note}.")
    column = time.read.column
    read = f"format: {json.dumps(column.format)}" if column.format else f"unit: {column.unit}"
    return [*_comments(said), f"  time: {{column: {quoted(time.name)}, {read}}}"]


def _features(found: Findings, names: Names) -> tuple[list[str], list[str]]:
    """Comments on columns that are no features, and the lines of the others, keys aside."""
    refused = _comments(
        f"Whether a column is known only after {name!r} was not judged: fewer than {FEWEST} rows "
        "differ."
        for name in found.not_judged
    )
    made: list[str] = []
    for choice in found.choices:
        if choice.made or choice.is_place:
            made += _made(choice, names)
        else:
            refused += _refused(choice, found.roles, names)
    alone = found.roles.request.column is None or found.roles.request.single
    if alone and any(choice.made and choice.owner == "context" for choice in found.choices):
        refused += _comments(
            (
                "No request tells what was shown together. A feature of the context has one value "
                "for all that is",
                "ranked at once; those that differ between candidates are to have owner: item.",
            )
        )
    return refused, made


def _made(choice: Choice, names: Names) -> list[str]:
    """A column's features, and what is doubtful in them."""
    name, said = repr(choice.column.name), []
    if choice.is_place:
        text = f"  # {name} is where the item stood, of which the model learns the effect apart."
        encode = feature(names.of[choice.column.name], "context", choice.column, "vocabulary")
        return [text, encode]
    if choice.late:
        doubt = _doubt(choice.column, choice.late)
        said.append(f"{doubt} Leave it out if it is known only after.")
    if choice.inline:
        said.append(f"{name} differs within requests: each candidate brings its own.")
    encoded = encodings(choice.column, choice.owner, names)
    return [*_comments(said), *_parted(choice.column), *encoded]


def _refused(choice: Choice, roles: Roles, names: Names) -> list[str]:
    """Why a column is no feature; the lines of one that seems to be known only after a label."""
    column, why = choice.column, choice.why_not
    if choice.late is None:
        if column in roles.label_like:
            how = f"add --label {quoted(column.name)}" if column.binary else "write 0 and 1"
            why += f"; {how} to learn it"
        return [f"  # No feature of {column.name!r}: {why}.", *_parted(column)]
    said = [
        f"No feature of {column.name!r}: {choice.late.why}, so it seems to be known only after."
    ]
    if column.binary:
        # Who names one label has named them all.
        every = [*(label.name for label in roles.labels), column.name]
        named = " ".join(f"--label {quoted(name)}" for name in every)
        said.append(f"If it is an outcome to learn: {named}.")
    elif is_label_like(column):
        said.append("It is named like a label: write 0 and 1 to learn it.")
    said.append("If it is known before, take these lines out of the comment:")
    said += [line.strip() for line in encodings(column, choice.owner, names)]
    return _comments(said)


def _parted(column: Column) -> list[str]:
    """What is to be said of texts that seem to be lists."""
    if not column.seems:
        return []
    return [
        f"  # {column.name!r} seems to hold lists: to read their parts, give its vocabulary a "
        "max_length, and the",
        f"  # feature separator: {json.dumps(column.seems)}.",
    ]


def _keys(found: Findings, names: Names) -> list[str]:
    """Lines of the ids' own features."""
    encode = f"{{kind: vocabulary, min_count: {SEEN}}}"
    lines = []
    for owner, column in (("user", found.roles.user), ("item", found.roles.item)):
        unseen = found.unused_keys.get(column.name)
        lines.append(
            feature(names.of[column.name], owner, column, encode)
            if unseen is None
            else f"  # No embedding of {quoted(column.name)}: {unseen:.0%} of the newest rows have "
            f"one seen fewer than {SEEN} times before."
        )
    return lines


def _tasks(found: Findings, names: Names) -> list[str]:
    labels = [column.name for column in found.roles.labels]
    lines = ["tasks:"]
    lines += _comments(
        f"No task of {column.name!r}: all rows have one value."
        for column in found.roles.label_like
        if column.distinct < 2
    )
    learned = {task.name for task in found.tasks}
    lines += _comments(
        f"{name!r} says the same as {other!r}."
        if name in learned
        else f"No task of {name!r}: it says the same as {other!r}."
        for name, other in found.same.items()
    )
    for name, owner in found.roles.attributes.items():
        if name in labels:
            lines.append(f"  # Each {owner} has one value of {name!r}: is it an outcome?")
        else:
            lines += [
                f"  # No task of {name!r}: each {owner} has one value, as an attribute has. If it "
                "is an outcome, name",
                "  # all labels with --label.",
            ]
    lines += _comments(
        f"{task.name!r} lies within {other!r}, perhaps by chance ({task.ones:,} rows have it): if "
        f"it follows it, add given: {other}."
        for task in found.tasks
        for other in task.perhaps
    )
    for task in found.tasks:
        lines += _task(task, names)
    return lines


def _bad_records(found: BadRows) -> list[str]:
    """What the feature job will set apart, and that it stops where that is too much."""
    whats = [
        f"{bad.share:.2%} of the rows have {bad.what}" + f" {bad.column!r}" * bool(bad.column)
        for bad in found.kinds
    ]
    if found.ragged:
        whats.append(f"{found.ragged:,} lines have too few or too many fields")
    lines = [f"  # {what}; the feature job calls them bad records." for what in whats]
    if found.share > ALLOWED:
        lines += [
            f"  # In all {found.share:.2%} are bad records, and above {ALLOWED:.0%} it stops: "
            "filter",
            "  # or fill these rows, or let them be set apart:",
            f"  # bad_records: {min(1.0, math.ceil(100 * found.share + 1) / 100)}",
        ]
    return lines


def _duplicates(share: float) -> list[str]:
    """That rows which equal others are kept."""
    if share <= ALIKE:
        return []
    return [
        f"  # {share:.0%} of the rows equal another one in all columns, and none tells the moment:",
        "  # each counts.",
        "  duplicates: keep",
    ]


def _division(split: Split) -> list[str]:
    """How rows are divided, and by what days."""
    said = []
    if split.early:
        rows, day = split.early
        said.append(f"{_rows(rows)} before {day}, the first day with many: are their times right?")
    if split.late:
        rows, day = split.late
        said.append(f"{_rows(rows)} after {day}, the last day with many: left out.")
    if split.why_not:
        said.append(f"No split by day: {split.why_not}.")
    said += gaps(split)
    parts: dict[str, Any] = dict(split.until) or {"validation": 0.1, "test": 0.1}
    line = ", ".join(f"{part}: {end}" for part, end in parts.items())
    return [*_comments(said), f"  split: {{{line}}}"]


def gaps(split: Split) -> list[str]:
    """Labels that rows of a part of the split all have, or none of them, or perhaps none."""
    few = [
        f"Only {_rows(count)} have {name!r}: validation and test have about a tenth of them each."
        for name, count in split.few.items()
    ]
    said = [("No row", name, part) for name, part in split.lacking]
    said += [("Each row", name, part) for name, part in split.full]
    return few + [
        f"{rows} of the {part} split has {name!r}: choose other days." for rows, name, part in said
    ]


def doubts(choices: Iterable[Choice]) -> list[str]:
    """Features that may be known only after a label, and why."""
    return [_doubt(c.column, c.late) for c in choices if c.made and c.late]


def _doubt(column: Column, late: Late) -> str:
    return f"{column.name!r}: {late.why}."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _task(of: Task, names: Names) -> list[str]:
    """A task, and how often its label is missing."""
    lines = []
    if of.blank.any():
        rows = f"the rows with {of.given!r}" if of.given else "the rows"
        lines.append(
            f"  # {of.blank.sum() / of.rows:.2%} of {rows} have no {of.name!r}; the feature job "
            "calls them bad records."
        )
    given = f", given: {quoted(names.of[of.given])}" if of.given else ""
    name, column = quoted(names.of[of.name]), quoted(of.name)
    return [*lines, f"  - {{name: {name}, label: {{column: {column}}}{given}}}"]


def embedded(spec: Spec) -> int:
    """How many features have embeddings: all but plain numbers, also of counters."""
    return sum(encoding_of(feature).kind != "numeric" for feature in spec.features)


def model(embedded: int, trees: bool) -> str:
    """The model's section, for that many features with embeddings, with boosted trees or not."""
    products, interactions = "the dot product of each pair of features", "[fm, dot]"
    if embedded > MOST_CROSSED:
        pairs = embedded * (embedded - 1) // 2
        products = f"the sum of all dot products of pairs (each of {pairs:,} alone takes long)"
        interactions = "[fm]"
    beside = ", and boosted trees beside them" if trees else ""
    text = _MODEL.format(products=products, interactions=interactions, trees=beside)
    return text + _TREES * trees


def counters(found: Findings, names: Names, tasks: Names) -> list[str]:
    """Counters to the end of the day before, which also know what the towers never saw.

    Target statistics in time order, as in CatBoost (Prokhorenkova et al., 2018); those of pairs
    stand for the cross-product features of Wide & Deep (Cheng et al., 2016).
    """
    user, item = found.roles.user, found.roles.item
    kinds = {owner: _counted(found, owner) for owner in ("user", "item", "context")}
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
            quoted(column.name if column.name in found.unused_keys else names.of[column.name])
            for column in by
        )
        start = f"owner: {owner}, encode: {{kind: counter, by: [{keys}]"
        lines.append(
            f"  - {{name: {names.new(f'{name}_seen')}, {start}, statistic: impressions, "
            "as: {kind: numeric, scale: log_zscore}}}"
        )
        lines += [
            f"  - {{name: {names.new(f'{name}_{task}_rate')}, {start}, task: {quoted(task)}, "
            f"prior_weight: {prior}, as: {{kind: piecewise, bins: 16}}}}}}"
            for task in tasks.of.values()
        ]
    return lines


def _counted(found: Findings, owner: str) -> list[Column]:
    """The categories of an owner whose past is counted."""
    own = [c.column for c in found.choices if c.made and c.owner == owner]
    kinds = [column for column in own if column.category and column.distinct <= MOST_KINDS]
    return sorted(kinds, key=lambda column: -column.distinct)[:COUNTED_KINDS]


def encodings(column: Column, owner: str, names: Names) -> list[str]:
    name = names.of[column.name]
    minimum = 5 if column.distinct > 1000 else 1
    if column.kind == "list":
        encode = f"{{kind: vocabulary, min_count: {minimum}, max_length: {column.length}}}"
        line = feature(name, owner, column, encode)
        if column.separator:
            line = f"{line[:-1]}, separator: {json.dumps(column.separator)}}}"
        return [line]
    if column.name_like:
        return [feature(name, owner, column, f"{{kind: vocabulary, min_count: {minimum}}}")]
    if column.category:
        return [feature(name, owner, column, "vocabulary")]
    return [
        feature(name, owner, column, "{kind: piecewise, bins: 16}"),
        feature(names.new(f"{name}_bucket"), owner, column, "{kind: quantiles, buckets: 20}"),
    ]


def feature(name: str, owner: str, column: Column, encode: str) -> str:
    raw = f", column: {quoted(column.name)}" if column.name != name else ""
    return f"  - {{name: {quoted(name)}, owner: {owner}{raw}, encode: {encode}}}"


@lru_cache(maxsize=65_536)
def quoted(text: str) -> str:
    """Text as YAML: in quotes where YAML would read something else, as in `on` and `72`."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9_.-]*", text) and yaml.safe_load(text) == text
    if plain:
        return text
    # YAML refuses some marks that JSON leaves alone, and breaks lines at others.
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in quoted)
