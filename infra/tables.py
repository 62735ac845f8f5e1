"""A table for `recsys spec infer`: read as the feature job reads it, and what its columns hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import types

from beam_jobs.plan import Source
from beam_jobs.sources import BYTES_PER_BLOCK, File, check_delimiter, resolve
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.raw import EXACT, MISSING_TEXTS, canonical, is_missing
from recsys.schema import NUMBER, RawColumn

FEW_VALUES = 12
"""Whole numbers of no more values than this are categories."""
LONGEST_LIST = 50
BAD_BYTES = 0.01
"""Rows that may hold bytes which are no text: what `data.bad_records` allows by default."""

_ROW = r"(unnamed: *\d+|index|row|id|(row|impression|event|log|example|sample)_?id)"

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

    @property
    def name_like(self) -> bool:
        """Whether its values are names, of which there may be any number."""
        return self.kind == "text" or self.huge

    @property
    def category(self) -> bool:
        """Whether its values are names rather than amounts."""
        few = self.kind == "number" and self.whole and self.distinct <= FEW_VALUES
        return self.name_like or few

    @property
    def one_a_row(self) -> bool:
        """Whether it is a text or a number of the row itself, of which new rows have none."""
        named = self.name_like or re.fullmatch(_ROW, self.name, re.I) is not None
        return self.kind in ("text", "number") and named and self.distinct == self.rows


def read(path: Path) -> pa.Table:
    """The whole table, in the formats and by the rules of the feature job.

    Raises:
        UserError: It is not there, cannot be read, has no rows, or has two columns of one name.
    """
    if path.is_dir():
        raise UserError(
            "The table is a folder.",
            where=str(path),
            expected="one file, CSV or Parquet",
            fix="Name one of its files; then put the folder into the spec's data.impressions.",
            exit_code=EXIT_WRONG_USE,
        )
    if not path.exists():
        raise UserError(
            "The table does not exist.", where=str(path), exit_code=EXIT_WRONG_USE
        ) from None
    try:
        [file] = resolve(path, Source("impressions", path.name, ()))
    except UserError as error:
        error.fix = error.fix or "Give it such an ending."
        raise
    try:
        table = _read_csv(file) if file.is_csv else pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "The table cannot be read.",
            where=str(path),
            expected="CSV with a header, or Parquet",
            found=str(error),
        ) from None
    # What pandas wrote of its index would make columns vanish on their way back to pandas.
    table = table.replace_schema_metadata(None)
    names = [n for n in table.column_names if n and not re.fullmatch(r"__index_level_\d+__", n)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            "Columns of the table have the same name.",
            where=str(path),
            found=", ".join(twice),
            fix="Give each a name of its own.",
        )
    if not len(table):
        raise UserError(
            "The table has no rows.",
            where=str(path),
            expected="a header and rows of as many fields" if file.is_csv else "rows",
        )
    return pa.table({name: _plain(table[name]) for name in names})


def _read_csv(file: File) -> pa.Table:
    _require_header(file)
    table = _csv(file, {})
    wide = [
        field.name
        for field in table.schema
        if types.is_floating(field.type)
        and table.column_names.count(field.name) == 1
        and _beyond_integers(table[field.name])
    ]
    if wide:
        # Arrow takes whole numbers of more than 64 bits for floats, which makes ids alike.
        texts = _csv(file, {name: pa.string() for name in wide})
        for name in wide:
            present = texts[name].filter(pc.invert(is_missing(texts[name])))
            if pc.all(pc.match_substring_regex(present, r"^[+-]?[0-9]+$")).as_py():
                table = table.set_column(table.column_names.index(name), name, texts[name])
    for name in dict.fromkeys(table.column_names):
        if table.column_names.count(name) == 1 and types.is_binary(table[name].type):
            text, bad = canonical(table[name], RawColumn(name, "string", "context"))
            if bad.mean() > BAD_BYTES:
                raise _no_utf8(file, f"{bad.mean():.0%} of {name!r} in another encoding")
            table = table.set_column(table.column_names.index(name), name, pa.chunked_array([text]))
    return table


def _csv(file: File, column_types: dict[str, pa.DataType]) -> pa.Table:
    with file.open() as stream:
        return pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=BYTES_PER_BLOCK),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter,
                newlines_in_values=True,
                invalid_row_handler=lambda _: "skip",
            ),
            convert_options=pa_csv.ConvertOptions(
                null_values=list(MISSING_TEXTS), column_types=column_types
            ),
        )


def _require_header(file: File) -> None:
    """Refuse a header in another encoding, or of another delimiter than the ending says."""
    with file.open() as stream:
        line = stream.read(1 << 20).split(b"\n")[0]
    try:
        line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _no_utf8(file, "a header in another encoding") from None
    check_delimiter(file)


def _no_utf8(file: File, found: str) -> UserError:
    return UserError(
        "The table is not in UTF-8.",
        where=file.path,
        expected="text in UTF-8",
        found=found,
        fix="Convert it: iconv -f latin1 -t utf-8 TABLE > NEW, or what its encoding is.",
    )


def _beyond_integers(values: pa.ChunkedArray) -> bool:
    numbers = values.drop_null().to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    return bool(
        len(numbers) and np.abs(numbers).max() >= EXACT and (numbers == np.floor(numbers)).all()
    )


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values in one of few types: codes as what they stand for, NaN as missing."""
    kind = values.type
    if types.is_dictionary(kind):
        chunks = [chunk.dictionary_decode() for chunk in values.chunks]
        return _plain(pa.chunked_array(chunks, type=kind.value_type))
    if types.is_decimal(kind) or types.is_float16(kind):
        return values.cast(pa.float64(), safe=False)
    if types.is_floating(kind):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return values.cast(pa.string())
    if types.is_binary(kind) or types.is_large_binary(kind):
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            return values
    return values


def look(table: pa.Table) -> tuple[pa.Table, list[Column]]:
    """A sample with lists joined and numbers made of text, and what its columns hold."""
    seen, columns = {}, []
    for name in table.column_names:
        seen[name], column = _look(name, table[name])
        columns.append(column)
    return pa.table(seen), columns


def _look(name: str, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    kind, rows = values.type, len(values)
    if types.is_string(kind):
        numbers = _numbers(values)
        if numbers is None:
            distinct = pc.unique(values.drop_null())
            known = len(distinct) - int(pc.sum(is_missing(distinct)).as_py() or 0)
            binary = _binary(name, distinct)
            return values, Column(name, "text", rows, len(distinct), known, binary=binary)
        values, kind = numbers, numbers.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        distinct = pc.unique(values.drop_null())
        count, whole, huge = len(distinct), True, False
        if types.is_floating(kind):
            finite = distinct.to_numpy()[np.isfinite(distinct.to_numpy())]
            whole = bool((finite == np.floor(finite)).all())
        elif types.is_integer(kind) and count:
            bounds = pc.min_max(distinct).as_py()
            huge = max(abs(bounds["min"]), abs(bounds["max"])) > EXACT
        binary = _binary(name, distinct)
        return values, Column(name, "number", rows, count, count, whole, huge, binary)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _list(name, values)
    if types.is_date(kind) or types.is_timestamp(kind):
        distinct = pc.unique(values.drop_null())
        return values, Column(name, "date", rows, len(distinct), len(distinct))
    if types.is_null(kind):
        return values, Column(name, "text", rows, 0, 0)
    why = f"no feature can be made of {kind}"
    if types.is_time(kind):
        why = "it holds the time of day alone; as a number, such as the hour, it can be one"
    elif types.is_duration(kind):
        why = "it holds durations; as a number of seconds it can be one"
    return values, Column(name, "none", rows, 0, 0, why=why)


def _list(name: str, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    parts = pc.list_flatten(values.combine_chunks() if values.num_chunks else values)
    if types.is_nested(parts.type):
        why = f"no feature can be made of {values.type}"
        return values, Column(name, "none", len(values), 0, 0, why=why)
    if types.is_floating(parts.type):
        numbers = parts.drop_null().to_numpy(zero_copy_only=False)
        if (numbers != np.floor(numbers)).any():
            why = "its lists hold amounts; a column for each place can be one"
            return values, Column(name, "none", len(values), 0, 0, why=why)
    text, bad = canonical(values, RawColumn(name, "string", "context"))
    if bad.mean() > BAD_BYTES:
        why = f"no text can be made of {values.type}"
        return values, Column(name, "none", len(values), 0, 0, why=why)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    length = int(np.clip(np.quantile(lengths, 0.99), 1, LONGEST_LIST))
    # An empty list tells as much as a part.
    words, _ = canonical(parts, RawColumn(name, "string", "context"))
    distinct = len(pc.unique(words.filter(pc.not_equal(words, "")))) + int((lengths == 0).any())
    column = Column(name, "list", len(values), distinct, distinct, length=length)
    return pa.chunked_array([text]), column


def _numbers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Text as numbers where it is nothing else but for marks of a missing value.

    Whole numbers alone, without such a mark, were made text by somebody's choice: they are ids.
    """
    few = values.slice(0, 1000)
    if not pc.all(pc.or_(is_missing(few), pc.match_substring_regex(few, NUMBER))).as_py():
        return None
    mark = is_missing(values)
    present = values.filter(pc.invert(mark))
    blank = pc.equal(values, "")
    marked = pc.any(pc.and_not(mark, blank)).as_py()
    whole = pc.all(pc.match_substring_regex(present, r"^[+-]?[0-9]+$")).as_py()
    zeros = pc.any(pc.match_substring_regex(present, r"^0[0-9]")).as_py()
    if not len(present) or zeros or (whole and not marked):
        return None
    if not pc.all(pc.match_substring_regex(present, NUMBER)).as_py():
        return None
    try:
        # Not by `canonical`, whose float32 makes neighbouring times and ids one.
        trimmed = pc.utf8_trim_whitespace(values)
        numbers = pc.if_else(mark, pa.scalar(None, values.type), trimmed).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return None if _beyond_integers(numbers) else numbers


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
