"""What trees read of a batch, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from recsys.packing import Packing
from recsys.spec import loads
from recsys.spec.schema import tree_inputs
from recsys.trees import MISSING, TreeInputs

TEXT = """
name: shop
data:
  impressions: log.csv
  keys: {user: user, item: item}
  time: {column: ts, unit: ms}
  split: {kind: fraction}
features:
- {name: user, owner: user, encode: vocabulary}
- {name: item_again, column: item, owner: item, encode: {kind: hash, buckets: 9}}
- {name: shop, owner: item, encode: vocabulary}
- {name: word, owner: item, encode: {kind: hash, buckets: 9}}
- {name: tags, owner: item, encode: {kind: vocabulary, max_length: 2}}
- {name: price, owner: item, encode: {kind: piecewise, bins: 3}}
- {name: price_bucket, column: price, owner: item, encode: {kind: quantiles, buckets: 4}}
- {name: age, owner: user, encode: {kind: quantiles, buckets: 4}}
- {name: size, owner: item, encode: numeric}
- {name: place, owner: context, encode: vocabulary}
- {name: rate, owner: item,
   encode: {kind: counter, by: [item], task: click, as: {kind: piecewise, bins: 2}}}
tasks:
- {name: click, label: {column: click}}
model: {position: place, trees: {}}
"""


def test_columns_by_hand() -> None:
    spec = loads(TEXT)
    pairs = [(item.name, bucket and bucket.name) for item, bucket in tree_inputs(spec)]
    assert pairs == [
        ("shop", None), ("price", "price_bucket"), ("age", None), ("size", None), ("rate", None),
    ]  # fmt: skip
    batch = Packing.of(spec).pack(
        {
            "user": np.array([1, 2, 3]),
            "item_again": np.array([4, 5, 6]),
            "shop": np.array([7, 8, 9]),
            "word": np.array([1, 1, 1]),
            "tags": np.full([3, 2], -1),
            "price": np.array([[1, 0.25, 0], [1, 1, 1], [0, 0, 0]]),
            "price_bucket": np.array([2, 4, 0]),
            "age": np.array([0, 3, 1]),
            "size": np.array([-0.5, 0.0, 2.0]),
            "place": np.array([1, 2, 3]),
            "rate": np.array([[0.5, 0], [1, 1], [0, 0]]),
        }
    )
    inputs = TreeInputs(spec)
    found = inputs({name: tf.constant(part) for name, part in batch.items()})
    # Ids come first; a bucket of 0 tells that the price is missing.
    expected = [
        [7, 0, 1.25, -0.5, 0.5],
        [8, 3, 3.0, 0.0, 2.0],
        [9, 1, MISSING, 2.0, 0.0],
    ]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert inputs.width == 5


@pytest.mark.parametrize("kept", ["shop", "size"])
def test_ids_alone_and_numbers_alone(kept: str) -> None:
    lines = TEXT.split("\n")
    names = ["user", "item_again", kept]
    chosen = [line for line in lines if any(f"name: {name}," in line for name in names)]
    begin, end = lines.index("features:") + 1, lines.index("tasks:")
    tail = [line.replace("position: place, ", "interactions: [], ") for line in lines[end:]]
    spec = loads("\n".join([*lines[:begin], *chosen, *tail]))
    values = {"shop": np.array([7, 8]), "size": np.array([0.5, -2.0])}
    batch = Packing.of(spec).pack(
        {"user": np.array([1, 2]), "item_again": np.array([4, 5]), kept: values[kept]}
    )
    inputs = TreeInputs(spec)
    found = tf.function(inputs)({name: tf.constant(part) for name, part in batch.items()})
    assert found.numpy().tolist() == [[value] for value in values[kept].tolist()]
    assert inputs.width == 1


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_number_is_the_same_to_the_last_bit_in_batches_of_any_size(rows: int) -> None:
    spec = loads(TEXT.replace("bins: 3", "bins: 50"))
    rng, packing = np.random.default_rng(0), Packing.of(spec)
    place = next(field.start for field in packing.numbers if field.name == "price")
    numbers = np.zeros([64, packing.numbers_width], np.float32)
    fill = rng.random(64).astype(np.float32) * 50
    numbers[:, place : place + 50] = np.clip(fill[:, None] - np.arange(50), 0, 1)
    ids = np.ones([64, packing.ids_width], np.int32)
    read = tf.function(TreeInputs(spec), reduce_retracing=True)
    parts = [
        read({"ids": ids[at : at + rows], "numbers": numbers[at : at + rows]}).numpy()
        for at in range(0, 64, rows)
    ]
    whole = TreeInputs(spec)({"ids": ids, "numbers": numbers}).numpy()
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    np.testing.assert_allclose(whole[:, 2], fill, atol=1e-5)
