"""What the columns of a table hold, as far as a sample tells, for `recsys spec infer`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from infra.tables import BAD_BYTES, Read, beyond_integers, sample
from recsys.raw import EXACT, MISSING_TEXTS, canonical, is_missing, unbracketed
from recsys.spec.schema import NUMBER, RawColumn

FEW_VALUES = 12
"""Whole numbers of no more values than this are categories."""
LONGEST_LIST = 50
READ_AS_NUMBERS = 0.99
"""Cells of a text column that are numbers, from which it is one; the others make their rows bad."""
UNIQUE = 0.99
"""Values a row from which a column of names tells rows apart, a few repeated rows aside."""
FEWEST_ROWS = 100
"""Rows from which numbers without a gap are seen to count the rows."""
PARTED = 0.3
"""Texts with a mark between their parts from which all are lists."""
REPEATED = 5
"""How often a part comes at least, and how many texts there are for a part, in lists."""

_ROW = r"(unnamed: *\d+|index|row|id|(row|impression|event|log|example|sample)_?id)"
_NAMED = (
    r"(?!.*year)(.*_)?(id|uid|iid|uuid|guid|sku|code|zip|zipcode|postcode|plz)|"
    r"user|customer|item|product"
)
_NUMBERED = r"(.*_)?(no|nr|num|number)"
_MARKS = (",", "|", ";", "\t", "\x1f")
Kind = Literal["text", "number", "list", "date", "none"]


@dataclass(frozen=True)
class Column:
    """What a column holds, as far as a sample tells.

    Attributes:
        kind: `none` can be no feature, and `why` says the reason.
        distinct: How many values it takes; for lists, their parts.
        known: The same without texts that stand for a missing value.
        whole: Whether its numbers have no fractions.
        huge: Whether its numbers are too large to be amounts.
        binary: Whether it holds 0 and 1 alone, both of them, as the feature job reads them.
        length: Parts that nearly all of its lists have at most.
        separator: What stands between the parts of its lists, where that is no comma.
        counting: Whether its numbers count the rows.
        seems: What stands between the parts of its texts, if these seem to be lists.
    """

    name: str
    kind: Kind
    rows: int
    distinct: int
    known: int
    whole: bool = True
    huge: bool = False
    binary: bool = False
    length: int = 0
    why: str = ""
    separator: str = ""
    counting: bool = False
    seems: str = ""

    @property
    def snake(self) -> str:
        """Its name as most write it."""
        return snake(self.name)

    @property
    def numbers_names(self) -> bool:
        """Whether its whole numbers are names, as those of an id, a code or a postcode."""
        number = self.kind == "number" and self.whole
        return number and re.fullmatch(_NAMED, self.snake) is not None

    @property
    def name_like(self) -> bool:
        """Whether its values are names, of which there may be any number."""
        return self.kind == "text" or self.huge or self.numbers_names

    @property
    def category(self) -> bool:
        """Whether its values are names rather than amounts."""
        few = self.kind == "number" and self.whole and self.distinct <= FEW_VALUES
        return self.name_like or few

    @property
    def one_a_row(self) -> bool:
        """Whether it is a text or a number of the row itself, of which new rows have none."""
        named = self.name_like or re.fullmatch(_ROW, self.name, re.I) is not None
        named |= self.counting or (self.whole and re.fullmatch(_NUMBERED, self.snake) is not None)
        unique = self.distinct >= UNIQUE * self.rows
        return self.kind in ("text", "number") and named and unique


def snake(name: str) -> str:
    """A column's name as most write it.

    >>> snake("userId"), snake(" USER ID"), snake("Clicked?")
    ('user_id', 'user_id', 'clicked')
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", parted).strip("_").lower()


@dataclass(frozen=True)
class Looked:
    """A table, a sample of it with lists joined and numbers made of text, and what that holds."""

    read: Read
    sample: pa.Table
    columns: list[Column]


def look(read: Read, most: int) -> Looked:
    """What columns hold: the values of all their rows, or of `most` from all over the table.

    Whether a column has one value or two is told by the whole table, of which few rows may differ.
    """
    table = sample(read.table, most)
    seen, columns = {}, []
    for name in table.column_names:
        seen[name], column = _look(name, table[name], read.is_csv)
        few = column.known <= 2 and column.kind != "none"
        if few and len(table) < len(read.table):
            column = _look(name, read.table[name], read.is_csv)[1]
        columns.append(column)
    return Looked(read, pa.table(seen), columns)


def _look(name: str, values: pa.ChunkedArray, is_csv: bool) -> tuple[pa.ChunkedArray, Column]:
    kind = values.type
    if types.is_string(kind):
        numbers = _numbers(values, is_csv)
        return _text(name, values) if numbers is None else (numbers, _number(name, numbers))
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return values, _number(name, values)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _list(name, values)
    if types.is_date(kind) or types.is_timestamp(kind):
        distinct = len(pc.unique(values.drop_null()))
        return values, Column(name, "date", len(values), distinct, distinct)
    if types.is_null(kind):
        return values, Column(name, "text", len(values), 0, 0)
    why = f"no feature can be made of {kind}"
    if types.is_time(kind):
        why = "it holds the time of day alone; as a number, such as the hour, it can be one"
    elif types.is_duration(kind):
        why = "it holds durations; as a number of seconds it can be one"
    return values, Column(name, "none", len(values), 0, 0, why=why)


def _text(name: str, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    distinct = pc.unique(values.drop_null())
    known = len(distinct) - int(pc.sum(is_missing(distinct)).as_py() or 0)
    binary = _binary(name, distinct)
    column = Column(name, "text", len(values), len(distinct), known, binary=binary)
    mark = _bracketed(values)
    if mark:
        text = pa.chunked_array([canonical(values, RawColumn(name, "string", "context"), mark)[0]])
        return text, _of_parts(column, text, mark)
    mark = _parted(values, distinct)
    if mark in ("|", ";"):
        return values, _of_parts(column, values, mark)
    return values, replace(column, seems=mark)


def _number(name: str, values: pa.ChunkedArray) -> Column:
    distinct = pc.unique(values.drop_null())
    rows, count, whole, huge, counting = len(values), len(distinct), True, False, False
    if types.is_floating(values.type):
        finite = distinct.to_numpy()[np.isfinite(distinct.to_numpy())]
        whole = bool((finite == np.floor(finite)).all())
    elif types.is_integer(values.type) and count:
        bounds = pc.min_max(distinct).as_py()
        huge = max(abs(bounds["min"]), abs(bounds["max"])) > EXACT
        gapless = bounds["max"] - bounds["min"] < rows / UNIQUE
        counting = rows >= FEWEST_ROWS and count >= UNIQUE * rows and gapless
    binary = _binary(name, distinct)
    return Column(name, "number", rows, count, count, whole, huge, binary, counting=counting)


def _list(name: str, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    parts = pc.list_flatten(values.combine_chunks() if values.num_chunks else values)
    raw, why = RawColumn(name, "string", "context"), ""
    if types.is_nested(parts.type):
        why = f"no feature can be made of {values.type}"
    elif types.is_floating(parts.type) and not _are_whole(parts):
        why = "its lists hold amounts; a column for each place can be one"
    else:
        words, _ = canonical(parts, raw)
        text, bad = canonical(values, raw)
        if bad.mean() > BAD_BYTES:
            why = f"no text can be made of {values.type}"
    if why:
        return values, Column(name, "none", len(values), 0, 0, why=why)
    known = pc.unique(words)
    free = [m for m in _MARKS if not pc.any(pc.match_substring(known, m)).as_py()]
    separator = free[0] if free and free[0] != _MARKS[0] else ""
    if separator:
        text, _ = canonical(values, raw, separator)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    # An empty list tells as much as a part.
    distinct = len(known) - int(pc.any(pc.equal(known, "")).as_py() or 0)
    distinct += int((lengths == 0).any())
    return pa.chunked_array([text]), _lists(name, len(values), distinct, lengths, separator)


def _lists(name: str, rows: int, distinct: int, lengths: np.ndarray, separator: str) -> Column:
    length = int(np.clip(np.quantile(lengths, 0.99), 1, LONGEST_LIST))
    return Column(name, "list", rows, distinct, distinct, length=length, separator=separator)


def _are_whole(values: pa.Array) -> bool:
    """Whether floats have no fractions."""
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    return bool((numbers == np.floor(numbers)).all())


def _bracketed(values: pa.ChunkedArray) -> str:
    """What stands between the parts of lists in brackets, as pandas writes them; '' for others."""
    present = values.drop_null().combine_chunks()
    inner, torn = unbracketed(present, ",")
    lists = np.asarray(pc.not_equal(inner, present)) | torn
    if not len(present) or lists.mean() < READ_AS_NUMBERS or torn.mean() > BAD_BYTES:
        return ""
    if not pc.any(pc.match_substring(inner, ",")).as_py():
        spaced, torn = unbracketed(present, " ")
        if not torn.any() and pc.any(pc.match_substring(spaced, " ")).as_py():
            return " "  # as NumPy writes arrays
    return ","


def _parted(values: pa.ChunkedArray, distinct: pa.Array) -> str:
    """What stands between the parts of texts that seem to be lists; '' where they do not.

    Parts of lists come again and again, and their numbers differ.
    """
    distinct = distinct.slice(0, 10_000)
    for mark in ("|", ";", ",", " "):
        has = pc.fill_null(pc.match_substring(values, mark), False)
        if not len(distinct) or pc.mean(has.cast(pa.int8())).as_py() < PARTED:
            continue
        lists = pc.split_pattern(distinct, mark)
        if len(pc.unique(pc.list_value_length(lists))) == 1:
            continue  # a name of two parts
        parts = pc.list_flatten(lists)
        few = len(pc.unique(parts))
        plain = not pc.any(pc.match_substring_regex(parts, r"^\s|\s$|^\[|^$")).as_py()
        if plain and few > 2 and few * REPEATED <= min(len(distinct), len(parts)):
            return mark
    return ""


def _of_parts(column: Column, values: pa.ChunkedArray, mark: str) -> Column:
    """A column of texts that are lists."""
    lists = pc.split_pattern(pc.fill_null(values, "").combine_chunks(), mark)
    distinct = len(pc.unique(pc.list_flatten(lists)))
    lengths = pc.list_value_length(lists).to_numpy()
    return _lists(column.name, column.rows, distinct, lengths, mark)


def _numbers(values: pa.ChunkedArray, is_csv: bool) -> pa.ChunkedArray | None:
    """Text as numbers where it is hardly anything else but for marks of a missing value.

    Whole numbers alone, without such a mark, were made text by somebody's choice: they are ids.
    In CSV, where nobody chose, they are text for the sake of a few other cells.
    """
    few = values.slice(0, 1000)
    numbers_or_none = pc.or_(is_missing(few), pc.match_substring_regex(few, NUMBER))
    if (pc.mean(numbers_or_none.cast(pa.int8())).as_py() or 0) < 0.9:
        return None
    mark = is_missing(values)
    present = values.filter(pc.invert(mark))
    blank = pc.equal(values, "")
    marked = pc.any(pc.and_not(mark, blank)).as_py()
    number = pc.match_substring_regex(present, NUMBER)
    share = pc.mean(number.cast(pa.int8())).as_py() or 0.0
    strange = 1.0 - share > 0.0
    whole = pc.all(pc.match_substring_regex(present.filter(number), r"^[+-]?[0-9]+$")).as_py()
    zeros = pc.any(pc.match_substring_regex(present, r"^0[0-9]")).as_py()
    chosen = whole and not marked and not (strange and is_csv)
    if not len(present) or zeros or chosen or share < READ_AS_NUMBERS:
        return None
    try:
        # Not by `canonical`, whose float32 makes neighbouring times and ids one.
        trimmed = pc.utf8_trim_whitespace(values)
        if strange:
            number = pc.match_substring_regex(values, NUMBER)
            mark = pc.or_(pc.fill_null(mark, True), pc.invert(pc.fill_null(number, False)))
        numbers = pc.if_else(mark, pa.scalar(None, values.type), trimmed).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return None if beyond_integers(numbers) else numbers


def _binary(name: str, distinct: pa.Array) -> bool:
    if not 2 <= len(distinct) <= 2 + len(MISSING_TEXTS):
        return False
    numbers, bad = canonical(distinct, RawColumn(name, "float32", "context"))
    array = numbers.to_numpy()
    return not bad.any() and set(array[~np.isnan(array)]) == {0.0, 1.0}


def label(table: pa.Table, column: Column) -> np.ndarray:
    """A label as the feature job reads it, float32 [rows], NaN where it is missing."""
    values, _ = canonical(table[column.name], RawColumn(column.name, "float32", "context"))
    return np.asarray(values.to_numpy())


def missing(values: pa.ChunkedArray) -> np.ndarray:
    """Which rows have no value, bool [rows]."""
    none = pc.is_null(values)
    if types.is_string(values.type):
        none = pc.or_(none, pc.fill_null(is_missing(values), True))
    return np.asarray(none.to_numpy())
