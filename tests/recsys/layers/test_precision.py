"""Softmax under half precision: what float16 and bfloat16 would lose, by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from recsys.layers.precision import masked_softmax

HALVES = [tf.float16, tf.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_too_small_for_half_precision_counts_in_the_sum(dtype):
    # e^-18 is less than half of the smallest float16, and a million of them are 0.016.
    scores = tf.constant([[0.0] + [-18.0] * 2**20], dtype)
    shares = masked_softmax(scores)
    assert shares.dtype == dtype
    np.testing.assert_allclose(float(shares[0, 0]), 1 / (1 + 2**20 * math.exp(-18)), rtol=2**-8)


@pytest.mark.parametrize("dtype", HALVES)
def test_nothing_valid_gives_zeros_and_zero_gradients(dtype):
    scores = tf.constant([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]], dtype)
    valid = tf.constant([[False] * 3, [True, True, False]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        shares = masked_softmax(scores, valid)
        loss = tf.reduce_sum(shares * tf.constant([1.0, 3.0, 7.0], dtype))
    np.testing.assert_array_equal(tf.cast(shares, tf.float32), [[0, 0, 0], [0.5, 0.5, 0]])
    # d share_0 = 1/2 (1 - 1/2) = 1/4 for its own score, and the opposite for the other's.
    gradient = tf.cast(tape.gradient(loss, scores), tf.float32)
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [-0.5, 0.5, 0]])
