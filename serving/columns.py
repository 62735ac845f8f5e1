"""JSON values made into raw columns, by the code that the feature job uses for its rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from recsys.raw import canonical_values
from recsys.spec import Spec
from recsys.spec.records import History
from recsys.spec.schema import (
    LIST_SEPARATOR,
    WHITESPACE,
    RawColumn,
    feature_inputs,
    is_own_id,
    only_counted_by,
    raw_columns,
    weights_of,
)

MAX_TEXT = 2000
"""Characters of an id, a text or a part of a list at most: the graph reads it once a candidate."""

_SCALARS = (str, int, float, bool)


def canonical_column(
    values: list[Any], column: RawColumn, separator: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values of one raw column as JSON gives them, in canonical form, and which are bad.

    Args:
        values: [rows], of any JSON type; null and NaN mean missing, and a text or part of a list
            beyond `MAX_TEXT` is bad.
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
            if kind is str:
                bad[rows] |= [longest_text(value, separator) > MAX_TEXT for value in found]
        elif kind is list and separator is not None and column.dtype == "string":
            result[rows], bad[rows] = _joined(found, column, separator)
        else:
            # Never Arrow's: it would make one struct of all keys of all objects.
            bad[rows] = True
    return result, bad


def longest_text(value: Any, separator: str | None) -> int:
    """Characters of a JSON value, or of the longest part where it is a list; 0 if it is no text.

    >>> longest_text("abc", None), longest_text(["a", 1, "bc"], "|"), longest_text(7, None)
    (3, 2, 0)
    """
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, str)]
    elif not isinstance(value, str):
        parts = []
    elif separator is None or len(value) <= MAX_TEXT:
        return len(value)
    else:
        parts = value.split(separator)
    return max(map(len, parts), default=0)


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


@dataclass(frozen=True)
class ListCut:
    """Takes off a list's text what the transform graph would split and then leave out.

    Attributes:
        separator: Between the parts.
        length: Parts that are read.
        strip: What is stripped off a part before it is found to be blank.

    >>> ListCut(",", 2, " ")("a, , b,c"), ListCut(",", 2, " ")("a,")
    ('a, b', 'a,')
    """

    separator: str
    length: int
    strip: str

    def __call__(self, text: str) -> str:
        """The text, or of a longer list its first parts."""
        if text.count(self.separator) < self.length:
            return text
        parts = (part for part in text.split(self.separator) if part.strip(self.strip))
        return self.separator.join(islice(parts, self.length))


def list_cuts(spec: Spec) -> dict[str, ListCut]:
    """The raw columns that features read as lists, each with its cut.

    A list with weights stays whole, and so do these: the graph compares their lengths.
    """
    cuts: dict[str, ListCut] = {}
    whole: set[str] = set()
    for feature, item in zip(spec.features, feature_inputs(spec), strict=True):
        if not feature.is_list:
            continue
        history = isinstance(feature.encode, History)
        column = feature.name if history else feature.raw
        strip = "" if history else WHITESPACE
        cut = ListCut(feature.separator or LIST_SEPARATOR, item.length, strip)
        # All features that read a column split it alike.
        cuts[column] = replace(cut, length=max(cut.length, cuts.get(column, cut).length))
        if weights_of(feature) is not None or not _splits_plainly(cut.separator):
            whole.add(column)
    return {column: cut for column, cut in cuts.items() if column not in whole}


def _splits_plainly(separator: str) -> bool:
    """Whether the graph, which collapses separators and blanks, finds the parts that a split does.

    Not always where a separator ends as it begins (`--` in `---`), or begins with a blank.
    """
    ends = range(1, len(separator))
    return not any(separator.startswith(separator[start:]) for start in ends) and (
        len(separator) == 1 or separator[0] not in WHITESPACE
    )


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
