import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import TargetAttention


def naive(layer, query, keys, valid):
    """The network on [q, k, q - k, q * k], built in full, one event at a time."""
    kernels, biases = layer.get_weights()[0::2], layer.get_weights()[1::2]
    of_query, of_key, of_product = np.split(kernels[0], 3)
    # Any split of the weights between q, k and q - k gives the same function.
    share = np.full_like(of_query, 0.25)
    wide = np.concatenate([of_query - share, of_key + share, share, of_product])
    output = np.zeros_like(query)
    for b in range(len(query)):
        for t in range(keys.shape[1]):
            if valid[b, t]:
                q, k = query[b], keys[b, t]
                x = np.tanh(np.concatenate([q, k, q - k, q * k]) @ wide + biases[0])
                for kernel, bias in zip(kernels[1:-1], biases[1:-1], strict=True):
                    x = np.tanh(x @ kernel + bias)
                output[b] += (x @ kernels[-1] + biases[-1])[0] * k
    return output


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_equals_the_network_on_the_fourfold_input(hidden):
    rng = np.random.default_rng(1)
    query, keys = rng.normal(size=(3, 4)), rng.normal(size=(3, 5, 4))
    valid = rng.random((3, 5)) < 0.6
    layer = TargetAttention(hidden, activation="tanh", dtype="float64")
    layer(tf.constant(query), tf.constant(keys))
    order = [w for pair in zip(layer.kernels, layer.biases, strict=True) for w in pair]
    for index, weight in enumerate(order):
        weight.assign(np.random.default_rng(index).normal(size=weight.shape))
    ordered = type("Weights", (), {"get_weights": lambda self: [w.numpy() for w in order]})()
    actual = layer(tf.constant(query), tf.constant(keys), tf.constant(valid))
    np.testing.assert_allclose(actual, naive(ordered, query, keys, valid), rtol=1e-10)


def test_padding_changes_nothing_and_an_empty_history_gives_zeros():
    layer = TargetAttention()
    query, keys = tf.random.normal([2, 4]), tf.random.normal([2, 3, 4])
    padded = tf.concat([keys, tf.fill([2, 2, 4], 1e6)], axis=1)
    valid = tf.constant([[True] * 3 + [False] * 2] * 2)
    np.testing.assert_allclose(layer(query, padded, valid), layer(query, keys), rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch([query, padded])
        output = layer(query, padded, tf.zeros([2, 5], tf.bool))
    np.testing.assert_array_equal(output, np.zeros([2, 4]))
    for grad in tape.gradient(output, [query, padded]):
        np.testing.assert_array_equal(grad, tf.zeros_like(grad))
    assert layer(query, keys[:, :0]).numpy().tolist() == [[0.0] * 4] * 2


def test_recomputed_gradient_is_the_same():
    query, keys = tf.random.normal([3, 4]), tf.random.normal([3, 7, 4])
    grads = []
    weights = None
    for recompute in (False, True):
        layer = TargetAttention((5, 3), recompute=recompute)
        layer(query, keys)
        weights = weights or layer.get_weights()
        layer.set_weights(weights)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(query, keys, training=True)))
        grads.append(tape.gradient(loss, layer.trainable_weights))
    for plain, recomputed in zip(*grads, strict=True):
        np.testing.assert_array_equal(recomputed, plain)
