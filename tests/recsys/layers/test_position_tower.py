import numpy as np
import tensorflow as tf

from recsys.layers import PositionTower

TASKS = ("click", "conversion")


def trained(**kwargs):
    tower = PositionTower(3, TASKS, **kwargs)
    tower.build([None])
    tower.set_weights([np.array([[3.0, 1.0], [2.0, 0.0], [-1.0, -1.0]])])
    return tower


def test_counts_in_training_and_is_neutral_after():
    tower = trained()
    positions = tf.constant([0, 2, 1, 7, -1])
    output = tower(positions, training=True)
    np.testing.assert_array_equal(output["click"], [3, -1, 2, -1, 0])
    np.testing.assert_array_equal(output["conversion"], [1, -1, 0, -1, 0])
    for task in TASKS:
        np.testing.assert_array_equal(tower(positions)[task], np.zeros(5))
        np.testing.assert_array_equal(tower(positions, neutral=False)[task], output[task])
        np.testing.assert_array_equal(
            tower(positions, training=True, neutral=True)[task], np.zeros(5)
        )


def test_centred_on_the_positions_of_the_training_data():
    tower = trained(frequencies=[2, 1, 1])
    # Click: mean (2 * 3 + 2 - 1) / 4 = 1.75; conversion: (2 * 1 + 0 - 1) / 4 = 0.25.
    output = tower(tf.constant([0, 1, 2]), training=True)
    np.testing.assert_allclose(output["click"], [1.25, 0.25, -2.75])
    np.testing.assert_allclose(output["conversion"], [0.75, -0.25, -1.25])
    assert abs(np.dot([2, 1, 1], output["click"])) < 1e-6


def test_a_new_tower_is_neutral():
    output = PositionTower(3, TASKS)(tf.constant([0, 1, 2]), training=True)
    np.testing.assert_array_equal(output["click"], np.zeros(3))
