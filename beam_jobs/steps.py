"""The steps from logs to divided, joined rows, as Beam transforms.

Elements are Arrow tables of many rows. What a step sets apart or counts goes to the `Ledger`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.history import Bounds, clock_bounds, clock_of, histories, widest
from beam_jobs.join import Joined, attribute, deduplicate, join_table
from beam_jobs.partition import by_shard, gather, partition, stable_hash
from beam_jobs.plan import (
    DAY,
    IDENTITY,
    IMPRESSION,
    ITEM,
    REQUEST,
    ROW,
    TABLE_KEY,
    TIME,
    USER,
    Owner,
    Plan,
    Source,
    raw,
)
from beam_jobs.runner import carrying, summed, tick
from beam_jobs.serving_tables import serving_rows
from beam_jobs.sinks import write_arrow, write_parquet
from beam_jobs.sources import ReadTask, read
from beam_jobs.split import OUTSIDE, identity, split_of
from beam_jobs.statistics import SplitStats, commonest, count_values, divided
from beam_jobs.validate import DEAD_LETTER, count_reasons, validate
from recsys.artifacts import write_json
from recsys.spec.schema import OWNER_KEY, SPLITS
from recsys.splitmix import mixed

DEAD, COUNTS, SERVING = "dead", "counts", "serving"
STATISTICS, VALUES = "statistics", "values"
REASON = "\x1f"
"""Stands between source and reason in the name of a count."""
_SHARDS_A_FILE = 4
"""Shards of rows whose dead letters, if all were bad, or texts, if all differ, one worker holds:
some 16 MiB of a log."""


class Ledger:
    """Collects the dead letters and counts of all steps of a pipeline."""

    def __init__(self) -> None:
        self._dead: list[beam.PCollection] = []
        self._counts: list[beam.PCollection] = []

    def take(self, outputs: Any) -> Any:
        """Note a step's side outputs and answer its main output."""
        self._dead.append(outputs[DEAD])
        self._counts.append(outputs[COUNTS])
        return outputs[None]

    def write(self, folder: Path, counts: Path, shards: int) -> None:
        """Write dead letters below a folder, and the sum of all counts as JSON.

        They are divided by what they say into as many files as a log of `shards` shards needs
        to fit into memory where it is bad as a whole.
        """
        parts = max(1, shards // _SHARDS_A_FILE)
        _ = (
            tuple(self._dead)
            | "Gather dead letters" >> beam.Flatten()
            | "Divide dead letters" >> beam.FlatMap(partition, "row", parts)
            | "Group dead letters" >> beam.GroupByKey()
            | "Write dead letters" >> beam.Map(_write_dead, folder)
        )
        _ = (
            tuple(self._counts)
            | "Gather counts" >> beam.Flatten()
            | "Add up counts" >> beam.CombineGlobally(summed)
            | "Write counts" >> beam.Map(lambda total, path: write_json(path, total), counts)
        )


def _write_dead(group: tuple[int, Iterable[pa.Table]], folder: Path) -> None:
    table = pa.concat_tables(group[1]).sort_by([(name, "ascending") for name in DEAD_LETTER.names])
    with carrying():
        write_parquet(table, folder / f"part-{group[0]:05d}.parquet")


def _aside(dead: pa.Table, counts: dict[str, int]) -> Iterator[Any]:
    if len(dead):
        yield beam.pvalue.TaggedOutput(DEAD, dead)
        source = dead["source"][0].as_py()
        counts = {
            **counts,
            **{
                f"bad.{source}{REASON}{reason}": count
                for reason, count in count_reasons(dead).items()
            },
        }
    if counts:
        yield beam.pvalue.TaggedOutput(COUNTS, counts)


class ReadSource(beam.PTransform):
    """Read a log or table in blocks, validate it, and divide it by hash of a key column."""

    def __init__(
        self, tasks: list[ReadTask], source: Source, key: str, shards: int, job: str, ledger: Ledger
    ) -> None:
        super().__init__()
        self.tasks, self.source, self.key = tasks, source, key
        self.shards, self.job, self.ledger = shards, job, ledger

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        return self.ledger.take(
            root
            | "Files" >> beam.Create(self.tasks)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(_Read(self.source, self.key, self.shards, self.job)).with_outputs(
                DEAD, COUNTS
            )
        )


class _Read(beam.DoFn):
    def __init__(self, source: Source, key: str, shards: int, job: str) -> None:
        self.source, self.key, self.shards, self.job = source, key, shards, job

    def process(self, task: ReadTask) -> Iterator[Any]:
        with carrying():
            for block, ragged in read(task):
                checked = validate(block, ragged, self.source)
                counts = {f"read.{self.source.name}": len(block) + len(ragged)}
                yield from _aside(checked.dead, counts)
                yield from partition(checked.good, self.key, self.shards)
        tick(self.job, "read")


class AttributeActions(beam.PTransform):
    """Remove duplicates and label impressions by what followed them; divide them by item."""

    def __init__(self, plan: Plan, shards: int, ledger: Ledger) -> None:
        super().__init__()
        self.plan, self.shards, self.ledger = plan, shards, ledger

    def expand(self, logs: dict[str, beam.PCollection]) -> beam.PCollection:
        return self.ledger.take(
            logs
            | "Meet by impression" >> beam.CoGroupByKey()
            | "Attribute" >> beam.FlatMap(self._attribute).with_outputs(DEAD, COUNTS)
        )

    def _attribute(self, group: tuple[int, dict[str, Iterable[pa.Table]]]) -> Iterator[Any]:
        logs = {name: list(tables) for name, tables in group[1].items()}
        if not logs["impressions"]:
            lost = {
                f"actions_without_impression.{name}": sum(map(len, tables))
                for name, tables in logs.items()
                if tables
            }
            yield from _aside(DEAD_LETTER.empty_table(), lost)
            return
        column = self.plan.spec.data.keys.impression
        key = IMPRESSION if column else None
        shown = Joined(gather(logs["impressions"]))
        if self.plan.spec.data.duplicates == "remove":
            shown = deduplicate(shown.rows, "impressions", key, column or "")
        rows = shown.rows.append_column(IDENTITY, pa.array(identity(shown.rows)))
        events = {
            name: gather(logs[name]) if logs[name] else _no_events() for name in self.plan.actions
        }
        labelled = attribute(rows, events, self.plan)
        yield from _aside(shown.dead, {**shown.counts, **labelled.counts})
        yield from _aside(labelled.dead, {})
        yield from partition(labelled.rows, ITEM, self.shards)


def day_bounds(rows: beam.PCollection, plan: Plan) -> Any:
    """What all rows say of the clock of their days, for steps that ask when an action was known."""
    if not plan.counts_local_days:
        return widest([])
    return beam.pvalue.AsSingleton(
        rows
        | "Bounds of days" >> beam.Map(lambda pair: clock_bounds(pair[1]))
        | "Widest" >> beam.CombineGlobally(widest)
    )


def _no_events() -> pa.Table:
    return pa.table(
        {
            ROW: pa.array([], pa.int64()),
            IMPRESSION: pa.array([], pa.string()),
            TIME: pa.array([], pa.int64()),
        }
    )


class JoinTable(beam.PTransform):
    """Join the owner's table to the impressions; also gather the owner's serving rows."""

    def __init__(
        self, plan: Plan, owner: Owner, shards: int, job: str, ledger: Ledger, bounds: Any
    ) -> None:
        super().__init__()
        self.plan, self.owner, self.bounds = plan, owner, bounds
        self.shards, self.job, self.ledger = shards, job, ledger

    def expand(self, logs: dict[str, beam.PCollection]) -> tuple[Any, Any]:
        outputs = (
            logs
            | f"Meet by {self.owner}" >> beam.CoGroupByKey()
            | "Join" >> beam.FlatMap(self._join, self.bounds).with_outputs(DEAD, COUNTS, SERVING)
        )
        return self.ledger.take(outputs), outputs[SERVING]

    def _join(
        self, group: tuple[int, dict[str, Iterable[pa.Table]]], bounds: Bounds
    ) -> Iterator[Any]:
        shard, logs = group
        shown, table = list(logs["shown"]), None
        if self.owner in self.plan.tables:
            parts = list(logs.get("table", ()))
            source = self.plan.tables[self.owner]
            name = source.name
            unique = (
                deduplicate(gather(parts), name, TABLE_KEY, source.fields[0].column)
                if parts
                else Joined(_empty_table(source))
            )
            # A table's repeated rows are no impressions; they are counted under their own name.
            removed = unique.counts.get("duplicates_removed", 0)
            yield from _aside(
                unique.dead, {f"duplicates_removed.{name}": removed} if removed else {}
            )
            table = unique.rows
        rows, ends = None, []
        if shown:
            joined = join_table(gather(shown), table, self.owner)
            yield from _aside(joined.dead, joined.counts)
            rows = joined.rows
            if self.owner == "user":
                for feature in self.plan.histories:
                    made = histories(rows, feature, self.plan, clock_of(bounds))
                    rows = rows.append_column(raw(feature.name), made.rows)
                    ends.append(made.users)
        serving = serving_rows(rows, table, ends, self.owner, self.plan)
        if len(serving):
            yield beam.pvalue.TaggedOutput(SERVING, serving)
        if rows is not None and self.owner == "item":
            yield from partition(rows, USER, self.shards)
        elif rows is not None:
            yield shard, rows
        tick(self.job, "join")


def _empty_table(source: Source) -> pa.Table:
    kinds = {"number": pa.float32()}
    columns = {f.target: pa.array([], kinds.get(f.kind, pa.string())) for f in source.fields}
    return pa.table({ROW: pa.array([], pa.int64()), **columns})


class WriteServing(beam.PTransform):
    """Write an owner's serving table, sorted by key."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        return (
            tables
            | "One file" >> beam.Map(lambda table: (0, table))
            | "Gather" >> beam.GroupByKey()
            | "Write" >> beam.Map(self._write)
        )

    def _write(self, group: tuple[int, Iterable[pa.Table]]) -> None:
        with carrying():
            write_parquet(pa.concat_tables(group[1]).sort_by(OWNER_KEY), self.path)


class DivideRows(beam.PTransform):
    """Send each row to its split, and there to a shard by chance, so that users are mixed."""

    def __init__(self, plan: Plan, shards: int, ledger: Ledger) -> None:
        super().__init__()
        self.plan, self.shards, self.ledger = plan, shards, ledger

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return self.ledger.take(
            rows | "Divide" >> beam.FlatMap(self._divide).with_outputs(DEAD, COUNTS)
        )

    def _divide(self, pair: tuple[int, pa.Table]) -> Iterator[Any]:
        rows = pair[1]
        split = split_of(rows, self.plan.spec)
        inside = split != OUTSIDE
        outside = int((~inside).sum())
        counts = {"outside_split": outside} if outside else {}
        if DAY in rows.column_names:
            days, seen = np.unique(rows[DAY].to_numpy(), return_counts=True)
            counts |= {
                f"day.{date(1970, 1, 1) + timedelta(days=day)}": count
                for day, count in zip(days.tolist(), seen.tolist(), strict=True)
            }
        yield beam.pvalue.TaggedOutput(COUNTS, counts)
        chance = shuffle_keys(rows, self.plan)[0] % np.uint64(self.shards)
        target = np.where(inside, split * self.shards + chance.astype(np.int64), -1)
        for number, part in by_shard(rows, target):
            if number >= 0:
                yield number, part


def shuffle_keys(rows: pa.Table, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Two hashes a row, uint64, by which rows are shuffled: random to look at, always the same.

    The second is of the row's place. So is the first, save where a ranking loss compares a
    request's rows: there it is of the request, whose rows then come to lie side by side.
    """
    alone = mixed(rows[ROW].to_numpy().astype(np.uint64), 2)
    if not any(task.ranking for task in plan.spec.tasks):
        return alone, alone
    named = pc.fill_null(rows[REQUEST], "")
    request = mixed(stable_hash(named), 3)
    return np.where(np.asarray(pc.equal(named, "")), alone, request), alone


class WriteShards(beam.PTransform):
    """Write each shard of each split as an Arrow file, and its split's statistics as JSON."""

    def __init__(self, plan: Plan, shards: int, folder: Path, job: str) -> None:
        super().__init__()
        self.plan, self.shards, self.folder, self.job = plan, shards, folder, job

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        outputs = (
            rows
            | "Gather shard" >> beam.GroupByKey()
            | "Write shard" >> beam.FlatMap(self._write).with_outputs(VALUES)
        )
        statistics = outputs[None] | "Add up statistics" >> beam.CombinePerKey(_merge)
        top = (
            outputs[VALUES]
            | "Gather values" >> beam.GroupByKey()
            | "Count values" >> beam.MapTuple(lambda key, tables: (key[0], commonest(tables)))
            | "Commonest values" >> beam.CombinePerKey(commonest)
        )
        return (
            {STATISTICS: statistics, VALUES: top}
            | "Meet by split" >> beam.CoGroupByKey()
            | "Write statistics" >> beam.MapTuple(self._report)
        )

    def _write(self, group: tuple[int, Iterable[pa.Table]]) -> Iterator[Any]:
        split, shard = divmod(group[0], self.shards)
        rows = gather(list(group[1]))
        first, second = shuffle_keys(rows, self.plan)
        rows = rows.take(pa.array(np.lexsort((second, first))))
        with carrying():
            write_arrow(rows, self.folder / SPLITS[split] / f"{shard:05d}.arrow")
        tick(self.job, "join")
        texts = [column.name for column in self.plan.raw if column.dtype == "string"]
        counts = {name: count_values(rows[raw(name)]) for name in texts}
        yield SPLITS[split], SplitStats.of(rows, self.plan, counts)
        for part, values in divided(counts, max(1, self.shards // _SHARDS_A_FILE)):
            yield beam.pvalue.TaggedOutput(VALUES, ((SPLITS[split], part), values))

    def _report(self, split: str, found: dict[str, Iterable[Any]]) -> None:
        (stats,) = found[STATISTICS]
        # None where all texts of a split are missing.
        top = next(iter(found[VALUES]), None)
        write_json(self.folder / f"{split}.json", stats.report(top))


def _merge(parts: Iterable[SplitStats]) -> SplitStats:
    total = SplitStats()
    for part in parts:
        total = total.merged(part)
    return total
