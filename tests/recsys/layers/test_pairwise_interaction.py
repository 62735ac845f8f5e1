import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.layers import PairwiseInteraction


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_equals_the_double_loop_over_pairs(batch, fields, dim, seed):
    v = np.random.default_rng(seed).normal(size=(batch, fields, dim))
    expected = np.zeros((batch, dim))
    for i in range(fields):
        for j in range(i + 1, fields):
            expected += v[:, i] * v[:, j]
    actual = PairwiseInteraction(dtype="float64")(tf.constant(v))
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_value_by_hand():
    v = tf.constant([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    # 1*3 + 1*5 + 3*5 = 23 and 2*4 + 2*6 + 4*6 = 44
    np.testing.assert_array_equal(PairwiseInteraction()(v), [[23.0, 44.0]])


def test_does_not_cancel_in_half_precision():
    # 100 fields at 8: the sum squared is 640,000, beyond float16; the pairs at 1/64 of
    # it fit: 4950 * 0.125**2 = 77.34.
    v = tf.fill([1, 100, 2], tf.constant(0.125, tf.float16))
    layer = PairwiseInteraction(dtype="mixed_float16")
    np.testing.assert_allclose(layer(v), [[77.34375] * 2], rtol=1e-3)
    # Two orthogonal-like large fields: (256 + 1)^2 - 256^2 - 1 over 2 = 256, where the
    # squares alone overflow float16 (65,504).
    pair = tf.constant([[[256.0], [1.0]]], tf.float16)
    np.testing.assert_array_equal(layer(pair), [[256.0]])
