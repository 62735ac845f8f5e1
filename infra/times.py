"""How a column tells the time, for `recsys spec infer`: tried on the feature job's own parser."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from beam_jobs.validate import MS_PER_DAY, parse_time
from infra.columns import Column, Looked, snake
from infra.owners import Owners
from infra.tables import sample, wrong_use
from recsys.raw import canonical
from recsys.spec.records import TimeColumn
from recsys.spec.schema import RawColumn

PARSED = 0.99
"""Rows that must have a time that can be read; the feature job sets the others apart as bad."""
DATED = 0.5
"""Texts of a column named like a date that look like some, from which it is none but badly read."""
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
_TIME = r"time|timestamp|ts|datetime|date_?time|shown_at|event_time|time_ms"
_DATED = r"(.*_)?(date|time|datetime|timestamp)s?(_.*)?"
_MARKED = r"\d[^\d.]+\d|\d[.]\d+[.]\d|\d{8}"
"""What dates and times have in them: numbers with marks between them, or the digits of a day."""
_NOT_WHEN = (
    r"(^|_)(valid|until|expir|due|end|next|last|prev|birth|born|since|sign_?up|regist|join|releas|"
    r"click|order|purchas|deliver|updat|modif)"
)
"""Words in names of times that are not those of the impression."""
FEWEST_TIMES = 100
"""Values of a column that nobody named from which it could be a time."""
_TIMED = (
    r"(.*_)?(time|ts|at|t|when|date|datetime|timestamp|epoch|unix|dt|ds)"
    r"(_(s|ms|us|ns|sec|secs|seconds|millis|utc|unix))?|timestamp.*"
)
"""Names of columns that hold times where their numbers are some."""
_CENTURY = {
    unit: (946_684_800 * per_second, 4_102_444_800 * per_second)
    for unit, per_second in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9))
}
_COARSE = {"minutes": 60, "hours": 3600, "days": DAY_SECONDS}
_OLD = 10 * 365 * DAY_SECONDS
_FIRST, _LAST = (pd.Timestamp(f"{year}-01-01") for year in (1900, 2200))
_EPOCH = pd.Timestamp(0)


@dataclass(frozen=True)
class Reading:
    """How to read a column's times, and what is to be said of it."""

    column: TimeColumn
    note: str = ""


@dataclass(frozen=True)
class Time:
    """The time of the rows.

    Attributes:
        name: Its column.
        read: How that is read.
        day: Each row's day since the epoch, float64 [rows]; NaN where there is none.
        of_day: Whether it tells the time of the day, too.
    """

    name: str
    read: Reading
    day: np.ndarray
    of_day: bool

    @classmethod
    def of(cls, name: str, read: Reading, values: pa.ChunkedArray) -> Time:
        """The time that a column tells."""
        ms, bad = parse_time(values, read.column)
        of_day = bool((ms[~bad] % MS_PER_DAY != 0).mean() > 0.5) if (~bad).any() else False
        return cls(name, read, _days(ms, bad), of_day)


@dataclass(frozen=True)
class Timing:
    """The time of the rows, where there is one, and which columns else have to do with time.

    Attributes:
        untimed: Why columns that are named like it tell none.
        how: How it was told; '' where somebody named it.
        rivals: Columns that hold times too.
        dates: Without it, columns of dates that nobody named.
        numbers: Without it, columns whose numbers could be times.
        parts: Without it, columns of the year, the month and perhaps the day.
    """

    time: Time | None
    untimed: dict[str, str]
    how: str = ""
    rivals: list[str] = field(default_factory=list)
    dates: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


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
    """Whether a column that nobody named holds dates, by its type, text, or name and number.

    Numbers of a column named like a time are times where they lie in this century; 0 and -1 may
    stand for none.
    """
    kind = values.type
    if types.is_date(kind) or types.is_timestamp(kind):
        return True
    if types.is_string(kind):
        present = _present(values)[:20]
        dates = bool(present) and all(map(_formats, present))
        return dates and isinstance(reading(values, name), Reading)
    dated = types.is_integer(kind) and re.fullmatch(r"(.*_)?(date|day|dt|ds)", name, re.I)
    if dated and _of_digits(values, name):
        return True
    numeric = types.is_integer(kind) or types.is_floating(kind)
    return numeric and re.fullmatch(_TIMED, snake(name)) is not None and this_century(values, 0)


def this_century(values: pa.ChunkedArray, least: float | None = None) -> bool:
    """Whether numbers are times of this century in some unit, those up to `least` aside."""
    numbers = values.to_numpy().astype(np.float64)
    if least is not None:
        numbers = numbers[numbers > least]
    return any(_within(numbers, first, last) for first, last in _CENTURY.values())


def _within(numbers: np.ndarray, first: float, last: float) -> bool:
    return len(numbers) > 0 and bool(((numbers >= first) & (numbers < last)).mean() >= PARSED)


def choose(
    looked: Looked, columns: list[Column], dates: list[Column], named: str | None, owners: Owners
) -> Timing:
    """The time: by its name, or the earliest one that is neither the user's nor the item's.

    Args:
        looked: The table.
        columns: Those that may be the time.
        dates: Those of them that hold dates or times.
        named: The one that somebody named.
        owners: Of the table.

    Raises:
        UserError: The named column is no time.
    """
    whole = looked.read.table
    raw = sample(whole, len(looked.sample))
    first = [named] if named else [c.name for c in columns if re.fullmatch(_TIME, c.snake)]
    ways = {name: reading(raw[name], name) for name in first}
    how = "by its name"
    if named:
        _require_time(named, ways[named], raw[named], looked.read.path)
        how = ""
    elif not _readings(ways):
        how = "the only one with times of the moment"
        for name in _of_the_moment([c for c in dates if c.name not in first], owners):
            way = reading(raw[name], name)
            if isinstance(way, str) or _is_clock(raw[name], name):
                ways[name] = way
    found = _readings(ways)
    untimed = {name: way for name, way in ways.items() if isinstance(way, str)}
    if not found:
        untimed |= _unread(raw, [c for c in columns if c.name not in untimed and c not in dates])
        left = [c.name for c in dates if c.name not in untimed]
        # As the sample has it, where text is numbers: a few cells of the raw one may be none.
        table = looked.sample
        numbers = [c for c in columns if c not in dates and _could_be_times(table[c.name], c)]
        parts = [] if left else _parts_of_dates(columns, owners)
        return Timing(None, untimed, dates=left, numbers=[c.name for c in numbers], parts=parts)
    chosen = min(found, key=lambda name: _middle(raw[name], found[name].column))
    time = Time.of(chosen, found[chosen], whole[chosen])
    return Timing(time, untimed, how, [name for name in found if name != chosen])


def _readings(ways: dict[str, Reading | str]) -> dict[str, Reading]:
    return {name: way for name, way in ways.items() if isinstance(way, Reading)}


def _require_time(name: str, way: Reading | str, values: pa.ChunkedArray, path: Path) -> None:
    if isinstance(way, str):
        raise wrong_use(
            path,
            f"The column {name!r} is no time: it {way}.",
            expected=f"epoch numbers, ISO 8601 or another date in {PARSED:.0%} of the rows",
            found=texts(values),
            fix="Name another column, or none: rows are then divided by chance.",
        )


def _of_the_moment(dates: list[Column], owners: Owners) -> list[str]:
    """Columns of neither user nor item; of several, those not named like the time of another."""
    own = [c for c in dates if owners.of(c.name) == "context"]
    likely = [c.name for c in own if not re.search(_NOT_WHEN, c.snake)]
    return likely or [c.name for c in own if len(own) == 1]


def _parts_of_dates(columns: list[Column], owners: Owners) -> list[str]:
    """Columns of the year, the month and, if there is one, the day; none that someone owns."""
    whole = {c.snake: c.name for c in columns if c.kind == "number" and c.whole}
    found = [whole[part] for part in ("year", "month", "day") if part in whole]
    both = {"year", "month"} <= set(whole)
    return found if both and all(owners.of(name) == "context" for name in found) else []


def _unread(raw: pa.Table, columns: list[Column]) -> dict[str, str]:
    """Why columns that are named like dates, whose texts mostly look like some, cannot be read."""
    named = [c.name for c in columns if re.fullmatch(_DATED, c.snake)]
    texts = [name for name in named if types.is_string(raw[name].type)]
    ways = {name: reading(raw[name], name) for name in texts if _look_dated(raw[name])}
    return {name: way for name, way in ways.items() if isinstance(way, str)}


def _look_dated(values: pa.ChunkedArray) -> bool:
    """Whether texts mostly hold dates or times, in any way of writing them that pandas knows."""
    texts = pd.Series(_present(values), dtype=object)
    # Short numbers are days or years to pandas.
    words = texts.where(texts.str.contains(_MARKED), None)
    with warnings.catch_warnings(action="ignore"):
        read = pd.to_datetime(words, errors="coerce", format="mixed", utc=True)
    return bool(read.notna().mean() >= DATED)


def _could_be_times(values: pa.ChunkedArray, column: Column) -> bool:
    several = column.kind == "number" and column.distinct > FEWEST_TIMES
    return several and not column.numbers_names and this_century(values)


def _is_clock(values: pa.ChunkedArray, name: str) -> bool:
    """Whether a column that nobody named tells the time of nearly all rows."""
    kind = values.type
    numeric = types.is_integer(kind) or types.is_floating(kind)
    return not numeric or this_century(values) or _of_digits(values, name)


def _of_digits(values: pa.ChunkedArray, name: str) -> bool:
    found = reading(values, name)
    return isinstance(found, Reading) and found.column.format is not None


def _middle(values: pa.ChunkedArray, column: TimeColumn) -> float:
    ms, bad = parse_time(values, column)
    return float(np.median(ms[~bad])) if (~bad).any() else np.inf


def days(values: pa.ChunkedArray, column: TimeColumn) -> np.ndarray:
    """Days since the epoch, float64 [rows]; NaN where there is none, or none of these centuries."""
    return _days(*parse_time(values, column))


def _days(ms: np.ndarray, bad: np.ndarray) -> np.ndarray:
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
    for unit, seconds in _COARSE.items():
        if _within(numbers, *(bound / seconds for bound in _CENTURY["s"])):
            return f"looks like {unit} since 1970, and is to be written in seconds"
    if np.abs(numbers).max() < DAY_SECONDS:
        return "holds numbers that are no dates: the time of day, perhaps"
    unit = next(unit for unit, bound in _UNITS if abs(middle) < bound)
    found = _tried(values, [TimeColumn(column=name, unit=unit)])
    if isinstance(found, Reading) and unit == "s" and abs(middle) < _OLD:
        return replace(
            found,
            note="lies near 1970, as seconds from the start of a log do: right only if they are "
            "seconds",
        )
    return found


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
