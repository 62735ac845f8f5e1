"""One request made into raw columns: tables, then inline features, then ids, then counters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.spec.schema import counted_by
from serving.columns import id_columns, list_cuts
from serving.contract import Contract, RankRequest
from serving.store import LocalStore


@dataclass(frozen=True)
class Assembled:
    """Raw columns, each [candidates], and what the tables knew."""

    columns: dict[str, np.ndarray]
    user_known: bool
    known: np.ndarray


class Assembler:
    """Joins a request with the feature tables.

    A looked-up value gives way to an inline one. An unknown id has missing values, but its id
    column keeps the id, so that the model sees it as out of vocabulary rather than missing.

    Args:
        contract: Of the spec that the model was trained by.
        store: Tables of the same features.
    """

    def __init__(self, contract: Contract, store: LocalStore) -> None:
        self.contract = contract
        self.store = store
        self._ids = {owner: id_columns(contract.spec, owner) for owner in ("user", "item")}
        self._counted_by = counted_by(contract.spec)
        self._cuts = list_cuts(contract.spec)

    def __call__(self, request: RankRequest) -> Assembled:
        rows = len(request.keys)
        items = self.store.lookup("item", request.keys)
        users = self.store.lookup("user", [request.user_key or ""])
        columns: dict[str, np.ndarray] = {}
        for column in self.contract.columns:
            if column.owner == "item":
                values = items.columns.get(column.name)
                if values is None:
                    values = _repeated(column.default, rows)
                columns[column.name] = values
                continue
            value = column.default
            if column.owner == "user" and column.name in users.columns:
                value = users.columns[column.name][0]
            inline = request.user if column.owner == "user" else request.context
            columns[column.name] = _repeated(inline.get(column.name, value), rows)
        self._fill_ids(columns, request, bool(users.known[0]), items.known)
        for name, (positions, found) in request.items.items():
            columns[name][positions] = found
        self._fill_counters(columns, request)
        # After the counters, which count by whole texts.
        self._cut_lists(columns)
        return Assembled(columns, bool(users.known[0]), items.known)

    def _fill_ids(
        self,
        columns: dict[str, np.ndarray],
        request: RankRequest,
        user_known: bool,
        known: np.ndarray,
    ) -> None:
        if not user_known and request.user_key:
            for name in self._ids["user"]:
                if name not in request.user:
                    columns[name][:] = request.user_key
        if not known.all():
            unknown = np.flatnonzero(~known)
            keys = np.array(request.keys, dtype=object)[unknown]
            for name in self._ids["item"]:
                columns[name][unknown] = keys

    def _fill_counters(self, columns: dict[str, np.ndarray], request: RankRequest) -> None:
        keys, rows = self.contract.spec.data.keys, len(request.keys)
        for name, by in self._counted_by.items():
            if name in request.user or name in request.context:
                continue
            values = []
            for column in by:
                if column in columns:
                    values.append(columns[column])
                elif column == keys.item:
                    values.append(np.array(request.keys, dtype=object))
                elif column == keys.user:
                    values.append(_repeated(request.user_key or "", rows))
                else:
                    values.append(_repeated(request.context.get(column, ""), rows))
            counted = self.store.count(name, values)
            if name in request.items:
                positions, found = request.items[name]
                counted[positions] = found
            columns[name] = counted

    def _cut_lists(self, columns: dict[str, np.ndarray]) -> None:
        for column in self.contract.columns:
            if cut := self._cuts.get(column.name):
                values = columns[column.name]
                # One text of a user or a context would be transformed once a candidate.
                values[:] = list(map(cut, values)) if column.owner == "item" else cut(values[0])


def _repeated(value: str | float, rows: int) -> np.ndarray:
    if not isinstance(value, str):
        return np.full(rows, value, dtype=np.float32)
    # `np.full` would make a copy of the text for each row.
    result = np.empty(rows, dtype=object)
    result[:] = value
    return result
