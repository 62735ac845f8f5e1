"""How a column tells the time, for `recsys spec infer`: tried on the feature job's own parser."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from beam_jobs.validate import MS_PER_DAY, parse_time
from recsys.raw import canonical
from recsys.schema import RawColumn
from recsys.spec.records import TimeColumn

PARSED = 0.99
"""Rows that must have a time that can be read; the feature job sets the others apart as bad."""
PROBED = 1000
DAY_SECONDS = 86_400

_UNITS: tuple[tuple[Literal["s", "ms", "us", "ns"], float], ...] = (
    ("s", 1e11),
    ("ms", 1e14),
    ("us", 1e17),
    ("ns", float("inf")),
)
_DIGITS = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_DATE = re.compile(
    r"(?P<a>\d{1,4})(?P<mark>[/.-])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{1,4})"
    r"(?:(?P<gap>, |[ T])(?P<hour>\d{1,2}:\d{2})(?P<second>:\d{2})?(?P<part>[.]\d+)?"
    r"(?P<noon> ?[AP]M)?(?P<zone> ?(?:UTC|GMT|Z|[+-]\d{2}:?\d{2}))?)?",
    re.I,
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.]\d+)?)?( ?[AP]M)?", re.I)
_FIRST, _LAST = (pd.Timestamp(f"{year}-01-01") for year in (1900, 2200))
_EPOCH = pd.Timestamp(0)


@dataclass(frozen=True)
class Reading:
    """How to read a column's times, and what is to be said of it."""

    column: TimeColumn
    note: str = ""


def reading(values: pa.ChunkedArray, name: str) -> Reading | str:
    """How a column tells the time, or else why it does not, to follow its name."""
    kind = values.type
    if types.is_time(kind):
        return "holds the time of day alone"
    if types.is_date(kind) or types.is_timestamp(kind):
        return _tried(values, [TimeColumn(column=name)])
    if types.is_integer(kind) or types.is_floating(kind):
        numbers = values.drop_null().to_numpy()
        return _of_numbers(values, name, numbers[np.isfinite(numbers)])
    if not types.is_string(kind):
        return f"is of the type {kind}"
    present = _present(values)
    numbers = np.asarray(pd.to_numeric(pd.Series(present, dtype=object), errors="coerce"))
    if len(numbers) and np.isfinite(numbers).mean() >= PARSED:
        return _of_numbers(values, name, numbers[np.isfinite(numbers)])
    if present and all(map(_CLOCK.fullmatch, present)):
        return "holds the time of day alone"
    iso = _tried(values, [TimeColumn(column=name)])
    formats = Counter(map(_formats, present)).most_common(1)
    if isinstance(iso, Reading) or not formats:
        return iso
    return _tried(values, [TimeColumn(column=name, format=f) for f in formats[0][0]])


def holds_dates(values: pa.ChunkedArray, name: str) -> bool:
    """Whether a column that nobody named holds dates, by its type, text, or name and number."""
    kind = values.type
    if types.is_date(kind) or types.is_timestamp(kind):
        return True
    if types.is_string(kind):
        present = _present(values)[:20]
        dates = bool(present) and all(map(_formats, present))
        return dates and isinstance(reading(values, name), Reading)
    if types.is_integer(kind) and re.fullmatch(r"(.*_)?(date|day|dt|ds)", name, re.I):
        found = reading(values, name)
        return isinstance(found, Reading) and found.column.format is not None
    return False


def days(values: pa.ChunkedArray, column: TimeColumn) -> np.ndarray:
    """Days since the epoch, float64 [rows]; NaN where there is none, or none of these centuries."""
    ms, bad = parse_time(values, column)
    first, last = ((end - _EPOCH).days for end in (_FIRST, _LAST))
    day = np.floor_divide(ms, MS_PER_DAY).astype(np.float64)
    return np.where(bad | (day < first) | (day >= last), np.nan, day)


def _present(values: pa.ChunkedArray) -> list[str]:
    """Some of the texts, from all over the column."""
    filled = values.filter(pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(values), ""), False))
    step = max(1, len(filled) // PROBED)
    places = pa.array(np.arange(0, len(filled), step))
    return [text.strip() for text in filled.take(places).to_pylist()]


def _of_numbers(values: pa.ChunkedArray, name: str, numbers: np.ndarray) -> Reading | str:
    if not len(numbers):
        return "has no values"
    # The median, since a few rows of a log may have any number.
    middle = float(np.median(numbers.astype(np.float64)))
    format = _DIGITS.get(len(str(int(abs(middle)))))
    if format:
        written = TimeColumn(column=name, format=format)
        found = _tried(values, [written])
        if isinstance(found, Reading) and np.isfinite(days(values, written)).mean() >= PARSED:
            return found
    if np.abs(numbers).max() < DAY_SECONDS:
        return "holds numbers that are no dates: the time of day, perhaps"
    unit = next(unit for unit, bound in _UNITS if abs(middle) < bound)
    return _tried(values, [TimeColumn(column=name, unit=unit)])


def _tried(values: pa.ChunkedArray, ways: list[TimeColumn]) -> Reading | str:
    """The way that reads the most rows; of equal ones, that whose days lie closest together."""
    read = [1.0 - parse_time(values, way)[1].mean() for way in ways]
    best = [way for way, share in zip(ways, read, strict=True) if share == max(read, default=0)]
    if not best or max(read) < PARSED:
        return f"has a time that can be read in {max(read, default=0):.0%} of the rows"
    if len(best) == 1:
        return Reading(best[0])
    found = [days(values, way) for way in best]
    spans = [np.nanmax(day) - np.nanmin(day) if np.isfinite(day).any() else 0 for day in found]
    chosen = best[int(np.argmin(spans))]
    others = " or ".join(way.format or "" for way in best if way is not chosen)
    if all(np.array_equal(found[0], day, equal_nan=True) for day in found[1:]):
        return Reading(chosen)
    return Reading(
        chosen,
        f"could be {others} as well: no day above 12 tells. The days of {chosen.format} lie "
        "closest together",
    )


def _formats(text: str) -> tuple[str, ...]:
    """The formats of `strptime` that a date may be written in; none where it is no date.

    >>> _formats("05/01/2026 10:00")
    ('%d/%m/%Y %H:%M', '%m/%d/%Y %H:%M')
    """
    found = _DATE.fullmatch(text)
    if found is None:
        return ()
    mark = found["mark"]
    if len(found["a"]) == 4 and len(found["c"]) <= 2:
        orders = ["%Y{0}%m{0}%d"]
    elif len(found["c"]) == 4 and len(found["a"]) <= 2:
        orders = ["%d{0}%m{0}%Y", "%m{0}%d{0}%Y"]
    else:
        return ()
    clock = ""
    if found["hour"]:
        clock = found["gap"] + ("%I:%M" if found["noon"] else "%H:%M")
        clock += (":%S" if found["second"] else "") + (".%f" if found["part"] else "")
        clock += _spaced(found["noon"], "%p")
        zone = (found["zone"] or "").strip()
        clock += _spaced(found["zone"], zone if zone.isalpha() else "%z")
    return tuple(order.format(mark) + clock for order in orders)


def _spaced(text: str | None, format: str) -> str:
    """The format, after a space where the text has one; nothing where there is no text."""
    return "" if not text else " " * text.startswith(" ") + format


def texts(values: pa.ChunkedArray) -> str:
    """A few of a column's values, as text."""
    if types.is_nested(values.type):
        return str(values.type)
    shown, _ = canonical(values.slice(0, 3), RawColumn("", "string", "context"))
    return ", ".join(map(repr, shown.to_pylist()))
