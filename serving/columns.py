"""JSON values made into raw columns, by the code that the feature job uses for its rows."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from recsys.raw import canonical_values
from recsys.spec import Spec
from recsys.spec.schema import RawColumn, is_own_id, only_counted_by, raw_columns

_SCALARS = (str, int, float, bool)


def canonical_column(
    values: list[Any], column: RawColumn, separator: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values of one raw column as JSON gives them, in canonical form, and which are bad.

    Args:
        values: [rows], of any JSON type; null and NaN mean missing.
        column: The raw column that they belong to.
        separator: Joins the parts of a list; None where the column takes no lists.

    Returns:
        An object array of str or a float32 array, [rows], and the bool array of bad rows.

    >>> column = RawColumn("tags", "string", "item")
    >>> values, bad = canonical_column([["a", 1], "a,b", None, {"a": 1}], column, ",")
    >>> values.tolist(), bad.tolist()
    (['a,1', 'a,b', '', ''], [False, False, False, True])
    """
    result = np.full(
        len(values), column.default, dtype=object if column.dtype == "string" else np.float32
    )
    bad = np.zeros(len(values), dtype=bool)
    # One vectorised call a type: JSON mixes 1 and 2.5, and a call a value would be slow.
    groups: defaultdict[type, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        if value is not None:
            groups[type(value)].append(row)
    for kind, rows in groups.items():
        found = [values[row] for row in rows]
        if kind in _SCALARS:
            result[rows], bad[rows] = canonical_values(found, column, separator)
        elif kind is list and separator is not None and column.dtype == "string":
            result[rows], bad[rows] = _joined(found, column, separator)
        else:
            # Never Arrow's: it would make one struct of all keys of all objects.
            bad[rows] = True
    return result, bad


def _joined(
    lists: list[list[Any]], column: RawColumn, separator: str
) -> tuple[np.ndarray, np.ndarray]:
    flat = [part for parts in lists for part in parts]
    texts, bad_parts = canonical_column(flat, column)
    ends = np.cumsum([len(parts) for parts in lists])
    result = np.empty(len(lists), dtype=object)
    bad = np.zeros(len(lists), dtype=bool)
    start = 0
    for row, end in enumerate(ends):
        # A part with the separator in it would be read as several.
        bad[row] = bad_parts[start:end].any() or any(separator in text for text in texts[start:end])
        result[row] = column.default if bad[row] else separator.join(texts[start:end])
        start = end
    return result, bad


def id_columns(spec: Spec, owner: str) -> tuple[str, ...]:
    """Raw columns of the owner (`user` or `item`) that hold the owner's id itself."""
    return tuple(
        column.name
        for column in raw_columns(spec)
        if column.owner == owner and column.dtype == "string" and is_own_id(spec, column)
    )


def context_only(spec: Spec) -> tuple[RawColumn, ...]:
    """What a request's context tells beside the features, for counters to count by."""
    keys = (spec.data.keys.user, spec.data.keys.item)
    return tuple(
        RawColumn(name, "string", "context") for name in only_counted_by(spec) if name not in keys
    )
