import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import FusedEmbedding, hash_rows


def test_rows_are_in_range_spread_evenly_and_independent():
    rows = hash_rows(tf.range(100_000, dtype=tf.int64), buckets=50, hashes=2).numpy()
    assert rows.shape == (100_000, 2) and rows.min() == 0 and rows.max() == 49
    # 2,000 expected in a bucket, deviation some 44; and 40 in a pair of buckets.
    for column in rows.T:
        counts = np.bincount(column, minlength=50)
        assert counts.min() > 1_750 and counts.max() < 2_250
    pairs = np.bincount(rows[:, 0] * 50 + rows[:, 1], minlength=2_500)
    assert pairs.min() > 5 and pairs.max() < 90


def test_salt_and_padding():
    ids = tf.constant([[5, -1], [-7, 5]])
    rows = hash_rows(ids, 1_000_000, hashes=3).numpy()
    assert rows.shape == (2, 2, 3)
    np.testing.assert_array_equal(rows[0, 1], [-1, -1, -1])
    np.testing.assert_array_equal(rows[0, 0], rows[1, 1])
    assert len(set(rows[0, 0])) == 3
    salted = hash_rows(ids, 1_000_000, hashes=3, salt=1).numpy()
    assert not set(salted[0, 0]) & set(rows[0, 0])


def test_int32_int64_and_graph_agree():
    ids = [0, 1, 2**31 - 1]
    wide = hash_rows(tf.constant(ids, tf.int64), 97)
    np.testing.assert_array_equal(hash_rows(tf.constant(ids, tf.int32), 97), wide)
    np.testing.assert_array_equal(tf.function(lambda i: hash_rows(i, 97))(ids), wide)
    big = hash_rows(tf.constant([2**63 - 1, 2**32], tf.int64), 97).numpy()
    assert ((big >= 0) & (big < 97)).all()


def test_rows_are_those_of_splitmix64():
    """Written out in whole numbers: a model that was trained on rows must find them again."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    ids, buckets, hashes, salt = [0, 1, 42, 2**62 + 5], 1_000, 3, 7
    starts = [0x9E3779B97F4A7C15 * (salt * hashes + i + 1) % 2**64 for i in range(hashes)]
    expected = [[(mix(i ^ mix(start)) >> 1) % buckets for start in starts] for i in ids]
    actual = hash_rows(tf.constant(ids, tf.int64), buckets, hashes, salt)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("ids", [[1.0], ["a"]])
def test_other_than_integers_is_refused(ids):
    with pytest.raises(ValueError, match="requires integer `ids`"):
        hash_rows(tf.constant(ids), 10)


def test_hashed_embedding_is_the_sum_of_its_rows():
    layer = FusedEmbedding({"user": 3, "item": 11}, 4, stddev=1.0, lists={"wide": "item"})
    ids = hash_rows(tf.constant([[12345, -1]], tf.int64), 11, 2, 5)
    found = tf.reduce_sum(layer({"lists": {"wide": ids}})["lists"]["wide"], axis=-2)
    rows = ids[0, 0].numpy() + layer.offset("item")
    np.testing.assert_allclose(found[0, 0], layer.table.numpy()[rows].sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found[0, 1], np.zeros(4))
