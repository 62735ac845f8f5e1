"""Write a simulated world: three logs by day, user and item tables, the truth, a manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    library_versions,
    write_folder,
    write_json,
)
from recsys.errors import EXIT_WRONG_USE, UserError, of_system
from recsys.world.behaviour import (
    MS_PER_DAY,
    MS_PER_HOUR,
    POSITIONS,
    SURFACES,
    Impressions,
    Truth,
    draw_impressions,
)
from recsys.world.population import DEVICES, draw_population
from recsys.world.truth import best_auc

CLICK_DELAY_MS = 15_000.0
CONVERSION_DELAY_MS = 6.0 * MS_PER_HOUR
_PILOT_ROWS = 30_000
_EPOCH = date(1970, 1, 1)

_EVENT = [
    ("impression_id", pa.string()),
    ("user_id", pa.string()),
    ("item_id", pa.string()),
    ("time", pa.int64()),
]
CLICKS = pa.schema(_EVENT)
CONVERSIONS = pa.schema([*_EVENT, ("value", pa.float64())])


def simulate(
    out: Path,
    rows: int = 200_000,
    seed: int = 0,
    days: int = 10,
    start: date = date(2026, 1, 1),
    progress: Callable[[int, int], None] | None = None,
    dirt: float = 0.0,
) -> dict[str, Any]:
    """Write a simulated world to ``out``, whole or not at all, and return its manifest.

    About 1 in 10 impressions is clicked and 1 in 10 clicks converts, some hours later. Events
    lie in the day on which they happened, so conversions go on after the last impressions. The
    same arguments always write the same bytes (with the same library versions).

    ===================================  ====================================================
    ``impressions/day=*/``               ``impression_id``, ``request_id``, ``user_id``,
                                         ``item_id``, ``time``, ``position``, ``hour``,
                                         ``device``, ``surface``
    ``clicks/day=*/``                    ``impression_id``, ``user_id``, ``item_id``, ``time``
    ``conversions/day=*/``               the same and ``value``
    ``truth/day=*/``                     ``impression_id``, ``p_click``,
                                         ``p_conversion_given_click``
    ``users/``, ``items/``               attributes, one row an id; lists are comma-joined
    ===================================  ====================================================

    Times are int64 milliseconds since the epoch, UTC. ``tenure_days`` and ``price`` have a few
    nulls. A fifth of the items is launched after the first day.

    Args:
        out: folder to write; it must not exist, or be empty.
        rows: impressions, without those that ``dirt`` repeats.
        seed: at least 0.
        days: days of impressions.
        start: the first day.
        progress: called with (impressions written, ``rows``) after each day.
        dirt: share of impressions and of clicks that are written twice, and conversions without
            a click, as a share of ``rows`` / 100; 0 to 0.5. It changes nothing else.

    Raises:
        UserError: a wrong argument, ``out`` is in use, or it cannot be written; nothing is left
            behind.
    """
    _check(rows=rows, seed=seed, days=days, start=start, dirt=dirt)
    out = Path(out)
    try:
        with write_folder(out) as folder:
            return _World(folder, rows, seed, days, start, dirt).write(progress)
    except OSError as error:
        told = of_system(error, out)
        if told is None:
            raise
        raise told from error


@dataclass
class _Pending:
    """Events that wait for their day, as (day number since the epoch) → tables."""

    schema: pa.Schema
    waiting: dict[int, list[pa.Table]] = field(default_factory=dict)

    def add(self, events: pa.Table) -> None:
        day = events["time"].to_numpy() // MS_PER_DAY
        for one in np.unique(day).tolist():
            self.waiting.setdefault(one, []).append(events.filter(pa.array(day == one)))

    def take(self, day: int) -> pa.Table:
        table = pa.concat_tables([self.schema.empty_table(), *self.waiting.pop(day, [])])
        return table.sort_by([("time", "ascending"), ("impression_id", "ascending")])


class _World:
    def __init__(
        self, root: Path, rows: int, seed: int, days: int, start: date, dirt: float
    ) -> None:
        self.root, self.rows, self.seed, self.days = root, rows, seed, days
        self.start, self.dirt = start, dirt
        # A stream for each purpose: dirt, or one more day, leaves all the rest as it was.
        streams = np.random.SeedSequence(seed).spawn(4)
        rng = np.random.default_rng(streams[0])
        n_users = int(np.clip(rows // 500, 200, 2000))
        n_items = int(np.clip(rows // 700, 300, 1500))
        self.users, self.items = draw_population(rng, n_users, n_items, days)
        self.truth = self._fitted(np.random.default_rng(streams[1]))
        self.day_streams = streams[2].spawn(days)
        self.dirt_streams = streams[3].spawn(days)
        self.user_ids, self.item_ids = self.users.ids, self.items.ids
        self.clicks, self.conversions = _Pending(CLICKS), _Pending(CONVERSIONS)
        self.written = {"impressions": 0, "clicks": 0, "conversions": 0}

    def _fitted(self, rng: np.random.Generator) -> Truth:
        at = sorted({0, self.days // 2, self.days - 1})
        draws = [
            draw_impressions(rng, self.users, self.items, day, _PILOT_ROWS // len(at)) for day in at
        ]
        columns = {
            name: np.concatenate([getattr(draw, name) for draw in draws])
            for name in Impressions.__dataclass_fields__
        }
        return Truth.fitted(self.users, self.items, Impressions(**columns))

    def write(self, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        _write(self.users.table(), self.root / "users")
        _write(self.items.table(), self.root / "items")
        first = (self.start - _EPOCH).days
        counts = np.diff(np.arange(self.days + 1) * self.rows // self.days)
        kept: list[tuple[NDArray[Any], ...]] = []
        requests = done = 0
        for day, count in enumerate(counts.tolist()):
            kept.append(self._write_day(day, first + day, count, requests))
            requests += -(-count // POSITIONS)
            done += count
            if progress is not None:
                progress(done, self.rows)
        for day in sorted(self.clicks.waiting.keys() | self.conversions.waiting.keys()):
            self._write_events(day)
        return self._write_manifest([np.concatenate(part) for part in zip(*kept, strict=True)])

    def _write_day(
        self, day: int, epoch_day: int, count: int, requests: int
    ) -> tuple[NDArray[Any], ...]:
        rng = np.random.default_rng(self.day_streams[day])
        shown = draw_impressions(rng, self.users, self.items, day, count)
        p_click, p_conversion = self.truth.probabilities(shown)
        click = rng.random(count) < p_click
        conversion = click & (rng.random(count) < p_conversion)
        time = shown.time + epoch_day * MS_PER_DAY
        click_time = time + 500 + rng.exponential(CLICK_DELAY_MS, count).astype(np.int64)
        delay = rng.exponential(CONVERSION_DELAY_MS, count).astype(np.int64)
        value = self.items.price[shown.item] * rng.integers(1, 4, count)

        log = self._impressions(shown, time, requests)
        events = log.select(["impression_id", "user_id", "item_id"])
        clicks = events.append_column("time", pa.array(click_time)).filter(pa.array(click))
        sales = (
            events.append_column("time", pa.array(click_time + delay))
            .append_column("value", pa.array(np.round(value, 2)))
            .filter(pa.array(conversion))
        )
        if self.dirt:
            dirty = np.random.default_rng(self.dirt_streams[day])
            stray = ~click & (dirty.random(count) < self.dirt / 100)
            late = time + dirty.exponential(CONVERSION_DELAY_MS, count).astype(np.int64)
            strays = (
                events.append_column("time", pa.array(late))
                .append_column("value", pa.array(np.round(value, 2)))
                .filter(pa.array(stray))
            )
            sales = pa.concat_tables([sales, strays])
            log = _twice(dirty, log, self.dirt)
            clicks = _twice(dirty, clicks, self.dirt)

        name = _name(epoch_day)
        truth = pa.table(
            {
                "impression_id": events["impression_id"],
                "p_click": p_click,
                "p_conversion_given_click": p_conversion,
            }
        )
        _write(log, self.root / "impressions" / name)
        _write(truth, self.root / "truth" / name)
        self.written["impressions"] += len(log)
        self.clicks.add(clicks)
        self.conversions.add(sales)
        # No later impression can lead to an event of this day.
        self._write_events(epoch_day)
        return click, conversion, p_click, p_conversion

    def _impressions(self, shown: Impressions, time: NDArray[np.int64], requests: int) -> pa.Table:
        number = pa.array(shown.request + requests).cast(pa.string())
        request = pc.binary_join_element_wise("r", number, "")
        position = pa.array(shown.position.astype(np.int32))
        return pa.table(
            {
                "impression_id": pc.binary_join_element_wise(
                    request, position.cast(pa.string()), "-"
                ),
                "request_id": request,
                "user_id": self.user_ids.take(pa.array(shown.user)),
                "item_id": self.item_ids.take(pa.array(shown.item)),
                "time": time,
                "position": position,
                "hour": pa.array(shown.hour.astype(np.int32)),
                "device": pa.array(DEVICES).take(pa.array(shown.device)),
                "surface": pa.array(SURFACES).take(pa.array(shown.surface)),
            }
        )

    def _write_events(self, epoch_day: int) -> None:
        for kind, pending in (("clicks", self.clicks), ("conversions", self.conversions)):
            table = pending.take(epoch_day)
            _write(table, self.root / kind / _name(epoch_day))
            self.written[kind] += len(table)

    def _write_manifest(self, labels: list[NDArray[Any]]) -> dict[str, Any]:
        click, conversion, p_click, p_conversion = labels
        clicks, conversions = int(click.sum()), int(conversion.sum())
        end = self.start + timedelta(days=self.days)
        # No time of writing: the same arguments write the same bytes.
        manifest = {
            "kind": "world",
            "format_version": FORMAT_VERSION,
            "rows": self.rows,
            "seed": self.seed,
            "days": self.days,
            "day_list": [str(self.start + timedelta(days=day)) for day in range(self.days)],
            # The end is the first moment that is no longer part of the impressions.
            "time_range": [_moment(self.start), _moment(end)],
            "users": len(self.users),
            "items": len(self.items),
            "dirt": self.dirt,
            "clicks": clicks,
            "conversions": conversions,
            "written": self.written,
            "label_rates": {
                "click": clicks / self.rows,
                "conversion": conversions / self.rows,
                "conversion_given_click": conversions / clicks if clicks else None,
            },
            "best_auc": best_auc(click, conversion, p_click, p_conversion),
            "fingerprints": {},
            "libraries": {**library_versions(), "numpy": np.__version__},
        }
        write_json(self.root / MANIFEST, manifest)
        return manifest


def _twice(rng: np.random.Generator, table: pa.Table, share: float) -> pa.Table:
    """Repeat a share of the rows, each right after itself."""
    times = 1 + (rng.random(len(table)) < share)
    return table.take(pa.array(np.repeat(np.arange(len(table)), times)))


def _name(epoch_day: int) -> str:
    return f"day={_EPOCH + timedelta(days=epoch_day)}"


def _moment(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat()


def _write(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part-0.parquet", compression="zstd")


def _check(*, rows: int, seed: int, days: int, start: date, dirt: float) -> None:
    def refuse(name: str, expected: str, found: object) -> None:
        raise UserError(
            f"The world cannot be simulated with this {name}.",
            expected=expected,
            found=str(found),
            where=name,
            fix=f"Give another {name}.",
            exit_code=EXIT_WRONG_USE,
        )

    if rows < 1:
        refuse("rows", "at least 1", rows)
    if seed < 0:
        refuse("seed", "at least 0", seed)
    if days < 1:
        refuse("days", "at least 1", days)
    if not 0 <= dirt <= 0.5:
        refuse("dirt", "0 to 0.5", dirt)
    # Room for events after the last day, whose dates must exist too.
    if (date.max - start).days < days + 365:
        refuse("start", "a start more than a year before the year 9999 ends", start)
