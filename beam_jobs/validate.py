"""Make values canonical, and set bad rows apart with the reason.

Row logic on Arrow tables; no Beam here.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.plan import PLACE, REST, ROW, UNREAD, Field, Source
from recsys.artifacts import finite
from recsys.raw import canonical, is_list, is_missing
from recsys.spec.records import TimeColumn
from recsys.spec.schema import RawColumn

MS_PER_DAY = 86_400_000
OF_LOGARITHM = "its loss is of log(1 + label)"
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""Years 1 to 9999: a time outside them has no day, and most often another unit."""
DEAD_LETTER = pa.schema([("source", pa.string()), ("reason", pa.string()), ("row", pa.string())])


@dataclass(frozen=True)
class Checked:
    """Good rows by the source's fields, and dead letters for the others."""

    good: pa.Table
    dead: pa.Table


def validate(block: pa.Table, ragged: list[str], source: Source) -> Checked:
    """Check one block of a source.

    Args:
        block: The columns of the source as stored, and `key:row`.
        ragged: Lines that could not be divided into columns.
        source: The log or table.

    Returns:
        `good` has `row`, `rest` where the block has it, and one column a field, without nulls;
        `dead` has `source`, `reason` and `row` (JSON).
    """
    own = {PLACE: ROW, UNREAD: REST}
    own = {name: target for name, target in own.items() if name in block.column_names}
    columns: dict[str, pa.Array] = {
        target: block[name].combine_chunks() for name, target in own.items()
    }
    reasons = np.full(len(block), "", dtype=object)
    for field in source.fields:
        values, faults = check_field(_as_text(block[field.column]), field)
        columns[field.target] = values
        for reason, bad in faults.items():
            reasons[bad & (reasons == "")] = reason
    for field in source.fields:
        if field.kind in ("binary", "value"):
            _check_label(field, columns, reasons)
    table = pa.table(columns)
    is_bad = reasons != ""
    dead = dead_letters(
        source.name,
        reasons[is_bad].tolist(),
        _values(block.drop_columns(list(own)).filter(pa.array(is_bad))),
    )
    lines = dead_letters(source.name, ["wrong number of fields"] * len(ragged), ragged)
    good = table.filter(pa.array(~is_bad)) if is_bad.any() else table
    return Checked(good, pa.concat_tables([dead, lines]))


def _check_label(field: Field, columns: dict[str, pa.Array], reasons: np.ndarray) -> None:
    """Find labels that are missing or negative where they count, and set others to 0.

    Where what a label follows did not happen it is 0, whatever it says, so that it may be left
    blank there. Of actions that is not known yet: what is blank stays so until they are joined,
    and what is negative counts.
    """
    label = columns[field.target].to_numpy()
    counts = np.ones(len(label), dtype=bool)
    for before in field.after:
        if before in columns:
            counts &= columns[before].to_numpy() > 0
    missing = np.isnan(label)
    blank = np.float32(0)
    faults = {missing_label(field.column): missing & counts}
    if any(before not in columns for before in field.after):
        label, blank, faults = np.where(counts, label, blank), np.float32(np.nan), {}
    if field.logarithm:
        reason = f"label {field.column} is negative; {OF_LOGARITHM}"
        faults[reason] = (label < 0) & counts
    for reason, bad in faults.items():
        reasons[bad & (reasons == "")] = reason
    columns[field.target] = pa.array(np.where(np.isnan(label), blank, label))


def missing_label(column: str) -> str:
    """The reason for which a row without a label is bad."""
    return f"label {column} is missing"


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes of a CSV column as text; bytes that are no text stay bytes, for `canonical` to mark."""
    if pa.types.is_binary(values.type):
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            return values
    return values


def dead_letters(source: str, reasons: list[str], rows: list[Any]) -> pa.Table:
    """A table of dead letters; `rows` are written as JSON."""
    text = [json.dumps(finite(row), default=_plain, ensure_ascii=False) for row in rows]
    return pa.table([[source] * len(reasons), reasons, text], schema=DEAD_LETTER)


def _values(rows: pa.Table) -> list[Any]:
    """Rows as Python values; times that Python has none for as their numbers."""
    try:
        return rows.to_pylist()
    except (OverflowError, ValueError):
        for at, field in enumerate(rows.schema):
            if pa.types.is_temporal(field.type):
                bits = pa.int32() if field.type.bit_width == 32 else pa.int64()
                rows = rows.set_column(at, field.name, rows[at].cast(bits))
        return rows.to_pylist()


def _plain(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def count_reasons(dead: pa.Table) -> dict[str, int]:
    """How many dead letters have each reason."""
    return dict(Counter(dead["reason"].to_pylist()))


def check_field(values: pa.ChunkedArray, field: Field) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """The field's values, and the reasons for which some are bad, each with where it holds.

    A label may be missing here: whether it may depends on other labels.
    """
    name = field.column
    if field.kind in ("time", "day"):
        assert field.time is not None
        is_day = field.kind == "day"
        ms, bad = parse_time(_local(values) if is_day else values, field.time)
        if is_day:
            days = np.floor_divide(ms, MS_PER_DAY).astype(np.int32)
            return pa.array(days), {f"{name} is no date": bad}
        return pa.array(ms), {f"{name} is no time": bad}
    if field.kind in ("text", "key"):
        return _check_text(values, field)
    number, bad = canonical(values, RawColumn(name, "float32", "context"))
    if field.kind == "binary":
        array = number.to_numpy()
        wrong = ~np.isnan(array) & ~np.isin(array, (0.0, 1.0))
        return number, {f"label {name} is not 0 or 1": bad | wrong}
    if field.kind == "weight":
        wrong = ~(number.to_numpy() >= 0)
        return number, {f"weight {name} is missing or negative": bad | wrong}
    if field.kind == "value":
        return number, {f"label {name} is no number": bad}
    return number, {f"{name} is no number": bad}


def _check_text(values: pa.ChunkedArray, field: Field) -> tuple[pa.Array, dict[str, np.ndarray]]:
    name, mark = field.column, field.separator
    text, bad = canonical(values, RawColumn(name, "string", "context"), mark)
    faults = {f"{name} is no text": bad}
    if mark is None and is_list(values.type):
        advice = "" if field.kind == "key" else ": set encode.max_length of its feature"
        faults = {f"{name} is a list{advice}": values.is_valid().to_numpy()}
    elif mark is not None and not pa.types.is_binary(values.type):
        faults = {f"{name} is no list of texts without {mark!r}": bad}
    if field.kind == "key":
        faults[f"{name} is missing"] = is_missing(text).to_numpy(zero_copy_only=False)
    return text, faults


_OFFSET = r"([Tt ][0-9]{1,2}(:?[0-9]{2}){0,2}([.,][0-9]+)?) *([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)\s*\z"


def _local(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of times without their distance from UTC: the day is the one that is written."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return values
    return pc.replace_substring_regex(values, _OFFSET, r"\1")


def parse_time(values: pa.ChunkedArray, column: TimeColumn) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds since the epoch (int64, [rows]), rounded down, and which rows have no such time.

    Times without a zone are UTC.

    >>> parse_time(pa.chunked_array([["1.5", "x"]]), TimeColumn(column="t", unit="s"))[0].tolist()
    [1500, 0]
    """
    ms, bad = _parse(values, column)
    bad = bad | (ms < _FIRST_MS) | (ms > _LAST_MS)
    return np.where(bad, 0, ms), bad


def _parse(values: pa.ChunkedArray, column: TimeColumn) -> tuple[np.ndarray, np.ndarray]:
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        ms = pc.fill_null(values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), 0)
        return ms.to_numpy(), pc.is_null(values).to_numpy()
    if column.format is None and column.unit != "iso":
        return _from_numbers(values, column.unit)
    # Logs have few distinct days and often few distinct times: parse each once.
    text, bad = canonical(values, RawColumn(column.column, "string", "context"))
    if column.format is None:
        # One value in nanoseconds would have pandas read all of them so, in fewer years.
        text = pc.replace_substring_regex(text, r"([.,][0-9]{6})[0-9]+", r"\1")
    coded = text.dictionary_encode()
    format = column.format or "ISO8601"
    moments = pd.to_datetime(
        pd.Series(coded.dictionary.to_pylist(), dtype=object),
        format=format,
        utc=True,
        errors="coerce",
    )
    distinct = np.asarray(moments.to_numpy(dtype="datetime64[ms]")).astype(np.int64)
    # Pandas reads `now` and `today` as the moment of the job.
    words = pc.match_substring_regex(coded.dictionary, r"(?i)^\s*(now|today)\s*\z")
    wrong = np.asarray(moments.isna()) | words.to_numpy(zero_copy_only=False)
    distinct = np.where(wrong, 0, distinct)
    codes = coded.indices.to_numpy()
    if not len(distinct):
        return np.zeros(len(codes), np.int64), bad
    return distinct[codes], bad | wrong[codes]


def _from_numbers(values: pa.ChunkedArray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    if pa.types.is_floating(values.type):
        return _from_floats(values.to_numpy(), unit)
    if pa.types.is_integer(values.type):
        whole = pc.fill_null(values, 0).to_numpy()
        ms, bad = _from_whole(whole, unit)
        return ms, bad | pc.is_null(values).to_numpy()
    text, _ = canonical(values, RawColumn("time", "string", "context"))
    # Whole numbers apart, since a double does not hold each nanosecond.
    digits = pc.match_substring_regex(text, r"^-?[0-9]{1,18}\z")
    ms, bad = _from_whole(pc.if_else(digits, text, "0").cast(pa.int64()).to_numpy(), unit)
    others = ~digits.to_numpy(zero_copy_only=False)
    if others.any():
        series = pd.Series(text.filter(pa.array(others)).to_pylist(), dtype=object)
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
        ms[others], bad[others] = _from_floats(numbers, unit)
    return ms, bad


def _from_whole(whole: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    times, per = max(1000 // _PER_SECOND[unit], 1), max(_PER_SECOND[unit] // 1000, 1)
    most = (2**63 - 1) // times
    bad = (whole > most) | (whole < -most)
    return np.where(bad, 0, whole).astype(np.int64) * times // per, bad


def _from_floats(numbers: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    ms = numbers.astype(np.float64) * 1000 / _PER_SECOND[unit]
    bad = ~(np.abs(ms) < 2.0**62)
    ms = np.where(bad, 0, ms)
    # The double of .123 seconds may be a little less, and rounding down would make it .122.
    return np.floor(ms + 2 * np.spacing(np.abs(ms))).astype(np.int64), bad
