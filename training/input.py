"""Examples on disk into batches: Parquet row groups, decoded once into packed matrices."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.artifacts import RAW_FOLDER
from recsys.errors import EXIT_WRONG_USE, UserError, first_line
from recsys.packing import Packing
from recsys.spec.records import Spec
from recsys.spec.schema import (
    REQUEST_KEY,
    SPLITS,
    USER_KEY,
    WEIGHT,
    label_column,
    model_inputs,
    slice_column,
)
from training.order import Plan, ShardOrder, thin_negatives

MEMORY_LIMIT = 2 << 30
"""Bytes of a worker's decoded rows that are held in memory; more goes to mapped files."""

CHUNK = 32_768
"""Rows that are handed to tf.data at once, then cut into batches there."""

_REBUILD = "Build the features again: recsys features SPEC --input IN --output FEATURES"


@dataclass(frozen=True)
class Split:
    """The examples files of one split, in order.

    Attributes:
        name: train, validation or test.
        files: Path and rows of each file.
        has_request: Whether the files have a request key.
    """

    name: str
    files: tuple[tuple[Path, int], ...]
    has_request: bool

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(rows for _, rows in self.files)

    @property
    def group_column(self) -> str:
        """The column that tells requests apart (users, where there are no requests)."""
        return REQUEST_KEY if self.has_request else USER_KEY


def open_split(spec: Spec, features: str | Path, name: str) -> Split:
    """Find a split's files and check their columns, reading no rows.

    Raises:
        UserError: There is no such split, a file is damaged, or its columns are not those of
            the spec.
    """
    require_split(name)
    folder = Path(features) / "examples" / name
    files, has_request = [], True
    for path in sorted(folder.glob("*.parquet")):
        with _reading(path):
            file = pq.ParquetFile(path)
            schema, rows = file.schema_arrow, file.metadata.num_rows
            file.close()
        _check_columns(spec, path, schema)
        has_request &= REQUEST_KEY in schema.names
        files.append((path, rows))
    if not files:
        raise UserError(
            "There are no examples of this split.",
            where=str(folder),
            expected="part-*.parquet",
            found="no such file",
            fix=_REBUILD,
        )
    return Split(name, tuple(files), has_request)


def require_split(name: str) -> None:
    """Refuse a split that no features have.

    Raises:
        UserError: It is none of train, validation and test.
    """
    if name not in SPLITS:
        raise UserError(
            "There is no such split.",
            expected=", ".join(SPLITS),
            found=name,
            fix="Name one of these with --split.",
            exit_code=EXIT_WRONG_USE,
        )


def has_raw(features: str | Path, split: str) -> bool:
    """Whether a features folder holds a split's raw columns beside its examples."""
    return (Path(features) / RAW_FOLDER / split).is_dir()


def open_raw(features: str | Path, examples: Split) -> Split:
    """The raw columns of a split's rows: file by file and row by row as its examples.

    Raises:
        UserError: A file is missing, damaged, or of other rows.
    """
    files = []
    for path, rows in examples.files:
        other = Path(features) / RAW_FOLDER / examples.name / path.name
        with _reading(other):
            found = pq.read_metadata(other).num_rows
        if found != rows:
            raise UserError(
                "A file of raw columns has other rows than its examples.",
                where=str(other),
                expected=f"{rows} rows",
                found=f"{found} rows",
                fix=_REBUILD,
            )
        files.append((other, rows))
    return Split(examples.name, tuple(files), examples.has_request)


def open_training(spec: Spec, features: str | Path, refit: bool) -> Split:
    """The rows to train on: those of the training split, in a refit those of validation too."""
    train = open_split(spec, features, "train")
    if not refit:
        return train
    newer = open_split(spec, features, "validation")
    return Split(
        train.name, train.files + newer.files, has_request=train.has_request and newer.has_request
    )


def _check_columns(spec: Spec, path: Path, schema: pa.Schema) -> None:
    expected: dict[str, tuple[str, int]] = {
        item.name: (
            "integer" if item.kind in ("id", "ids") else "float",
            item.length if item.kind in ("ids", "numbers") else 0,
        )
        for item in model_inputs(spec)
    }
    expected |= {label_column(task.name): ("float", 0) for task in spec.tasks}
    expected |= {WEIGHT: ("float", 0)} if spec.data.weight else {}
    expected |= {
        name: ("string", 0) for name in (USER_KEY, *map(slice_column, spec.evaluate.slices))
    }
    missing = [name for name in expected if name not in schema.names]
    if missing:
        raise UserError(
            "An examples file lacks columns of the spec.",
            where=str(path),
            expected=", ".join(missing),
            found=", ".join(schema.names),
            fix=_REBUILD,
        )
    tests = {
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "string": lambda t: (
            pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_dictionary(t)
        ),
    }
    for name, (kind, length) in expected.items():
        found = schema.field(name).type
        inner = found
        if length:
            lists = pa.types.is_fixed_size_list(found) and found.list_size == length
            inner = found.value_type if lists else pa.null()
        if not tests[kind](inner):
            raise UserError(
                f"Column `{name}` of an examples file has another type than the spec says.",
                where=str(path),
                found=str(found),
                fix=_REBUILD,
                expected=f"fixed_size_list of {length} {kind}" if length else kind,
            )


class _reading:  # noqa: N801  (a context manager that reads as a verb)
    """Turns Arrow's faults while reading a file into a `UserError` that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise UserError(
                "An examples file is damaged.",
                where=str(self._path),
                expected="a Parquet file",
                found=first_line(error),
                fix=_REBUILD,
            ) from error


def read_columns(
    split: Split, columns: Sequence[str], start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Columns of rows `start` to `stop` of a split, a row group at a time.

    Yields:
        The number of the first row, and the rows.
    """
    stop = split.rows if stop is None else stop
    first = 0
    for path, rows in split.files:
        if first + rows <= start or first >= stop:
            first += rows
            continue
        with _reading(path), pq.ParquetFile(path) as file:
            at = first
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                low, high = max(start - at, 0), min(stop - at, count)
                if low < high:
                    table = file.read_row_group(group, columns=list(columns), use_threads=False)
                    yield at + low, table.slice(low, high - low)
                at += count
        first += rows


def to_numpy(table: pa.Table, name: str, where: str = "") -> NDArray[Any]:
    """A column as [rows], or [rows, length] where it holds lists of fixed size.

    Raises:
        UserError: It holds nulls, be it inside its lists.
    """
    column = table.column(name).combine_chunks()
    length = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 0
    values = column.flatten() if length else column
    # Flattened, lists that are null themselves are gone.
    nulls = values.null_count + (column.null_count if length else 0)
    if nulls:
        raise UserError(
            f"Column `{name}` of the examples holds nulls.",
            where=where,
            expected="a value in every row",
            found=f"{nulls} nulls",
            fix=_REBUILD,
        )
    array = values.to_numpy(zero_copy_only=False)
    return array.reshape(-1, length) if length else array


def hash_keys(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Stable 64-bit hashes of a column of keys, [rows]."""
    from pandas.util import hash_array

    encoded = table.column(name).combine_chunks().dictionary_encode()
    keys = np.asarray(encoded.dictionary.to_pylist(), dtype=object)
    hashes = hash_array(keys, categorize=False).view(np.int64) if keys.size else keys.astype(int)
    return hashes[encoded.indices.to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class Rows:
    """Decoded rows: `ids` int32 [rows, ids], `numbers` float32 [rows, numbers], `labels`
    float32 [rows, tasks], `groups` int64 [rows], `weights` float32 [rows]."""

    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    labels: NDArray[np.float32]
    groups: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.groups)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, as a batch has them."""
        return {
            name: getattr(self, name) for name in ("ids", "numbers", "labels", "groups", "weights")
        }


def load_rows(
    spec: Spec,
    split: Split,
    start: int = 0,
    stop: int | None = None,
    *,
    kept: NDArray[np.int64] | None = None,
    scratch: Path | None = None,
    limit: int = MEMORY_LIMIT,
) -> Rows:
    """Decode rows `start` to `stop` of a split (of its `kept` rows, where given).

    Args:
        spec: The spec.
        split: The split.
        start: First row.
        stop: First row that is not read; None for the end.
        kept: Rows of the split that take part, in order; None for all. The negatives among
            them weigh `1 / spec.train.negative_sampling` times as much, so that losses stay
            unbiased.
        scratch: Folder for mapped files, where the rows exceed `limit` bytes.
        limit: Bytes to hold in memory.

    Raises:
        UserError: A file is damaged, or holds nulls.
        OSError: There is no space for mapped files.
    """
    packing = Packing.of(spec)
    total = split.rows if kept is None else len(kept)
    stop = total if stop is None else stop
    count = stop - start
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "ids": ((count, packing.ids_width), np.int32),
        "numbers": ((count, packing.numbers_width), np.float32),
        "labels": ((count, len(spec.tasks)), np.float32),
        "groups": ((count,), np.int64),
        "weights": ((count,), np.float32),
    }
    size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    arrays: dict[str, NDArray[Any]] = {
        name: _mapped(scratch / f"{name}.npy", shape, dtype)
        if scratch is not None and size > limit and np.prod(shape)
        else np.empty(shape, dtype)
        for name, (shape, dtype) in shapes.items()
    }
    first, last = start, stop
    if kept is not None:
        first, last = (int(kept[start]), int(kept[stop - 1]) + 1) if count else (0, 0)
    inputs = [item.name for item in model_inputs(spec)]
    labels = [label_column(task.name) for task in spec.tasks]
    weight = [WEIGHT] if spec.data.weight else []
    columns = [*inputs, *labels, split.group_column, *weight]
    at, where = 0, f"examples/{split.name}"
    for row, table in read_columns(split, columns, first, last):
        if kept is not None:
            low, high = np.searchsorted(kept, [row, row + len(table)])
            low, high = max(int(low), start), min(int(high), stop)
            table = table.take(pa.array(kept[low:high] - row))
        to = at + len(table)
        packed = packing.pack({name: to_numpy(table, name, where) for name in inputs})
        arrays["ids"][at:to], arrays["numbers"][at:to] = packed["ids"], packed["numbers"]
        for index, name in enumerate(labels):
            arrays["labels"][at:to, index] = to_numpy(table, name, where)
        arrays["groups"][at:to] = hash_keys(table, split.group_column)
        arrays["weights"][at:to] = to_numpy(table, WEIGHT, where) if weight else 1.0
        at = to
    if kept is not None:
        negative = ~(arrays["labels"][:, _binary(spec)] > 0).any(axis=1)
        arrays["weights"][negative] /= spec.train.negative_sampling
    return Rows(**arrays)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """A new array in a mapped file that has its space on the disk.

    A file with holes would be filled as it is written to, and where there is no space for that,
    the system ends the process without a word.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on every system
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    return array


def kept_rows(spec: Spec, split: Split) -> NDArray[np.int64] | None:
    """Rows that remain when negatives are thinned by the spec; None where all do.

    Every worker reads the labels of all rows for this, so that all agree without a word.
    """
    if spec.train.negative_sampling >= 1.0:
        return None
    labels = [label_column(spec.tasks[index].name) for index in _binary(spec)]
    positive = [
        np.any([to_numpy(table, name) > 0 for name in labels], axis=0)
        for _, table in read_columns(split, labels)
    ]
    return thin_negatives(np.concatenate(positive), spec.train.negative_sampling, spec.train.seed)


def _binary(spec: Spec) -> list[int]:
    """The tasks whose label is 0 or 1: a regression's is above 0 on negatives too."""
    return [n for n, task in enumerate(spec.tasks) if not task.is_regression]


def chunks(
    rows: Rows,
    plan: Plan,
    worker: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    stop: int | None = None,
    grouped: bool = False,
) -> Iterator[dict[str, NDArray[Any]]]:
    """A worker's rows of batches `start` to `stop` of an epoch, some whole batches at a time.

    Args:
        rows: The worker's share of the rows.
        plan: The plan.
        worker: Which worker.
        seed: Seed of the order.
        epoch: Number of the epoch.
        start: First batch.
        stop: First batch that is left out; None for the epoch's end.
        grouped: Keep rows of one group together.
    """
    offset = plan.share(worker)[0]
    bounds = [plan.bounds(shard) for shard in plan.shards_of(worker)]
    orders = [
        ShardOrder(
            high - low,
            seed=seed,
            epoch=epoch,
            shard=shard,
            groups=rows.groups[low - offset : high - offset] if grouped else None,
        )
        for shard, (low, high) in zip(plan.shards_of(worker), bounds, strict=True)
    ]
    stop = plan.steps if stop is None else min(stop, plan.steps)
    each = max(1, CHUNK // plan.worker_batch)
    arrays = rows.arrays()
    for step in range(start, stop, each):
        until = min(step + each, stop)
        # [shards, batches, take] turned to [batches, shards, take]: a batch is contiguous.
        index = np.stack(
            [
                (order.rows(step * plan.take, until * plan.take) + (low - offset)).reshape(
                    until - step, plan.take
                )
                for order, (low, _) in zip(orders, bounds, strict=True)
            ],
            axis=1,
        ).reshape(-1)
        yield {name: np.take(array, index, axis=0) for name, array in arrays.items()}


def dataset(rows: Rows, plan: Plan, worker: int, **options: Any) -> Any:
    """`chunks` as a `tf.data.Dataset` of batches, [worker_batch, ...] each, prefetched."""
    import tensorflow as tf

    signature = {
        name: tf.TensorSpec((None, *array.shape[1:]), array.dtype)
        for name, array in rows.arrays().items()
    }
    data = tf.data.Dataset.from_generator(
        lambda: chunks(rows, plan, worker, **options), output_signature=signature
    )
    settings = tf.data.Options()
    settings.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    settings.autotune.enabled = False
    settings.deterministic = True
    return (
        data.prefetch(1)
        .rebatch(plan.worker_batch, drop_remainder=True)
        .prefetch(8)
        .with_options(settings)
    )
