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

from beam_jobs.plan import ROW, Field, Source
from recsys.raw import canonical
from recsys.schema import RawColumn
from recsys.spec.records import TimeColumn

MS_PER_DAY = 86_400_000
_PER_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
DEAD_LETTER = pa.schema([("source", pa.string()), ("reason", pa.string()), ("row", pa.string())])


@dataclass(frozen=True)
class Checked:
    """Good rows by the source's fields, and dead letters for the others."""

    good: pa.Table
    dead: pa.Table


def validate(block: pa.Table, ragged: list[str], source: Source) -> Checked:
    """Check one block of a source.

    Args:
        block: The columns of the source as stored, and `row`.
        ragged: Lines that could not be divided into columns.
        source: The log or table.

    Returns:
        `good` has `row` and one column a field, without nulls; `dead` has `source`, `reason`
        and `row` (JSON).
    """
    columns: dict[str, pa.Array] = {ROW: block[ROW].combine_chunks()}
    reasons = np.full(len(block), "", dtype=object)
    for field in source.fields:
        values, bad, reason = check_field(_as_text(block[field.column]), field)
        columns[field.target] = values
        reasons[bad & (reasons == "")] = reason
    table = pa.table(columns)
    is_bad = reasons != ""
    dead = dead_letters(
        source.name,
        reasons[is_bad].tolist(),
        block.drop_columns([ROW]).filter(pa.array(is_bad)).to_pylist(),
    )
    lines = dead_letters(source.name, ["wrong number of fields"] * len(ragged), ragged)
    good = table.filter(pa.array(~is_bad)) if is_bad.any() else table
    return Checked(good, pa.concat_tables([dead, lines]))


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
    text = [json.dumps(row, default=_plain, ensure_ascii=False) for row in rows]
    return pa.table([[source] * len(reasons), reasons, text], schema=DEAD_LETTER)


def _plain(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def count_reasons(dead: pa.Table) -> dict[str, int]:
    """How many dead letters have each reason."""
    return dict(Counter(dead["reason"].to_pylist()))


def check_field(values: pa.ChunkedArray, field: Field) -> tuple[pa.Array, np.ndarray, str]:
    """The field's values, which of them are bad, and the reason that a bad one has."""
    name = field.column
    if field.kind in ("time", "day"):
        assert field.time is not None
        ms, bad = parse_time(values, field.time)
        if field.kind == "day":
            days = np.floor_divide(ms, MS_PER_DAY).astype(np.int32)
            return pa.array(days), bad, f"{name} is no date"
        return pa.array(ms), bad, f"{name} is no time"
    if field.kind in ("text", "key"):
        text, bad = canonical(values, RawColumn(name, "string", "context"))
        if field.kind == "key":
            missing = pc.equal(text, "").to_numpy(zero_copy_only=False)
            return text, bad | missing, f"{name} is missing"
        return text, bad, f"{name} is no text"
    number, bad = canonical(values, RawColumn(name, "float32", "context"))
    array = number.to_numpy()
    if field.kind == "binary":
        return number, bad | ~np.isin(array, (0.0, 1.0)), f"label {name} is not 0 or 1"
    if field.kind == "value":
        return number, bad | np.isnan(array), f"label {name} is no number"
    return number, bad, f"{name} is no number"


def parse_time(values: pa.ChunkedArray, column: TimeColumn) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds since the epoch (int64, [rows]), and which rows have no such time.

    Times without a zone are UTC.

    >>> parse_time(pa.chunked_array([["1.5", "x"]]), TimeColumn(column="t", unit="s"))[0].tolist()
    [1500, 0]
    """
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        ms = pc.fill_null(values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), 0)
        return ms.to_numpy(), pc.is_null(values).to_numpy()
    if column.format is None and column.unit != "iso":
        return _from_numbers(values, column.unit)
    # Logs have few distinct days and often few distinct times: parse each once.
    text, bad = canonical(values, RawColumn(column.column, "string", "context"))
    coded = text.dictionary_encode()
    format = column.format or "ISO8601"
    moments = pd.to_datetime(
        pd.Series(coded.dictionary.to_pylist(), dtype=object),
        format=format,
        utc=True,
        errors="coerce",
    )
    distinct = np.asarray(moments.to_numpy(dtype="datetime64[ms]")).astype(np.int64)
    wrong = np.asarray(moments.isna())
    distinct = np.where(wrong, 0, distinct)
    codes = coded.indices.to_numpy()
    if not len(distinct):
        return np.zeros(len(codes), np.int64), bad
    return distinct[codes], bad | wrong[codes]


def _from_numbers(values: pa.ChunkedArray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    if not pa.types.is_integer(values.type):
        try:
            values = values.cast(pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            series = pd.Series(values.to_pylist(), dtype=object)
            numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
            ms = numbers * _PER_MS[unit]
            bad = ~np.isfinite(ms) | (np.abs(ms) >= 2.0**62)
            return np.where(bad, 0, ms).round().astype(np.int64), bad
    bad = pc.is_null(values).to_numpy()
    whole = pc.fill_null(values, 0).cast(pa.int64()).to_numpy()
    if unit == "s":
        bad = bad | (np.abs(whole) >= 2**62 // 1000)
        return np.where(bad, 0, whole) * 1000, bad
    return whole // {"ms": 1, "us": 1000, "ns": 1_000_000}[unit], bad
