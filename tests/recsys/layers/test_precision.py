"""Softmax under half precision: what float16 and bfloat16 would lose, by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from recsys.layers.precision import masked_softmax

HALVES = [tf.float16, tf.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_small_shares_are_summed_exactly(dtype):
    # One entry of weight 1 and 4096 of 2^-8 each: 17 in all. Numbers of 8 or 11 bits do not
    # count on by 2^-8 beyond 1 or 8.
    scores = tf.constant([[0.0] + [-8 * math.log(2)] * 4096], dtype)
    small = float(tf.math.exp(tf.cast(scores[0, 1], tf.float32)))  # as near to 2^-8 as it can be
    shares = masked_softmax(scores)
    assert shares.dtype == dtype
    np.testing.assert_allclose(float(shares[0, 0]), 1 / (1 + 4096 * small), rtol=2**-8)


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
