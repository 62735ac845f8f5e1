"""Lines of an inferred spec: features by what columns hold, counters, and the model."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import yaml

from infra.tables import Column
from recsys.spec.names import Names

MOST_CROSSED = 200
"""Features whose dot products are all told apart. Of 225, on a table of 100 numbers, they gave
0.001 of AUC for four times the training time (docs/benchmarks.md)."""

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


def embedded(features: list[dict[str, Any]]) -> int:
    """How many features have embeddings: all but plain numbers, also of counters."""
    encodings = [feature["encode"] for feature in features]
    kinds = [e if isinstance(e, str) else e.get("as", e)["kind"] for e in encodings]
    return sum(kind != "numeric" for kind in kinds)


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


def counters(
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
            quoted(column.name if column.name in left_out else names.of[column.name])
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
