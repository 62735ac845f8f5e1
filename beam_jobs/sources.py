"""Find and read the logs: CSV or Parquet, a file, a folder or a glob, in blocks of rows.

All files are opened once before any work starts, so that a missing column or a damaged file
is an error in the first second and not after the join.
"""

from __future__ import annotations

import csv
import difflib
import glob
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from beam_jobs.partition import stable_hash
from beam_jobs.plan import PLACE, TIME, UNREAD, Source
from beam_jobs.validate import MS_PER_DAY, validate
from recsys.errors import UserError
from recsys.splitmix import mixed

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""How Hive and Spark write a folder of rows without a value."""
_DELIMITERS = {",": "a comma", ";": "';'", "\t": "a tab", "|": "'|'"}
ROWS_PER_BLOCK = 65_536
ROWS_PER_RUN, RUNS = 50, 20
_PRIME = 999_983
_LEAST_PACKED = 100
"""Bytes that may be the packing of nothing."""
_LONGEST = 500
_FEW_DAYS = 0.01
"""Share of a log's times up to which those at midnight are moments as any other."""
BYTES_PER_BLOCK = 8 << 20
# File number and row number share one int64, so that the order of rows is the order of files.
ROWS_PER_FILE = 1 << 40


@dataclass(frozen=True)
class File:
    """One file of a source, with the columns that its folders carry (`day=2026-01-01`)."""

    path: str
    partitions: tuple[tuple[str, str | None], ...]

    @property
    def is_csv(self) -> bool:
        """Whether the file is delimited text."""
        return self.path.lower().endswith(CSV)

    @property
    def delimiter(self) -> str:
        """What stands between the columns of delimited text."""
        return "\t" if ".tsv" in Path(self.path).name.lower() else ","

    def open(self) -> pa.NativeFile:
        """The file's bytes, unpacked."""
        # Arrow itself knows compression by small letters only.
        packed = "gzip" if self.path.lower().endswith(".gz") else None
        return pa.input_stream(self.path, compression=packed)


@dataclass(frozen=True)
class Sample:
    """`most` of `total` rows: short runs, evenly spaced, so that every day and file has some.

    Runs rather than single rows, because the rows of a request lie together; of few rows, runs
    are shorter, so that there are some.
    """

    total: int
    most: int

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """Which rows are taken, by their number among all rows (int64 [rows]).

        >>> Sample(total=12, most=2).keeps(np.arange(12)).nonzero()[0].tolist()
        [0, 6]
        """
        if self.most >= self.total:
            return np.ones(len(rows), dtype=bool)
        runs = max(min(RUNS, self.most), self.most // ROWS_PER_RUN)
        run = rows * runs // self.total
        return rows - -(-run * self.total // runs) < self.most // runs


@dataclass(frozen=True)
class ReadTask:
    """A part of a file that one worker reads: a CSV file, or row groups of a Parquet file.

    `first_row` orders its rows among those of all files; `offset` counts the rows before it.
    """

    source: Source
    file: File
    first_row: int
    offset: int = 0
    row_groups: tuple[int, ...] = ()
    sample: Sample | None = None


def resolve(input_path: Path, source: Source) -> list[File]:
    """The files of a source, sorted by path.

    Args:
        input_path: The folder that the source's path is relative to, or one file that is the
            whole impression log.
        source: The log or table.

    Raises:
        UserError: There is no input, or nothing in it matches the source's path.
    """
    if not input_path.exists():
        raise UserError(
            "The input does not exist.",
            where=str(input_path),
            expected="a folder of logs, or one file",
            fix="Name an existing folder with --input.",
        )
    if input_path.is_file():
        if source.name == "impressions":
            return [_file(input_path, input_path.parent)]
        input_path = input_path.parent
    target = input_path / source.path
    if target.is_file():
        return [_file(target, input_path)]
    if target.is_dir():
        found = [path for path in _below(target) if _is_data(path, target)]
    else:
        found = [
            below
            # The input's own name is none of the pattern.
            for name in glob.glob(source.path, root_dir=input_path, recursive=True)
            for match in [input_path / name]
            for below in (_below(match) if match.is_dir() else [match])
            if _is_data(below, input_path)
        ]
    if not found:
        raise _nothing_found(input_path, target, source)
    return [_file(path, input_path) for path in sorted(set(found))]


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder, links to folders followed, each folder once."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root) / name for name in files)


def _parts(path: Path, root: Path) -> list[str]:
    """The names that lead from a folder to a path, also where the path lies elsewhere."""
    return [part for part in Path(os.path.relpath(path, root)).parts if part != ".."]


def _is_data(path: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in _parts(path, root))
    return path.is_file() and not hidden and path.name.lower().endswith(PARQUET + CSV)


def _file(path: Path, root: Path) -> File:
    if not path.name.lower().endswith(PARQUET + CSV):
        raise UserError(
            "This file is of no known format.",
            where=str(path),
            expected=f"a name that ends in {', '.join(CSV + PARQUET)}",
            found=path.suffix or "no ending",
        )
    partitions = tuple(
        (unquote(name), None if value == _NO_VALUE else unquote(value))
        for name, equals, value in (part.partition("=") for part in _parts(path, root)[:-1])
        if equals
    )
    return File(str(path), partitions)


def _nothing_found(input_path: Path, target: Path, source: Source) -> UserError:
    there = sorted(p.name for p in input_path.iterdir() if not p.name.startswith("."))
    near = difflib.get_close_matches(source.path, there, n=3)
    fix = f"Did you mean {' or '.join(near)}?" if near else "Correct the path in the spec."
    return UserError(
        f"No files of {source.name} were found.",
        where=str(target),
        expected=f"CSV or Parquet files ({', '.join(CSV + PARQUET)})",
        found=", ".join(there[:10]) or "an empty folder",
        fix=fix,
    )


def filled(files: list[File]) -> list[File]:
    """The files that are not empty, as writers leave them; all where none has anything."""
    return [file for file in files if not _is_blank(file)] or files


def _is_blank(file: File) -> bool:
    size = os.path.getsize(file.path)
    if size > _LEAST_PACKED or not file.is_csv:
        return not size
    with _readable(file), file.open() as stream:
        return not stream.read(1)


def check(files: list[File], source: Source) -> None:
    """Check that each file can be opened and has the source's columns.

    Raises:
        UserError: A file is damaged, or lacks columns; the error names them.
    """
    for file in files:
        own = _header(file)
        header = [*own, *(name for name, _ in file.partitions)]
        # Some writers keep in a file what its folder says too.
        twice = [c for c in source.columns if (header if file.is_csv else own).count(c) > 1]
        if twice:
            raise UserError(
                f"Column {twice[0]!r} is there twice.",
                where=file.path,
                expected="each column once",
                found=_shown(header),
            )
        missing = [column for column in source.columns if column not in header]
        if missing:
            check_delimiter(file)
            near = difflib.get_close_matches(missing[0], header, n=3)
            raise UserError(
                f"The {source.name} lack{'s' * source.name.endswith('table')} "
                f"column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}.",
                where=file.path,
                expected=", ".join(source.columns),
                found=_shown(header) or "no columns",
                fix=f"Did you mean {' or '.join(near)}?"
                if near
                else "Correct the column in the spec, or the file.",
            )


def _shown(names: list[str]) -> str:
    """Names in one line, without what a terminal would obey."""
    text = ", ".join(names)
    text = "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def damaged(file: File, error: Exception) -> UserError:
    """The error of a file that cannot be read, or that begins as files of other formats do."""
    with open(file.path, "rb") as stream:
        begin = stream.read(4)
    other = next((told for mark, told in _FORMATS.items() if begin.startswith(mark)), None)
    found, fix = str(error).split("\n")[0], "Write the file again, or take it away."
    if other is not None and not (other == "gzip" and file.path.lower().endswith(".gz")):
        found, fix = other, f"Write it as its name says{_RENAME.get(other, '')}."
    return UserError(
        "A file is damaged or is not what its name says.",
        where=file.path,
        expected="a readable CSV file in UTF-8" if file.is_csv else "a readable Parquet file",
        found=_shown([found]),
        fix=fix,
    )


_FORMATS = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a ZIP or Excel file",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""How files of some formats begin."""
_RENAME = {"Parquet": ", or name it .parquet", "gzip": ", or name it .csv.gz"}


@contextmanager
def _readable(file: File) -> Iterator[None]:
    """Turn what fails within into the error of a damaged file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(file, error) from None


def _header(file: File) -> list[str]:
    with _readable(file):
        if not file.is_csv:
            return list(pq.read_schema(file.path).names)
        with file.open() as stream:
            if stream.read(4).startswith(tuple(_FORMATS)):
                raise pa.ArrowInvalid("no text")
        with file.open() as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
            return next(csv.reader(text, delimiter=file.delimiter), [])


def check_delimiter(file: File) -> None:
    """Refuse delimited text whose columns another delimiter than its own seems to divide.

    Raises:
        UserError: The header is one column, with the other delimiter in it.
    """
    header = _header(file) if file.is_csv else []
    if len(header) != 1:
        return
    own = _DELIMITERS[file.delimiter]
    found = [mark for mark in _DELIMITERS if mark != file.delimiter and mark in header[0]]
    if found:
        other = max(found, key=header[0].count)
        raise UserError(
            "The columns of a file are divided otherwise than its name says.",
            where=file.path,
            expected=f"columns separated by {own}",
            found=f"one column, {header[0][:100]!r}, separated by {_DELIMITERS[other]}",
            fix=f"Write it with {own} between columns"
            + (", or name it .tsv." if other == "\t" else "."),
        )


def tasks(files: list[File], source: Source, max_rows: int | None = None) -> list[ReadTask]:
    """Divide files into parts to read; `max_rows` spread over all of them where that is given."""
    found: list[ReadTask] = []
    offset = 0
    for number, file in enumerate(files):
        row = number * ROWS_PER_FILE
        if file.is_csv:
            found.append(ReadTask(source, file, row, offset))
            offset += 0 if max_rows is None else _count_rows(file, source)
            continue
        with _readable(file):
            metadata = pq.read_metadata(file.path)
        for group in range(metadata.num_row_groups):
            found.append(ReadTask(source, file, row, offset, (group,)))
            row += metadata.row_group(group).num_rows
            offset += metadata.row_group(group).num_rows
    if max_rows is None:
        return found
    return [replace(task, sample=Sample(offset, max_rows)) for task in found]


def tells_moments(files: list[File], source: Source) -> bool:
    """Whether epoch numbers are moments, and not days: by the first rows of three files.

    Where they are, no other column is needed to tell rows apart, and a wide log is read faster.
    Texts, which may be days in some rows alone, are not looked at.
    """
    time = next((field for field in source.fields if field.target == TIME), None)
    if time is None or time.time is None or time.time.format or time.time.unit == "iso":
        return False
    only = replace(source, fields=(time,), whole=False)
    for at in sorted({0, len(files) // 2, len(files) - 1}):
        for block, ragged in islice(chain.from_iterable(map(read, tasks([files[at]], only))), 1):
            found = validate(block, ragged, only).good[TIME].to_numpy()
            if (found % MS_PER_DAY == 0).sum() > _FEW_DAYS * len(found):
                return False
    return True


def _count_rows(file: File, source: Source) -> int:
    names = _named(file)
    column = next((name for name in source.columns if name in names), names[0])
    with _readable(file):
        return sum(map(len, _csv_blocks(file, [column], [])))


def _named(file: File) -> list[str]:
    """The columns that can be asked for: a name in no UTF-8 cannot."""
    return [name for name in _header(file) if not (file.is_csv and "\ufffd" in name)]


def read(task: ReadTask) -> Iterator[tuple[pa.Table, list[str]]]:
    """The rows of a task in blocks, as stored, and the text of rows that have no columns to read.

    Yields:
        A table of the source's columns, `key:row` (int64) and, of a source whose rows are told
        apart by all of their columns, `key:rest` (uint64), a hash of the others; and the lines
        of a CSV file that have too few or too many fields.

    Raises:
        UserError: The file is damaged.
    """
    columns = [c for c in task.source.columns if c not in dict(task.file.partitions)]
    ragged: list[str] = []
    row, offset = task.first_row, task.offset
    try:
        rest: list[str] = []
        if task.source.whole:
            rest = sorted(set(_named(task.file)) - set(columns) - set(dict(task.file.partitions)))
        blocks = (
            _csv_blocks(task.file, [*columns, *rest], ragged)
            if task.file.is_csv
            else _parquet_blocks(task, [*columns, *rest])
        )
        for block in blocks:
            if rest:
                hashed = pa.array(_hash_of(block.drop_columns(columns)))
                block = block.select(columns).append_column(UNREAD, hashed)
            for name, value in task.file.partitions:
                if name in task.source.columns:
                    block = block.append_column(name, pa.array([value] * len(block), pa.string()))
            numbers = np.arange(row, row + len(block), dtype=np.int64)
            block = block.append_column(PLACE, pa.array(numbers))
            kept, lines = block, list(ragged)
            if task.sample is not None:
                places = np.arange(offset, offset + len(block))
                kept = block.filter(pa.array(task.sample.keeps(places)))
                # As large a share of bad lines, whose places among the rows are not known.
                drawn = (offset + _PRIME * np.arange(len(lines))) % max(task.sample.total, 1)
                lines = [
                    line
                    for line, keeps in zip(lines, task.sample.keeps(drawn), strict=True)
                    if keeps
                ]
            yield kept, lines
            ragged.clear()
            row += len(block)
            offset += len(block)
    except (pa.ArrowException, OSError) as error:
        raise damaged(task.file, error) from None


def _parquet_blocks(task: ReadTask, columns: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(task.file.path) as file:
        for batch in file.iter_batches(
            batch_size=ROWS_PER_BLOCK, row_groups=list(task.row_groups), columns=columns
        ):
            yield pa.Table.from_batches([batch])


def _hash_of(rows: pa.Table) -> np.ndarray:
    """A hash of all columns, uint64 [rows]; the same for the same values in every run."""
    total = np.zeros(len(rows), dtype=np.uint64)
    # By place, for two may have one name.
    names = rows.column_names
    for at, place in enumerate(sorted(range(len(names)), key=names.__getitem__)):
        values = rows.column(place).combine_chunks()
        missing = values.is_null().to_numpy(zero_copy_only=False)
        total = mixed(total ^ np.where(missing, np.uint64(0), _bits_of(values)), at + 1)
    return total


def _bits_of(values: pa.Array) -> np.ndarray:
    """A number for each value, uint64 [rows]: its own bits, or a hash of its text."""
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        wide = pa.float64() if pa.types.is_floating(values.type) else pa.int64()
        numbers = pc.fill_null(values.cast(wide, safe=False), 0).to_numpy(zero_copy_only=False)
        return numbers.view(np.uint64)
    try:
        text = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        text = pa.array([repr(value) for value in values.to_pylist()], pa.string())
    return stable_hash(pc.fill_null(text, ""))


def _csv_blocks(file: File, columns: list[str], ragged: list[str]) -> Iterator[pa.Table]:
    """A file's columns in blocks of bytes; lines that have no such columns go to `ragged`.

    A line that is neither UTF-8 nor of as many fields as the header stops Arrow's reader, which
    hands such lines over as text. The file is then read as Latin-1, which any bytes are, from
    where it stopped, and written back.
    """
    taken = [0, 0]
    _keep_quiet()
    try:
        yield from _divide(file, columns, ragged, taken)
        return
    except pa.ArrowInvalid as error:
        if "columns, got" not in str(error):
            raise
    rows, lines = taken
    with file.open() as stream:
        mark = stream.read(3).decode("latin1")
    first = {_header(file)[0]: _BOM if mark == _BOM else ""}
    names = [first.get(column, "") + column.encode().decode("latin1") for column in columns]
    again: list[str] = []
    for block in _divide(file, names, again, [0, 0], "latin1"):
        ragged.extend(again[lines:])
        lines = max(0, lines - len(again))
        again.clear()
        # What was read before is not read again.
        block, rows = block.slice(min(rows, len(block))), max(0, rows - len(block))
        yield pa.table(
            {
                column: pa.array([_bytes_of(v) for v in block[name].to_pylist()], pa.binary())
                for column, name in zip(columns, names, strict=True)
            }
        )


_BOM = "\xef\xbb\xbf"


def _bytes_of(value: bytes) -> bytes:
    """The bytes that were read as Latin-1 and handed over as UTF-8."""
    return value.decode().encode("latin1")


def _keep_quiet() -> None:
    """Let Arrow's reader stop without a traceback of its own where it cannot hand over a line."""
    before = sys.unraisablehook
    if getattr(before, "__module__", "") == __name__:
        return

    def hook(found: Any) -> None:
        ours = getattr(found.object, "__module__", "") == __name__
        if not (ours and isinstance(found.exc_value, UnicodeDecodeError)):
            before(found)

    sys.unraisablehook = hook


def _divide(
    file: File,
    columns: list[str],
    ragged: list[str],
    taken: list[int],
    encoding: str = "utf8",
) -> Iterator[pa.Table]:
    """The blocks of a file in one encoding; `taken` counts the rows and the lines so far."""

    def keep(row: pa_csv.InvalidRow) -> str:
        taken[1] += 1
        ragged.append(f"{row.actual_columns} fields in place of {row.expected_columns}: {row.text}")
        return "skip"

    with file.open() as stream:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(
                block_size=BYTES_PER_BLOCK, use_threads=False, encoding=encoding
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter, newlines_in_values=True, invalid_row_handler=keep
            ),
            # Bytes, not text: one line in another encoding must not damn the block that it is in.
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.binary() for name in columns},
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])
            taken[0] += len(batch)
    if ragged:
        yield pa.table({name: pa.array([], pa.binary()) for name in columns})
