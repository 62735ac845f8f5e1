import numpy as np
import tensorflow as tf

from recsys.layers import PositionTower

TASKS = ("click", "conversion")


def trained():
    tower = PositionTower(3, TASKS)
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


def test_a_new_tower_is_neutral():
    output = PositionTower(3, TASKS)(tf.constant([0, 1, 2]), training=True)
    np.testing.assert_array_equal(output["click"], np.zeros(3))
