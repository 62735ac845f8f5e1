"""A table for `recsys spec infer`, read as the feature job reads it."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import types

from beam_jobs.plan import Source
from beam_jobs.sources import BYTES_PER_BLOCK, File, Sample, check_delimiter, resolve
from recsys.errors import EXIT_WRONG_USE, UserError
from recsys.raw import EXACT, MISSING_TEXTS, canonical, is_missing
from recsys.spec.schema import NUMBER, RawColumn

BYTES_LOOKED_AT = 1 << 20
"""The start of a file that its header, and how its numbers are written, are looked up in."""
BAD_BYTES = 0.01
"""Rows that may hold bytes which are no text: what `data.bad_records` allows by default."""

_PACKED = (".zip", ".bz2", ".xz", ".zst", ".7z")


@dataclass(frozen=True)
class Read:
    """A whole table, how many lines had too few or too many fields, and whether it was text."""

    path: Path
    table: pa.Table
    ragged: int
    is_csv: bool


def wrong_use(path: Path, message: str, **said: str) -> UserError:
    """The refusal of a table, or of what somebody said of it, as `UserError` has it."""
    return UserError(message, where=str(path), exit_code=EXIT_WRONG_USE, **said)


def read(path: Path) -> Read:
    """The whole table, in the formats and by the rules of the feature job.

    Raises:
        UserError: It is not there, cannot be read, has no rows, or has two columns of one name.
    """
    if path.is_dir():
        raise wrong_use(
            path,
            "The table is a folder.",
            expected="one file, CSV or Parquet",
            fix="Name one of its files; then put the folder into the spec's data.impressions.",
        )
    if not path.exists():
        raise wrong_use(path, "The table does not exist.")
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
    return Read(path, plain, len(ragged), file.is_csv)


def _fix_of(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in _PACKED:
        return "Unpack it, or pack it with gzip (.csv.gz)."
    if ending in (".txt", ".tab", ".dat", ""):
        return "Give it such an ending."
    return "Write it as CSV or Parquet."


def _read_csv(file: File, ragged: list[int]) -> pa.Table:
    _require_header(file)
    return _with_text(file, _with_long(file, _with_zeros(file, _csv(file, {}, ragged))))


def _of_type(table: pa.Table, fits: Callable[[pa.DataType], bool]) -> list[str]:
    """Names of columns of a type; a name that two have is refused later."""
    names = table.column_names
    return [f.name for f in table.schema if fits(f.type) and names.count(f.name) == 1]


def _with(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _with_text(file: File, table: pa.Table) -> pa.Table:
    """The table with text in place of bytes, of which a few may be none."""
    for name in _of_type(table, types.is_binary):
        text, bad = canonical(table[name], RawColumn(name, "string", "context"))
        if bad.mean() > BAD_BYTES:
            raise _no_utf8(file, f"{bad.mean():.0%} of {name!r} in another encoding")
        table = _with(table, name, pa.chunked_array([text]))
    return table


def _with_long(file: File, table: pa.Table) -> pa.Table:
    """The table with whole numbers of more than 64 bits as text.

    Arrow takes them for floats, which makes ids alike.
    """
    long = [name for name in _of_type(table, types.is_floating) if beyond_integers(table[name])]
    if not long:
        return table
    texts = _csv(file, dict.fromkeys(long, pa.string()), columns=long)
    for name in long:
        present = texts[name].filter(pc.invert(is_missing(texts[name])))
        if pc.all(pc.match_substring_regex(present, r"^[+-]?[0-9]+$")).as_py():
            table = _with(table, name, texts[name])
    return table


def _with_zeros(file: File, table: pa.Table) -> pa.Table:
    """The table with whole numbers that are written with zeros before them as the text they are."""
    names = _of_type(table, types.is_integer)
    if not names or not len(table):
        return table
    text = pa.string()
    with file.open() as stream:
        first = io.BytesIO(stream.read(BYTES_LOOKED_AT).rpartition(b"\n")[0])
    try:
        few = _csv(file, dict.fromkeys(names, text), first=first, columns=names)
    except pa.ArrowException:
        return table
    zeros = [n for n in names if pc.any(pc.match_substring_regex(few[n], r"^0[0-9]")).as_py()]
    if not zeros:
        return table
    texts = _csv(file, dict.fromkeys(zeros, text), columns=zeros)
    for name in zeros:
        table = _with(table, name, texts[name])
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


def beyond_integers(values: pa.ChunkedArray) -> bool:
    """Whether numbers are whole, and too large for floats to tell neighbours apart."""
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
