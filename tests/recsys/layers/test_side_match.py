import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import PairwiseInteraction, SideMatch

LEFT, RIGHT = tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0]])


def test_each_task_has_a_matrix_of_its_own():
    layer = SideMatch(["click", "conversion"])
    layer.build([(None, 2), (None, 2)])
    layer.set_weights([np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])])
    # click: 1 * 1 * 3 + 2 * 2 * 4; conversion: 1 * 1 * 4 - 2 * 1 * 3
    np.testing.assert_array_equal(layer((LEFT, RIGHT)), [[19.0, -2.0]])


def test_it_starts_as_the_crossing_part_of_a_factorization_machine():
    users, items = tf.random.normal([5, 3, 4]), tf.random.normal([5, 2, 4])

    def pairs(fields):
        return tf.reduce_sum(PairwiseInteraction()(fields), axis=1)

    # All pairs, less those within a side.
    crossing = pairs(tf.concat([users, items], axis=1)) - pairs(users) - pairs(items)
    found = SideMatch(["click"])((tf.reduce_sum(users, 1), tf.reduce_sum(items, 1)))
    np.testing.assert_allclose(found[:, 0], crossing, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([2048.0, 1.0], [1.0, 1.0], 2049.0),  # float16 goes by twos from 2048 on
        ([300.0, 1.0], [300.0, 0.0], 90000.0),  # and ends at 65504
        ([300.0, -300.0], [300.0, 300.0], 0.0),  # where one infinity less another is no number
    ],
)
def test_products_and_sums_are_kept_in_full_precision(left, right, expected):
    layer = SideMatch(["click"], dtype="mixed_float16")
    found = layer((tf.constant([left], tf.float16), tf.constant([right], tf.float16)))
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, [[expected]])


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="at least one task"):
        SideMatch([])
