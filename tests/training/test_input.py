"""Examples on disk into batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_features import make_columns, small_spec

from recsys.errors import UserError
from recsys.packing import Packing
from recsys.spec.change import change
from recsys.spec.records import SquaredError
from training.input import (
    _mapped,
    chunks,
    dataset,
    hash_keys,
    kept_rows,
    load_rows,
    open_split,
    read_columns,
    to_numpy,
)
from training.order import make_plan


def test_rows_are_packed_as_they_were_written(features: Path) -> None:
    spec = small_spec()
    split = open_split(spec, features, "train")
    assert split.rows == 2000 and split.group_column == "key:request"
    columns = make_columns(2000, seed=0)
    names = [feature.name for feature in spec.features]
    packed = Packing.of(spec).pack({n: to_numpy(pa.table(columns), n) for n in names})
    # A range that begins and ends within row groups, and spans files.
    rows = load_rows(spec, split, 101, 1777)
    np.testing.assert_array_equal(rows.ids, packed["ids"][101:1777])
    np.testing.assert_array_equal(rows.numbers, packed["numbers"][101:1777])
    np.testing.assert_array_equal(rows.labels[:, 1], columns["label:conversion"][101:1777])
    assert rows.labels.shape == (1676, 2) and (rows.weights == 1).all()
    # Four rows make a request in these examples.
    assert (np.diff(rows.groups) != 0).sum() == 1776 // 4 - 101 // 4


def test_rows_beyond_the_limit_are_mapped_from_files(features: Path, tmp_path: Path) -> None:
    spec = small_spec()
    split = open_split(spec, features, "validation")
    mapped = load_rows(spec, split, scratch=tmp_path, limit=1000)
    assert isinstance(mapped.ids, np.memmap)
    for name, array in load_rows(spec, split).arrays().items():
        np.testing.assert_array_equal(mapped.arrays()[name], array)


def test_a_mapped_file_has_its_space_before_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    array = _mapped(path, (1 << 18, 4), np.int32)
    assert path.stat().st_size > 1 << 22 and path.stat().st_blocks * 512 >= path.stat().st_size
    assert isinstance(array, np.memmap) and not array.any()


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_read_the_batches_of_one(features: Path, workers: int) -> None:
    spec = small_spec()
    split = open_split(spec, features, "train")
    one = make_plan(split.rows, 64, 1)
    alone = list(dataset(load_rows(spec, split), one, 0, seed=5, epoch=1).as_numpy_iterator())
    plan = make_plan(split.rows, 64, workers)
    parts = [
        list(
            dataset(
                load_rows(spec, split, *plan.share(n)), plan, n, seed=5, epoch=1
            ).as_numpy_iterator()
        )
        for n in range(workers)
    ]
    assert len(alone) == 31 and {len(part) for part in parts} == {31}
    for step, batch in enumerate(alone):
        for name, values in batch.items():
            assert len(values) == 64
            together = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(together, values)


def test_an_epoch_reads_every_row_at_most_once(features: Path) -> None:
    spec = small_spec()
    split = open_split(spec, features, "train")
    rows, plan = load_rows(spec, split), make_plan(split.rows, 64, 1)
    rows.weights[:] = np.arange(len(rows))
    seen = np.concatenate([c["weights"] for c in chunks(rows, plan, 0, seed=0, epoch=0)])
    assert len(seen) == 31 * 64 == len(np.unique(seen))


def test_batches_can_be_entered_anywhere(features: Path) -> None:
    spec = small_spec()
    split = open_split(spec, features, "train")
    rows, plan = load_rows(spec, split), make_plan(split.rows, 64, 1)
    whole = list(dataset(rows, plan, 0, seed=0, epoch=0).as_numpy_iterator())
    tail = list(dataset(rows, plan, 0, seed=0, epoch=0, start=13, stop=20).as_numpy_iterator())
    assert len(tail) == 7
    for left, right in zip(whole[13:20], tail, strict=True):
        np.testing.assert_array_equal(left["ids"], right["ids"])


def test_a_regression_makes_no_row_a_positive(features: Path) -> None:
    spec = small_spec(negative_sampling=0.5)
    split = open_split(spec, features, "train")
    kept = kept_rows(spec, split)
    # Clicks as a number to be learned: conversions alone are positives then.
    watched = spec.tasks[0].model_copy(update={"loss": SquaredError()})
    alone = spec.tasks[1].model_copy(update={"given": None})
    other = kept_rows(spec.model_copy(update={"tasks": (watched, alone)}), split)
    assert kept is not None and other is not None
    labels = load_rows(small_spec(), split).labels
    assert (labels[:, 1] > 0).sum() < len(other) < len(kept)
    assert set(np.flatnonzero(labels[:, 1] > 0)) <= set(other.tolist())
    assert not set(np.flatnonzero(labels[:, 0] > 0)) <= set(other.tolist())


def test_thinned_negatives_weigh_what_they_stand_for(features: Path) -> None:
    spec = small_spec(negative_sampling=0.5)
    split = open_split(spec, features, "train")
    kept = kept_rows(spec, split)
    assert kept is not None
    rows = load_rows(spec, split, 100, 900, kept=kept)
    everything = load_rows(small_spec(), split)
    np.testing.assert_array_equal(rows.ids, everything.ids[kept[100:900]])
    clicked = rows.labels[:, 0] == 1
    assert set(rows.weights[clicked]) == {1.0} and set(rows.weights[~clicked]) == {2.0}
    assert kept_rows(small_spec(), split) is None


def test_a_column_of_weights_and_thinned_negatives(features: Path, tmp_path: Path) -> None:
    weighted = tmp_path / "features"
    shutil.copytree(features, weighted)
    count = 0
    for path in sorted((weighted / "examples" / "train").glob("*.parquet")):
        table = pq.read_table(path)
        numbers = np.arange(count, count + len(table), dtype=np.float32)
        pq.write_table(table.append_column("key:weight", pa.array(numbers)), path)
        count += len(table)
    spec = change(small_spec(negative_sampling=0.5), ["data.weight=importance"])
    split = open_split(spec, weighted, "train")
    kept = kept_rows(spec, split)
    assert kept is not None
    rows = load_rows(spec, split, kept=kept)
    clicked = rows.labels[:, 0] == 1
    np.testing.assert_array_equal(rows.weights, np.where(clicked, kept, 2 * kept))
    with pytest.raises(UserError, match="lacks columns") as caught:
        open_split(spec, features, "train")
    assert caught.value.expected == "key:weight"


def test_hashes_do_not_depend_on_what_lies_beside(features: Path) -> None:
    table = pa.table({"k": pa.chunked_array([["a", "b"], ["b", "c"]])})
    found = hash_keys(table, "k")
    assert found[1] == found[2] and len(set(found.tolist())) == 3
    assert hash_keys(table.slice(3), "k")[0] == found[3]


def _copy(features: Path, to: Path) -> Path:
    shutil.copytree(features, to / "features")
    return to / "features" / "examples" / "train" / "part-00001.parquet"


def test_a_damaged_file_is_named(features: Path, tmp_path: Path) -> None:
    path = _copy(features, tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged") as error:
        open_split(small_spec(), tmp_path / "features", "train")
    assert error.value.where == str(path)


def test_a_file_damaged_in_its_middle_is_named_when_read(features: Path, tmp_path: Path) -> None:
    path = _copy(features, tmp_path)
    content = bytearray(path.read_bytes())
    content[4:1500] = bytes(1496)
    path.write_bytes(content)
    spec = small_spec()
    split = open_split(spec, tmp_path / "features", "train")
    with pytest.raises(UserError, match="damaged") as error:
        load_rows(spec, split)
    assert error.value.where == str(path)


def test_missing_columns_and_wrong_types_are_named(features: Path, tmp_path: Path) -> None:
    path = _copy(features, tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["price"]), path)
    with pytest.raises(UserError, match="lacks columns") as error:
        open_split(small_spec(), tmp_path / "features", "train")
    assert error.value.expected == "price" and error.value.where == str(path)
    ids = table.column("user").cast(pa.float32())
    pq.write_table(table.set_column(table.column_names.index("user"), "user", ids), path)
    with pytest.raises(UserError, match="Column `user`") as error:
        open_split(small_spec(), tmp_path / "features", "train")
    assert error.value.found == "float"


def test_nulls_are_refused(features: Path, tmp_path: Path) -> None:
    path = _copy(features, tmp_path)
    table = pq.read_table(path)
    price = pa.array([None] * len(table), pa.float32())
    pq.write_table(table.set_column(table.column_names.index("price"), "price", price), path)
    spec = small_spec()
    with pytest.raises(UserError, match="`price`.*nulls"):
        load_rows(spec, open_split(spec, tmp_path / "features", "train"))


@pytest.mark.parametrize(
    ("column", "nulls"),
    [
        (pa.array([1.0, None, 2.0]), 1),
        (pa.array([[1, 2], [None, None], [3, None]], pa.list_(pa.int32(), 2)), 3),
        (pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2)), 2),
    ],
    ids=["numbers", "inside lists", "lists"],
)
def test_nulls_are_counted(column: pa.Array, nulls: int) -> None:
    with pytest.raises(UserError, match="Column `c`") as error:
        to_numpy(pa.table({"c": column}), "c")
    assert error.value.found == f"{nulls} nulls"


def test_a_split_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no examples"):
        open_split(small_spec(), tmp_path, "test")
    with pytest.raises(UserError, match="no such split"):
        open_split(small_spec(), tmp_path, "tset")


def test_read_columns_tells_row_numbers(features: Path) -> None:
    split = open_split(small_spec(), features, "train")
    firsts = [(first, len(table)) for first, table in read_columns(split, ["item"], 140, 700)]
    # Files of 666, 667 and 667 rows, in row groups of 150.
    assert firsts == [(140, 10), (150, 150), (300, 150), (450, 150), (600, 66), (666, 34)]
