import numpy as np
import tensorflow as tf

from recsys.layers import PiecewiseLinearEmbedding, encode_piecewise_linear


def test_each_feature_has_its_own_weights():
    layer = PiecewiseLinearEmbedding(1)
    layer.build([None, 2, 2])
    kernel = np.array([[[1.0], [10.0]], [[100.0], [1000.0]]])
    layer.set_weights([kernel, np.array([[0.5], [-0.5]])])
    x = tf.constant([[[1.0, 0.25], [1.0, 0.5]]])
    # 1 + 2.5 + 0.5 and 100 + 500 - 0.5
    np.testing.assert_allclose(layer(x), [[[4.0], [599.5]]])


def test_encoding_by_hand():
    edges = [[0.0, 1.0, 3.0], [-1.0, 0.0, 0.0]]
    values = tf.constant([[2.0, -0.25], [-5.0, 0.0], [9.0, -9.0], [np.nan, 1.0]])
    expected = [
        [[1.0, 0.5], [0.75, 0.0]],
        [[0.0, 0.0], [1.0, 1.0]],  # the second feature's empty bin steps at its edge
        [[1.0, 1.0], [0.0, 0.0]],
        [[0.0, 0.0], [1.0, 1.0]],
    ]
    np.testing.assert_allclose(encode_piecewise_linear(values, edges), expected)


def test_embedding_is_continuous_in_the_value_and_linear_within_a_bin():
    layer = PiecewiseLinearEmbedding(3)
    edges = [[0.0, 1.0, 2.0]]

    def embed(value):
        return layer(encode_piecewise_linear(tf.constant([[value]]), edges)).numpy()

    np.testing.assert_allclose(embed(0.5), (embed(0.25) + embed(0.75)) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embed(0.99999), embed(1.00001), atol=1e-4)
