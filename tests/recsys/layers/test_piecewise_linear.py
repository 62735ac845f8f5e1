import numpy as np
import tensorflow as tf

from recsys.layers import PiecewiseLinearEmbedding


def test_each_feature_has_its_own_weights():
    layer = PiecewiseLinearEmbedding(1)
    layer.build([None, 2, 2])
    kernel = np.array([[[1.0], [10.0]], [[100.0], [1000.0]]])
    layer.set_weights([kernel, np.array([[0.5], [-0.5]])])
    x = tf.constant([[[1.0, 0.25], [1.0, 0.5]]])
    # 1 + 2.5 + 0.5 and 100 + 500 - 0.5
    np.testing.assert_allclose(layer(x), [[[4.0], [599.5]]])
