"""The second half of the job: learn the transform graph and write the examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow_transform.beam as tft_beam

from beam_jobs.plan import REQUEST, TIME, USER, Plan, raw
from beam_jobs.runner import carrying, tick
from beam_jobs.sinks import example_array, read_arrow, write_parquet
from beam_jobs.transform import adapter_config, arrow_type, preprocessing_fn
from recsys.artifacts import RAW_FOLDER, RAW_SPLIT
from recsys.raw import canonical
from recsys.spec.schema import (
    SPLITS,
    WEIGHT,
    RawColumn,
    example_columns,
    label_column,
    model_inputs,
    raw_columns,
    slice_column,
)

ROWS_PER_BATCH = 32_768
PART = "part"
"""Passes through the transform: which file a batch is for."""


def passthrough_schema(plan: Plan) -> pa.Schema:
    """Columns that travel beside the transform graph, each a list of one value a row."""
    spec = plan.spec
    text, number, whole = pa.string(), pa.float32(), pa.int64()
    fields = [(label_column(task.name), number) for task in spec.tasks]
    fields.append((USER, text))
    if spec.data.keys.request:
        fields.append((REQUEST, text))
    if spec.data.weight:
        fields.append((WEIGHT, number))
    fields += [(slice_column(name), text) for name in spec.evaluate.slices]
    if spec.data.time:
        fields.append((TIME, whole))
    fields.append((PART, whole))
    return pa.schema([(f"pass:{name}", pa.large_list(kind)) for name, kind in fields])


class TransformExamples(beam.PTransform):
    """Learn the transform graph from the training rows, apply it to all, write both."""

    def __init__(self, plan: Plan, joined: Path, folder: Path, scratch: Path, job: str) -> None:
        super().__init__()
        self.plan, self.joined, self.folder = plan, joined, folder
        self.scratch, self.job = scratch, job

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        passing = passthrough_schema(self.plan)
        config = adapter_config(self.plan.spec, passing)
        _ = (
            root
            | "Test files" >> beam.Create(joined_files(self.joined, (RAW_SPLIT,)))
            | "Spread test" >> beam.Reshuffle()
            | "Write raw" >> beam.Map(write_raw, self.plan, self.folder / RAW_FOLDER)
        )
        # Read anew for the second use: a shared collection would wait in memory for the graph.
        train = root | "Read train" >> ReadJoined(self.plan, self.joined, ("train",))
        every = root | "Read all" >> ReadJoined(self.plan, self.joined, SPLITS)
        with tft_beam.Context(temp_dir=str(self.scratch), passthrough_keys=set(passing.names)):
            graph = (train, config) | "Analyze" >> tft_beam.AnalyzeDataset(
                preprocessing_fn(self.plan.spec)
            )
            _ = graph | "Write graph" >> tft_beam.WriteTransformFn(str(self.folder / "transform"))
            _ = graph[0] | "Learned" >> beam.Map(lambda _, job: tick(job, "analyze"), self.job)
            (examples, _) = ((every, config), graph) | "Transform" >> tft_beam.TransformDataset(
                output_record_batches=True
            )
        return (
            examples
            | "Batches" >> beam.Keys()  # beside each batch comes what did not fit its rows: nothing
            | "Write" >> beam.Map(write_examples, self.plan, self.folder / "examples", self.job)
        )


class ReadJoined(beam.PTransform):
    """Read joined rows of some splits as record batches that the transform graph takes."""

    def __init__(self, plan: Plan, joined: Path, splits: tuple[str, ...]) -> None:
        super().__init__()
        self.plan = plan
        self.files = joined_files(joined, splits)

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        return (
            root
            | "Files" >> beam.Create(self.files)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read_batches, self.plan)
        )


def joined_files(joined: Path, splits: tuple[str, ...]) -> list[tuple[int, str]]:
    """The files of joined rows, each with the number of its first batch's part."""
    return [
        ((SPLITS.index(split) << 40) + (number << 20), str(path))
        for split in splits
        for number, path in enumerate(sorted((joined / split).glob("*.arrow")))
    ]


def _read_batches(numbered: tuple[int, str], plan: Plan) -> Iterator[pa.RecordBatch]:
    return read_batches(*numbered, plan)


def read_batches(part: int, path: str, plan: Plan) -> Iterator[pa.RecordBatch]:
    """The rows of a joined file, in batches; each value is a list of one."""
    for each, rows in _slices(part, path):
        yield record_batch(rows, each, plan)


def _slices(part: int, path: str) -> Iterator[tuple[int, pa.Table]]:
    with carrying():
        table = read_arrow(path)
    for number, start in enumerate(range(0, len(table), ROWS_PER_BATCH)):
        yield part + number, table.slice(start, ROWS_PER_BATCH)


def write_raw(numbered: tuple[int, str], plan: Plan, folder: Path) -> None:
    """Write the raw columns of joined rows, file by file and row by row as their examples.

    A model that was trained on other features reads these, through its own transform graph.
    """
    columns = [column.name for column in raw_columns(plan.spec)]
    for each, rows in _slices(*numbered):
        table = pa.table({name: rows[raw(name)] for name in columns})
        with carrying():
            write_parquet(table, part_path(folder, each))


def part_path(folder: Path, part: int) -> Path:
    """Where a part is written: a file of its split."""
    shard, number = (part >> 20) & ((1 << 20) - 1), part & ((1 << 20) - 1)
    return folder / SPLITS[part >> 40] / f"part-{shard:05d}-{number:03d}.parquet"


def count_batches(joined: Path) -> int:
    """How many batches all joined files make."""
    return sum(-(-len(read_arrow(str(path))) // ROWS_PER_BATCH) for path in joined.rglob("*.arrow"))


def record_batch(rows: pa.Table, part: int, plan: Plan) -> pa.RecordBatch:
    """Joined rows as one record batch for the file `part`."""
    columns = {
        column.name: _ones(rows[raw(column.name)], arrow_type(column))
        for column in raw_columns(plan.spec)
    }
    for field in passthrough_schema(plan):
        name = field.name.removeprefix("pass:")
        values = (
            pa.array([part] * len(rows), pa.int64()) if name == PART else _passing(rows, name, plan)
        )
        columns[field.name] = _ones(values, field.type)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _passing(table: pa.Table, name: str, plan: Plan) -> pa.ChunkedArray | pa.Array:
    if name in table.column_names:
        return table[name]
    feature = plan.spec.feature(name.removeprefix(slice_column("")))
    column = feature.name if feature.encode.kind in ("history", "counter") else feature.raw
    return canonical(table[raw(column)], RawColumn(column, "string", feature.owner))[0]


def _ones(values: pa.ChunkedArray | pa.Array, kind: pa.LargeListType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int64))
    return pa.LargeListArray.from_arrays(offsets, values.cast(kind.value_type))


def write_examples(batch: pa.RecordBatch, plan: Plan, folder: Path, job: str) -> None:
    """Write a transformed batch as one Parquet file of its split."""
    part = batch.column(f"pass:{PART}").flatten()[0].as_py()
    inputs = {model_input.name: model_input for model_input in model_inputs(plan.spec)}
    columns: dict[str, Any] = {}
    for name in example_columns(plan.spec):
        if name in inputs:
            columns[name] = example_array(batch.column(name), inputs[name])
        elif f"pass:{name}" in batch.schema.names:
            columns[name] = batch.column(f"pass:{name}").flatten()
    with carrying():
        write_parquet(pa.table(columns), part_path(folder, part))
    tick(job, "transform")
