import numpy as np
import tensorflow as tf
import tf_keras

from recsys.layers import GatedDense


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_value_by_hand():
    layer = GatedDense(1, activation="relu")
    layer.build([None, 2])
    # W = (1, 2), V = (3, -1), b = 0.5, c = 0.
    layer.set_weights([np.array([[1.0, 3.0], [2.0, -1.0]]), np.array([0.5, 0.0])])
    x = tf.constant([[1.0, 1.0], [-2.0, 0.0]])
    # First row: (1 + 2 + 0.5) * sigmoid(3 - 1); second: relu(-1.5) = 0.
    np.testing.assert_allclose(layer(x), [[3.5 * sigmoid(2.0)], [0.0]], rtol=1e-6)


def test_gate_starts_at_its_bias_and_linear_part_at_zero():
    layer = GatedDense(3, gate_bias=2.0)
    layer.build([None, 4])
    np.testing.assert_array_equal(layer.bias, [0, 0, 0, 2, 2, 2])
    default = GatedDense(2)
    default.build([None, 4])
    np.testing.assert_array_equal(default.bias, [0, 0, 1, 1])


def test_each_half_is_drawn_for_its_own_width():
    layer = GatedDense(300)
    layer.build([None, 100])
    limit = np.sqrt(6 / (100 + 300))  # of Glorot's uniform for [100, 300]
    linear, gate = np.split(layer.kernel.numpy(), 2, axis=1)
    for half in (linear, gate):
        assert 0.98 * limit < np.abs(half).max() <= limit
    assert abs(np.corrcoef(linear.ravel(), gate.ravel())[0, 1]) < 0.05


def test_a_seeded_initializer_repeats_but_does_not_tie_the_halves():
    kernels = []
    for _ in range(2):
        layer = GatedDense(8, kernel_initializer=tf_keras.initializers.GlorotUniform(seed=3))
        layer.build([None, 8])
        kernels.append(layer.kernel.numpy())
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0][:, :8], kernels[0][:, 8:])


def test_leading_axes_are_only_batch():
    layer = GatedDense(3, activation="relu")
    x = tf.random.normal([2, 5, 4])
    flat = layer(tf.reshape(x, [10, 4]))
    np.testing.assert_allclose(layer(x), tf.reshape(flat, [2, 5, 3]), rtol=1e-6)


def test_extreme_inputs_stay_finite():
    layer = GatedDense(3)
    x = tf.constant([[1e30, -1e30], [1e4, 1e4]])
    assert np.all(np.isfinite(layer(x)))


def test_without_gate_it_is_an_ordinary_dense_layer():
    layer = GatedDense(1, activation="relu", gated=False)
    layer.build([None, 2])
    assert [weight.shape.as_list() for weight in layer.weights] == [[2, 1], [1]]
    np.testing.assert_array_equal(layer.bias, [0.0])  # nothing starts at the gate's bias
    layer.set_weights([np.array([[1.0], [2.0]]), np.array([0.5])])
    # 1 + 2 + 0.5, and relu(-2 + 0.5).
    np.testing.assert_array_equal(layer(tf.constant([[1.0, 1.0], [-2.0, 0.0]])), [[3.5], [0.0]])
