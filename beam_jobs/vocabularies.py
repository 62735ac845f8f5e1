"""Learn all vocabularies in one analyzer.

`tft.vocabulary` costs a dozen Beam stages for each vocabulary, which is most of the time of a
small job and makes graphs of hundreds of features unwieldy. Here the values of all tables
travel together, as tables of (vocabulary, value, count), and one analyzer answers one file for
each, in the order that `tft.vocabulary` uses: the commonest first, equal counts by descending
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam

from beam_jobs.partition import by_shard, stable_hash

# An empty file makes no lookup table; this stands for no value, as it does in TF Transform.
NO_VALUE = b"49d0cd50-04bb-48c0-bc6f-5b575dce351a"
_SHARDS = 4
_NAME, _VALUE, _COUNT = "vocabulary", "value", "count"


@dataclass(frozen=True)
class Wanted:
    """One vocabulary: the name of its file, the least count of a value, and its largest size."""

    name: str
    min_count: int
    top_k: int | None


def learn_vocabularies(wanted: list[Wanted], values: list[tf.Tensor]) -> dict[str, tf.Tensor]:
    """An analyzer that learns vocabularies over the whole data set.

    Args:
        wanted: The vocabularies.
        values: The values of each, string [any number]; empty ones and those with line breaks
            are left out.

    Returns:
        By name, the path of a text file with one value a line, as `tft.apply_vocabulary` takes
        it. `tft.TFTransformOutput` finds the files by these names too.
    """
    paths = tft.experimental.ptransform_analyzer(
        inputs=values,
        ptransform=LearnVocabularies(wanted),
        output_dtypes=[tf.string] * len(wanted),
        output_shapes=[[]] * len(wanted),
        output_asset_default_values=[NO_VALUE] * len(wanted),
        name="vocabularies",
    )
    for one in wanted:
        tft.annotators.annotate_asset(one.name, one.name)
    return {one.name: path for one, path in zip(wanted, paths, strict=True)}


class LearnVocabularies(tft_beam.experimental.PTransformAnalyzer):
    """Count values by vocabulary and write one file for each."""

    def __init__(self, wanted: list[Wanted]) -> None:
        super().__init__()
        self.wanted = wanted

    def expand(self, batches: beam.PCollection) -> tuple[beam.PCollection, ...]:
        tags = [str(number) for number in range(len(self.wanted))]
        files = (
            batches
            | "Count in batch" >> beam.FlatMap(count_batch)
            | "Group values" >> beam.GroupByKey()
            | "Add up" >> beam.Map(_add_up, self.wanted)
            | "Gather" >> beam.GroupByKey()
            | "Write" >> beam.FlatMap(_write, self.wanted, self.base_temp_dir).with_outputs(*tags)
        )
        return tuple(files[tag] for tag in tags)


def count_batch(batch: tuple[np.ndarray, ...]) -> Iterator[tuple[int, pa.Table]]:
    """How often each value stands in a batch, divided by hash of the value.

    Args:
        batch: The values of each vocabulary, bytes in an object array.
    """
    tables = []
    for number, values in enumerate(batch):
        counted = pc.value_counts(pa.array(values.reshape(-1), pa.binary()))
        texts = counted.field(0)
        size = len(texts)
        tables.append(
            pa.table(
                {
                    _NAME: pa.array(np.full(size, number, np.int32)),
                    _VALUE: texts,
                    _COUNT: counted.field(1),
                }
            )
        )
    table = pa.concat_tables(tables)
    text = table[_VALUE]
    fits = pc.and_(
        pc.greater(pc.binary_length(text), 0), pc.invert(pc.match_substring_regex(text, "[\n\r]"))
    )
    table = table.filter(fits)
    if not len(table):
        yield 0, table  # so that files are written even where there is no value at all
    hashed = stable_hash(table[_VALUE]) % np.uint64(_SHARDS)
    yield from by_shard(table, hashed.astype(np.int64))


def _add_up(group: tuple[int, Iterable[pa.Table]], wanted: list[Wanted]) -> tuple[int, pa.Table]:
    sums = pa.concat_tables(group[1]).group_by([_NAME, _VALUE]).aggregate([(_COUNT, "sum")])
    sums = sums.rename_columns([_NAME, _VALUE, _COUNT])
    least = np.array([one.min_count for one in wanted])[sums[_NAME].to_numpy()]
    return 0, sums.filter(pc.greater_equal(sums[_COUNT], pa.array(least)))


def _write(
    group: tuple[int, Iterable[pa.Table]], wanted: list[Wanted], folder: str
) -> Iterator[Any]:
    table = pa.concat_tables(group[1]).sort_by(
        [(_NAME, "ascending"), (_COUNT, "descending"), (_VALUE, "descending")]
    )
    starts = np.searchsorted(table[_NAME].to_numpy(), np.arange(len(wanted) + 1))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(wanted):
        start, end = int(starts[number]), int(starts[number + 1])
        if one.top_k is not None:
            end = min(end, start + one.top_k)
        values = table[_VALUE].slice(start, end - start).to_pylist() or [NO_VALUE]
        path = Path(folder) / one.name
        path.write_bytes(b"".join(value + b"\n" for value in values))
        yield beam.pvalue.TaggedOutput(str(number), np.array(str(path), dtype=object))
