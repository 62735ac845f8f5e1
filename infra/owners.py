"""Whose columns are, for `recsys spec infer`: the user's, the item's, or the moment's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

Owner = Literal["user", "item", "context"]

CONSTANT = 0.99
"""Keys of several rows that have one value, from which a column is of the key."""
UNUSUAL = 0.5
"""Of those with a value that is not the most frequent one: chance gives nearly none."""
ENOUGH = 10
"""Keys with two values or more from which missing ones need not speak."""


@dataclass(frozen=True)
class Groups:
    """Rows that share a key: their order by key, where each begins, and how many it has."""

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> Groups:
        """The groups of a key's codes (int64 [rows], below 0 where missing, which is no key)."""
        order = np.argsort(codes, kind="stable")
        order = order[np.searchsorted(codes[order], 0) :]
        own = codes[order]
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        return cls(order, starts, np.diff(starts, append=len(own)))

    def of_one_value(self, codes: np.ndarray) -> bool:
        """Whether a column (codes, below 0 where missing) takes one value for each key.

        Where it is missing or the same nearly everywhere, any column does so for most keys. The
        keys that differ from the others speak then.
        """
        repeated = self.sizes > 1
        if not repeated.any():
            return False
        own = codes[self.order]
        present = np.add.reduceat((own >= 0).astype(np.int64), self.starts)
        last = np.iinfo(np.int64).max
        low = np.minimum.reduceat(np.where(own >= 0, own, last), self.starts)
        high = np.maximum.reduceat(own, self.starts)
        one = (present == 0) | (low == high)
        if one[repeated].mean() <= CONSTANT:
            return False
        several = present > 1
        if several.sum() < ENOUGH:
            one &= (present == 0) | (present == self.sizes)
        else:
            repeated &= several
        usual = np.bincount(own[own >= 0]).argmax() if (own >= 0).any() else -1
        differs = np.logical_or.reduceat((own >= 0) & (own != usual), self.starts) & repeated
        return not differs.any() or bool(one[differs].mean() > UNUSUAL)


class Owners:
    """Tells whose a column of a table is.

    Args:
        table: The rows.
        user: The user's column.
        item: The item's column.
        request: The request's column, or None.
    """

    def __init__(self, table: pa.Table, user: str, item: str, request: str | None = None) -> None:
        self._table = table
        self._groups = {
            what: Groups.of(codes(table[name]))
            for what, name in (("item", item), ("user", user), ("request", request))
            if name is not None
        }

    def of(self, name: str) -> Owner:
        """The item or user that a column takes one value for, or else the context."""
        own = codes(self._table[name])
        if self._groups["item"].of_one_value(own):
            return "item"
        return "user" if self._groups["user"].of_one_value(own) else "context"

    def attribute_of(self, label: np.ndarray) -> str:
        """Whose attribute a label (float [rows]) is: of whom each has one value; '' of none."""
        ones = label > 0.5
        for owner in ("user", "item"):
            groups = self._groups[owner]
            if not len(groups.starts):
                continue
            good = np.add.reduceat(ones[groups.order].astype(np.int64), groups.starts)
            several = groups.sizes > 1
            some, none = several & (good > 0), several & (good < groups.sizes)
            if (
                min(some.sum(), none.sum()) >= ENOUGH
                and (good == groups.sizes)[some].mean() > CONSTANT
                and (good == 0)[none].mean() > CONSTANT
            ):
                return owner
        return ""

    def differs_in_requests(self, name: str) -> bool:
        """Whether candidates of one request have values of their own."""
        groups = self._groups.get("request")
        if groups is None or not (groups.sizes > 1).any():
            return False
        return not groups.of_one_value(codes(self._table[name]))


def codes(values: pa.ChunkedArray) -> np.ndarray:
    """A number for each value, int64 [rows]; -1 where it is missing."""
    if pa.types.is_nested(values.type):
        return np.zeros(len(values), np.int64)
    coded = values.combine_chunks()
    if pa.types.is_null(coded.type):
        return np.full(len(values), -1, np.int64)
    indices = coded.dictionary_encode().indices.fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)
