"""A table for `recsys spec infer`: read as the feature job reads it, and what its columns hold."""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import types

from beam_jobs.plan import Source
from beam_jobs.sources import BYTES_PER_BLOCK, File, Sample, check_delimiter, resolve
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.raw import EXACT, MISSING_TEXTS, canonical, is_missing, unbracketed
from recsys.spec.schema import NUMBER, RawColumn

FEW_VALUES = 12
"""Whole numbers of no more values than this are categories."""
LONGEST_LIST = 50
BYTES_LOOKED_AT = 1 << 20
"""The start of a file that its header, and how its numbers are written, are looked up in."""
BAD_BYTES = 0.01
"""Rows that may hold bytes which are no text: what `data.bad_records` allows by default."""

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
_PACKED = (".zip", ".bz2", ".xz", ".zst", ".7z")

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
class Read:
    """A whole table, how many lines had too few or too many fields, and whether it was text."""

    table: pa.Table
    ragged: int
    is_csv: bool


def read(path: Path) -> Read:
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
        error.fix = error.fix or _fix_of(path)
        raise
    ragged: list[int] = []
    try:
        table = _read_csv(file, ragged) if file.is_csv else pq.ParquetFile(path).read()
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
    plain = pa.table({name: _plain(table[name]) for name in names})
    return Read(plain, len(ragged), file.is_csv)


def _fix_of(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in _PACKED:
        return "Unpack it, or pack it with gzip (.csv.gz)."
    if ending in (".txt", ".tab", ".dat", ""):
        return "Give it such an ending."
    return "Write it as CSV or Parquet."


def _read_csv(file: File, ragged: list[int]) -> pa.Table:
    _require_header(file)
    table = _csv(file, {}, ragged)
    table = _with_zeros(file, table)
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


def _with_zeros(file: File, table: pa.Table) -> pa.Table:
    """The table with whole numbers that are written with zeros before them as the text they are."""
    names = [
        field.name
        for field in table.schema
        if types.is_integer(field.type) and table.column_names.count(field.name) == 1
    ]
    if not names or not len(table):
        return table
    text = pa.string()
    with file.open() as stream:
        first = io.BytesIO(stream.read(BYTES_LOOKED_AT).rpartition(b"\n")[0])
    try:
        few = _csv(file, dict.fromkeys(names, text), [], first, names)
    except pa.ArrowException:
        return table
    zeros = [n for n in names if pc.any(pc.match_substring_regex(few[n], r"^0[0-9]")).as_py()]
    if not zeros:
        return table
    texts = _csv(file, dict.fromkeys(zeros, text), [], None, zeros)
    for name in zeros:
        table = table.set_column(table.column_names.index(name), name, texts[name])
    return table


def _csv(
    file: File,
    column_types: dict[str, pa.DataType],
    ragged: list[int] | None = None,
    first: io.BytesIO | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """The file's columns, or those of its first bytes; lines of too few fields are counted."""

    def skip(row: pa_csv.InvalidRow) -> str:
        if ragged is not None:
            ragged.append(row.actual_columns)
        return "skip"

    with first or file.open() as stream:
        return pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=BYTES_PER_BLOCK),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter,
                newlines_in_values=True,
                invalid_row_handler=skip,
            ),
            convert_options=pa_csv.ConvertOptions(
                null_values=list(MISSING_TEXTS),
                column_types=column_types,
                include_columns=columns or [],
            ),
        )


def _require_header(file: File) -> None:
    """Refuse a header in another encoding, or of another delimiter than the ending says."""
    with file.open() as stream:
        line = stream.read(BYTES_LOOKED_AT).split(b"\n")[0]
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _no_utf8(file, "UTF-16", "utf-16")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _no_utf8(file, "a header in another encoding") from None
    check_delimiter(file)
    names = next(csv.reader([text], delimiter=file.delimiter), [])
    parts = text.count(";")
    if file.delimiter == "," and parts > 1 and parts > text.count(","):
        raise UserError(
            "The columns of a file are divided otherwise than its name says.",
            where=file.path,
            expected="columns separated by a comma",
            found=f"a header with {parts} ';' and {text.count(',')} commas",
            fix="Write it with a comma between columns.",
        )
    values = [name for name in names if re.match(NUMBER, name)]
    if len(values) > 1 and 2 * len(values) >= len(names):
        raise UserError(
            "The table has no header.",
            where=file.path,
            expected="names of the columns in the first line",
            found=text.strip()[:100],
            fix="Write a line of names above it.",
        )


def _no_utf8(file: File, found: str, encoding: str = "latin1") -> UserError:
    return UserError(
        "The table is not in UTF-8.",
        where=file.path,
        expected="text in UTF-8",
        found=found,
        fix=f"Convert it: iconv -f {encoding} -t utf-8 TABLE > NEW"
        + ("." if encoding != "latin1" else ", or what its encoding is."),
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


def sample(table: pa.Table, most: int) -> pa.Table:
    """At most so many rows from all over the table, in short runs, which keep requests whole."""
    if len(table) <= most:
        return table
    return table.filter(pa.array(Sample(len(table), most).keeps(np.arange(len(table)))))


def look(table: pa.Table, whole: pa.Table, is_csv: bool) -> tuple[pa.Table, list[Column]]:
    """A sample with lists joined and numbers made of text, and what its columns hold.

    Whether a column has one value or two is told by the whole table, of which few rows may differ.
    """
    seen, columns = {}, []
    for name in table.column_names:
        seen[name], column = _look(name, table[name], is_csv)
        few = column.known <= 2 and column.kind != "none"
        if few and len(table) < len(whole):
            column = _look(name, whole[name], is_csv)[1]
        columns.append(column)
    return pa.table(seen), columns


def _look(name: str, values: pa.ChunkedArray, is_csv: bool) -> tuple[pa.ChunkedArray, Column]:
    kind, rows = values.type, len(values)
    if types.is_string(kind):
        numbers = _numbers(values, is_csv)
        if numbers is None:
            distinct = pc.unique(values.drop_null())
            known = len(distinct) - int(pc.sum(is_missing(distinct)).as_py() or 0)
            binary = _binary(name, distinct)
            column = Column(name, "text", rows, len(distinct), known, binary=binary)
            mark = _bracketed(values)
            if mark:
                text, _ = canonical(values, RawColumn(name, "string", "context"), mark)
                return pa.chunked_array([text]), _of_parts(column, pa.chunked_array([text]), mark)
            mark = _parted(values, distinct)
            if mark in ("|", ";"):
                return values, _of_parts(column, values, mark)
            return values, replace(column, seems=mark)
        values, kind = numbers, numbers.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        distinct = pc.unique(values.drop_null())
        count, whole, huge, counting = len(distinct), True, False, False
        if types.is_floating(kind):
            finite = distinct.to_numpy()[np.isfinite(distinct.to_numpy())]
            whole = bool((finite == np.floor(finite)).all())
        elif types.is_integer(kind) and count:
            bounds = pc.min_max(distinct).as_py()
            huge = max(abs(bounds["min"]), abs(bounds["max"])) > EXACT
            gapless = bounds["max"] - bounds["min"] < rows / UNIQUE
            counting = rows >= FEWEST_ROWS and count >= UNIQUE * rows and gapless
        binary = _binary(name, distinct)
        column = Column(name, "number", rows, count, count, whole, huge, binary, counting=counting)
        return values, column
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
    words, bad = canonical(parts, RawColumn(name, "string", "context"))
    text, bad_lists = canonical(values, RawColumn(name, "string", "context"))
    if bad_lists.mean() > BAD_BYTES:
        why = f"no text can be made of {values.type}"
        return values, Column(name, "none", len(values), 0, 0, why=why)
    known = pc.unique(words)
    free = [m for m in _MARKS if not pc.any(pc.match_substring(known, m)).as_py()]
    separator = free[0] if free and free[0] != _MARKS[0] else ""
    if separator:
        text, _ = canonical(values, RawColumn(name, "string", "context"), separator)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    length = int(np.clip(np.quantile(lengths, 0.99), 1, LONGEST_LIST))
    # An empty list tells as much as a part.
    distinct = len(known) - int(pc.any(pc.equal(known, "")).as_py() or 0)
    distinct += int((lengths == 0).any())
    column = Column(
        name, "list", len(values), distinct, distinct, length=length, separator=separator
    )
    return pa.chunked_array([text]), column


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
    length = int(np.clip(np.quantile(lengths, 0.99), 1, LONGEST_LIST))
    return Column(
        column.name, "list", column.rows, distinct, distinct, length=length, separator=mark
    )


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
