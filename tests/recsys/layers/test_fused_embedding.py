import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import FusedEmbedding, pool_list
from recsys.optimizers import RowAdagrad


def numbered(**kwargs):
    """Tables whose row r of the variable holds (r, 100 + r); users at 1 to 3, items at 4, 5."""
    layer = FusedEmbedding({"user": 3, "item": 2}, dim=2, **kwargs)
    layer.build()
    rows = np.arange(6, dtype="float32")
    layer.set_weights([np.stack([rows, 100 + rows], axis=1) * (rows > 0)[:, None]])
    return layer


def test_fields_find_their_tables():
    layer = numbered(fields=["item", "user", "item"])
    found = layer(tf.constant([[0, 0, 1], [1, 2, 0]]))
    np.testing.assert_array_equal(found[..., 0], [[4, 1, 5], [5, 3, 4]])
    np.testing.assert_array_equal(found[..., 1], [[104, 101, 105], [105, 103, 104]])


def test_a_new_table_starts_with_a_padding_row_of_zeros():
    layer = FusedEmbedding([("user", 500), ("item", 500)], dim=8, stddev=0.5)
    layer.build()
    assert layer.table.shape == (1001, 8) and layer.total_rows == 1001
    assert (layer.offset("user"), layer.offset("item")) == (1, 501)
    np.testing.assert_array_equal(layer.table[0], np.zeros(8))
    assert abs(np.std(layer.table[1:]) - 0.5) < 0.03


@pytest.mark.parametrize("training", [None, True, False])
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_ids_out_of_range(training, dtype):
    layer = numbered(fields=["user", "item"])
    ids = tf.constant([[-1, -1], [3, 2], [dtype.max, dtype.max], [dtype.min, dtype.min]], dtype)
    found = layer(ids, training=training)[..., 0]
    # Padding is zeros; beyond the table is its last row.
    np.testing.assert_array_equal(found, [[0, 0], [3, 5], [3, 5], [0, 0]])


def test_gradient_has_distinct_indices_and_sums_repetitions():
    layer = numbered(fields=["user", "item"], lists={"history": "item", "friends": "user"})
    with tf.GradientTape() as tape:
        found = layer(
            {
                "fields": tf.constant([[0, 1], [0, 0], [-1, 1]]),
                "lists": {
                    "history": tf.constant([[1, 1, -1], [0, -1, -1], [9, -1, -1]]),
                    "friends": tf.constant([[[0], [2]]]),
                },
            }
        )
        assert found["lists"]["history"].shape == (3, 3, 2)
        assert found["lists"]["friends"].shape == (1, 2, 1, 2)
        loss = sum(tf.reduce_sum(x) for x in tf.nest.flatten(found))
    grad = tape.gradient(loss, layer.table)
    assert isinstance(grad, tf.IndexedSlices)
    indices = grad.indices.numpy()
    assert len(set(indices)) == len(indices)
    by_row = dict(zip(indices, grad.values[:, 0].numpy(), strict=True))
    # user 0: twice and once as a friend; user 2: once; item 0: twice; item 1: five times
    # (one of them the id 9, beyond the table). The padding row gets exactly nothing.
    assert by_row == {0: 0.0, 1: 3.0, 3: 1.0, 4: 2.0, 5: 5.0}


def test_several_lists_make_one_gather_of_distinct_rows():
    layer = numbered(lists={"users": "user", "items": "item"})
    with tf.GradientTape() as tape:
        found = layer({"lists": {"users": tf.constant([1, 1]), "items": tf.constant([[1, 0, 1]])}})[
            "lists"
        ]
        users, items = found["users"], found["items"]
        loss = tf.reduce_sum(users) + tf.reduce_sum(items)
    np.testing.assert_array_equal(users[:, 0], [2, 2])
    np.testing.assert_array_equal(items[..., 0], [[5, 4, 5]])
    grad = tape.gradient(loss, layer.table)
    assert sorted(grad.indices.numpy()) == [2, 4, 5]


def test_gradient_equals_that_of_plain_gathers():
    layer = FusedEmbedding({"user": 20, "item": 9}, 3, fields=["user", "item"], stddev=1.0)
    rng = np.random.default_rng(0)
    ids = tf.constant(np.stack([rng.integers(0, 20, 64), rng.integers(0, 9, 64)], 1))
    weights = tf.constant(rng.normal(size=(64, 2, 3)), tf.float32)
    grads = []
    for training in (True, False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * layer(ids, training=training))
        grads.append(tf.convert_to_tensor(tape.gradient(loss, layer.table)))
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-5, atol=1e-6)


def test_rows_and_steps_are_those_of_plain_gathers():
    """With padding in each column, whose row must stay zeros."""
    tables = {"user": 20, "item": 9, "tag": 5, "city": 3}
    fields = ["user", "item", "tag", "city", "user"]
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(-2, tables[table], 64) for table in fields], 1)
    weights = tf.constant(rng.normal(size=(64, len(fields), 3)), tf.float32)
    start = tf.constant(rng.normal(size=(38, 3)), tf.float32)
    after = []
    for training in (True, False):
        layer = FusedEmbedding(tables, 3, fields=fields)
        layer.build()
        layer.table.assign(tf.concat([tf.zeros([1, 3]), start[1:]], axis=0))
        optimizer = RowAdagrad(0.1, distinct_indices=training)
        with tf.GradientTape() as tape:
            found = layer(tf.constant(ids), training=training)
            loss = tf.reduce_sum(weights * found)
        gradient = tape.gradient(loss, layer.table)
        if training:
            assert len(set(gradient.indices.numpy())) == len(gradient.indices)
        else:
            padding = np.isin(gradient.indices, [0])
            kept = np.where(padding[:, None], 0.0, gradient.values)
            gradient = tf.IndexedSlices(
                tf.constant(kept, tf.float32), gradient.indices, gradient.dense_shape
            )
        optimizer.apply_gradients([(gradient, layer.table)])
        after.append((found.numpy(), layer.table.numpy()))
    np.testing.assert_array_equal(after[0][0], after[1][0])
    np.testing.assert_allclose(after[0][1], after[1][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after[0][1][0], np.zeros(3))


def test_frequent_rows_are_summed_in_the_tables_precision():
    """4,096 gradients of 1/4 add up to 1,024; in bfloat16 they would stop at 64."""
    layer = FusedEmbedding({"user": 3}, 2, fields=["user"], dtype="mixed_bfloat16")
    with tf.GradientTape() as tape:
        found = layer(tf.zeros([4096, 1], tf.int32))
        loss = tf.reduce_sum(tf.cast(found, tf.float32) * 0.25)
    assert found.dtype == tf.bfloat16
    grad = tape.gradient(loss, layer.table)
    assert grad.values.dtype == tf.float32
    np.testing.assert_array_equal(grad.values, [[1024.0, 1024.0]])


def test_projection_is_of_each_table():
    layer = FusedEmbedding(
        {"user": 3, "item": 2}, 2, fields=["item", "user"], lists={"seen": "item"}, output_dim=3
    )
    layer.build()
    table = np.arange(12, dtype="float32").reshape(6, 2)
    projection = np.arange(12, dtype="float32").reshape(2, 2, 3)
    layer.set_weights([table, projection])
    found = layer({"fields": tf.constant([[1, 2]]), "lists": {"seen": tf.constant([[0, 1]])}})
    expected = [[table[5] @ projection[1], table[3] @ projection[0]]]
    np.testing.assert_array_equal(found["fields"], expected)
    seen = [[table[4] @ projection[1], table[5] @ projection[1]]]
    np.testing.assert_array_equal(found["lists"]["seen"], seen)


def test_pool_by_hand():
    layer = numbered(lists={"seen": "user"})

    def pooled(ids, weights=None, combiner="mean"):
        return pool_list(layer({"lists": {"seen": ids}})["lists"]["seen"], ids, weights, combiner)

    ids = tf.constant([[0, 2, -1], [1, -1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(pooled(ids)[:, 0], [2.0, 2.0, 0.0])
    np.testing.assert_array_equal(pooled(ids, combiner="sum")[:, 0], [4.0, 2.0, 0.0])
    # Weights on padding are ignored, NaN included.
    weights = tf.constant([[1.0, 3.0, 7.0], [0.5, np.nan, 1.0], [1.0, 1.0, 1.0]])
    weighted = pooled(ids, weights)
    np.testing.assert_array_equal(weighted[:, 0], [2.5, 2.0, 0.0])
    summed = pooled(ids, weights, combiner="sum")
    np.testing.assert_array_equal(summed[:, 0], [10.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="combiner"):
        pooled(ids, combiner="max")
    with pytest.raises(ValueError, match="requires"):
        pool_list(tf.zeros([2, 3]), tf.zeros([2, 3], tf.int32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lists_are_joined_exactly_in_half_precision(dtype):
    ids = tf.zeros([1, 4096], tf.int32)
    ones = tf.ones([1, 4096, 2], dtype)
    assert pool_list(ones, ids).numpy().tolist() == [[1.0, 1.0]]
    assert pool_list(ones, ids, combiner="sum").numpy().tolist() == [[4096.0, 4096.0]]
    two = tf.constant([[[1.0], [3.0]]], dtype)
    for large in (40_000.0, 70_000.0, 1e-8):
        weights = tf.constant([[large, large]])
        assert float(pool_list(two, tf.zeros([1, 2], tf.int32), weights)[0, 0]) == 2.0


def test_pooled_gradient_leaves_padding_out():
    layer = numbered(lists={"seen": "user"})
    ids = tf.constant([[0, 2, -1, -1]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(pool_list(layer({"lists": {"seen": ids}})["lists"]["seen"], ids))
    grad = tf.convert_to_tensor(tape.gradient(loss, layer.table))
    np.testing.assert_array_equal(grad[:, 0], [0, 0.5, 0, 0.5, 0, 0])


def test_unknown_names_are_refused():
    layer = numbered(lists={"history": "item"})
    with pytest.raises(ValueError, match="query"):
        layer.offset("query")
    with pytest.raises(ValueError, match="other"):
        layer({"lists": {"other": tf.constant([[1]])}})


def test_order_of_tables_survives_the_config():
    layer = FusedEmbedding({"z": 3, "a": 2}, 2, lists={"y": "z", "b": "a"})
    twin = FusedEmbedding.from_config(layer.get_config())
    assert list(twin.tables.items()) == [("z", 3), ("a", 2)]
    assert list(twin.lists) == ["y", "b"]
    assert twin.offset("a") == 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory as Linux tells it")
def test_a_table_exists_once_while_it_is_drawn():
    # In a process of its own, since the peak of one only ever rises. Not by `getrusage`: a new
    # process inherits its parent's peak there.
    script = (
        "import re\n"
        "from pathlib import Path\n"
        "from recsys.layers import FusedEmbedding\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) / 1024\n"
        "FusedEmbedding({'user': 10}, 16, fields=['user'])([[1]])\n"
        "before = peak()\n"
        "FusedEmbedding({'user': 8_000_000}, 16, fields=['user'])([[1]])\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    megabytes = 8_000_000 * 16 * 4 / 2**20
    # Some of it goes where the start of TensorFlow had its own peak; a mask of the rows takes
    # a tenth more. A copy would take the whole table once more.
    assert 0.5 * megabytes < float(done.stdout) < 1.3 * megabytes
