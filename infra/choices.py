"""What becomes of each column that may be a feature, for `recsys spec infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.columns import Column, Looked
from infra.leaks import Late, Truth, late
from infra.owners import Owner
from infra.roles import Roles
from recsys.spec.schema import RESERVED

SEEN = 5
"""Rows of training that an id needs to get an embedding of its own."""
UNSEEN_SHARE = 0.5
"""More than this of the newest rows with an id seldom seen before, and the id is left out."""
FEW_TIMES = {"number": 31, "text": 12}
"""Values up to which a column that is named like a time is a category, such as the hour."""


@dataclass(frozen=True)
class Choice:
    """A column as a feature of its owner, or as none.

    Attributes:
        why_not: Why it is none, whatever the labels are.
        is_place: Whether it is where the item stood, of which the model learns apart.
        inline: Whether it is the item's because candidates of one request differ in it.
        late: Why it seems to be known only after a label; if that is sure, it is no feature.
    """

    column: Column
    owner: Owner = "context"
    why_not: str = ""
    is_place: bool = False
    inline: bool = False
    late: Late | None = None

    @property
    def made(self) -> bool:
        """Whether it becomes a feature like others."""
        return not (self.why_not or self.is_place or (self.late and self.late.sure))


def choices(looked: Looked, found: Roles, judged: list[Truth], newest: np.ndarray) -> list[Choice]:
    """What becomes of the columns, in their order.

    Args:
        looked: The table.
        found: What columns are beside features.
        judged: The labels of the sample.
        newest: Which rows of the whole table stand for those to come, bool [rows].
    """
    made = []
    for column in looked.columns:
        one_value = column.distinct < 2 and column.kind != "none"
        # What is to be said of a label of one value is said with the tasks.
        if column.name in found.taken or (one_value and column in found.label_like):
            continue
        why = "it has one value, or none" if one_value else _unfit(column, found)
        # As with the keys: ids that the rows to come lack are no more than their number's size.
        named = not why and column.numbers_names
        if named and _unseen(looked.read.table, column, newest) > UNSEEN_SHARE:
            why = "most of the newest rows have one seldom seen before"
        if why or column == found.place:
            made.append(Choice(column, why_not=why, is_place=not why))
            continue
        owner: Owner = found.owners.of(column.name)
        of_moment = owner == "context"
        inline = of_moment and found.owners.differs_in_requests(column.name)
        told = late(looked.sample[column.name], column, judged, of_moment)
        made.append(Choice(column, "item" if inline else owner, inline=inline, late=told))
    return made


def unused_keys(
    whole: pa.Table, found: Roles, made: Sequence[Choice], newest: np.ndarray
) -> dict[str, float]:
    """Keys that new rows mostly lack, with the share of these; none that is all its owner has."""
    owners = {choice.owner for choice in made if choice.made}
    keys = [c for owner, c in (("user", found.user), ("item", found.item)) if owner in owners]
    unseen = {column.name: _unseen(whole, column, newest) for column in keys}
    return {name: share for name, share in unseen.items() if share > UNSEEN_SHARE}


def _unseen(table: pa.Table, column: Column, newest: np.ndarray) -> float:
    """The share of the newest rows whose id has fewer than `SEEN` rows before them."""
    values = table[column.name].to_pandas()
    if not newest.any():
        return 0.0
    seen = values[~newest].value_counts()
    return float((values[newest].map(seen).fillna(0) < SEEN).mean())


def _unfit(column: Column, found: Roles) -> str:
    """Why no feature is made of a column, whatever the labels are; '' where one is."""
    if column in found.label_like:
        return "it is named like a label"
    if column.name.startswith(RESERVED):
        return f"names that begin with {RESERVED!r} are the feature job's own"
    if column in found.dates:
        return "it holds dates"
    untimed = found.timing.untimed
    if column.name in untimed and column.distinct > FEW_TIMES.get(column.kind, 0):
        return f"it is named like a time, but {untimed[column.name]}"
    if column.one_a_row:
        return "each row has a value of its own"
    return column.why
