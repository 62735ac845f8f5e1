"""The step that adds counters to rows and writes them for serving, as a Beam transform."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_jobs import counters as past
from beam_jobs.history import Bounds, clock_of
from beam_jobs.partition import partition
from beam_jobs.plan import Plan
from beam_jobs.runner import carrying
from beam_jobs.sinks import write_parquet
from recsys.artifacts import write_json
from recsys.spec.records import Feature

SERVING = "serving"


class CountPast(beam.PTransform):
    """Add the counters: what was known of a key at the end of the day before each row's."""

    def __init__(self, plan: Plan, shards: int, folder: Path, bounds: Any) -> None:
        super().__init__()
        self.plan, self.shards, self.folder, self.bounds = plan, shards, folder, bounds

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        partials = rows | "Ask" >> beam.FlatMap(self._ask, self.bounds)
        overall = beam.pvalue.AsSingleton(
            partials
            | "Totals of part"
            >> beam.Map(
                lambda pair, features: past.totals(pair[1][1], features[pair[0][0]]),
                {feature.name: feature for feature in self.plan.counters},
            )
            | "Totals" >> beam.CombineGlobally(_Sums())
        )
        outputs = (
            partials
            | "Meet by counted key" >> beam.GroupByKey()
            | "Answer" >> beam.FlatMap(self._answer, overall).with_outputs(SERVING)
        )
        _ = (
            outputs[SERVING]
            | "Group counters" >> beam.GroupByKey()
            | "Write counters" >> beam.Map(self._write, overall)
        )
        return (
            {"rows": rows, "answers": outputs[None]}
            | "Meet answers" >> beam.CoGroupByKey()
            | "Attach" >> beam.Map(self._attach)
        )

    def _feature(self, name: str) -> Feature:
        return self.plan.spec.feature(name)

    def _ask(self, pair: tuple[int, pa.Table], bounds: Bounds) -> Iterator[Any]:
        shard, rows = pair
        for feature in self.plan.counters:
            part = past.partial(rows, feature, self.plan, clock_of(bounds))
            for number, piece in partition(part, past.KEY, self.shards):
                yield (feature.name, number), (shard, piece)

    def _answer(
        self, group: tuple[tuple[str, int], Iterable[Any]], sums: past.Totals
    ) -> Iterator[Any]:
        (name, _), parts = group
        feature = self._feature(name)
        replies, final = past.answers(
            sorted(parts, key=lambda part: part[0]), feature, past.Overall.of(sums, name)
        )
        for shard, table in replies:
            yield shard, (name, table)
        yield beam.pvalue.TaggedOutput(SERVING, (name, final))

    def _write(self, group: tuple[str, Iterable[pa.Table]], sums: past.Totals) -> None:
        name, finals = group
        feature = self._feature(name)
        table = past.serving_table(list(finals), feature, self.plan)
        with carrying():
            write_parquet(table, self.folder / f"counter-{name}.parquet")
            write_json(
                self.folder / f".counter-{name}.json",
                past.default_of(feature, past.Overall.of(sums, name)),
            )

    def _attach(self, group: tuple[int, dict[str, Any]]) -> tuple[int, pa.Table]:
        shard, met = group
        replies: dict[str, list[pa.Table]] = {}
        for name, table in met["answers"]:
            replies.setdefault(name, []).append(table)
        return shard, past.attach(next(iter(met["rows"])), replies, self.plan)


class _Sums(beam.CombineFn):
    def create_accumulator(self) -> past.Totals:
        return {}

    def add_input(self, total: past.Totals, part: past.Totals) -> past.Totals:
        return past.add_totals(total, part)

    def merge_accumulators(self, parts: Iterable[past.Totals]) -> past.Totals:
        return functools.reduce(past.add_totals, parts, {})

    def extract_output(self, total: past.Totals) -> past.Totals:
        return total
