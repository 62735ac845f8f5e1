import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from recsys.layers import CrossNetwork, DotProducts, Interactions, make_interaction


def test_dot_products_by_hand():
    v = tf.constant([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    # (1, 0): 3 + 8; (2, 0): 5 + 12; (2, 1): 15 + 24
    np.testing.assert_array_equal(DotProducts()(v), [[11.0, 17.0, 39.0]])


@pytest.mark.parametrize("fields", [1, 2, 7])
def test_dot_products_are_those_of_tfrs(fields):
    v = tf.random.normal([5, fields, 3])
    weights = tf.random.normal([5, fields * (fields - 1) // 2])
    peer = tfrs.layers.feature_interaction.DotInteraction()
    found = []
    for layer in (DotProducts(), lambda v: peer(tf.unstack(v, axis=1))):
        with tf.GradientTape() as tape:
            tape.watch(v)
            output = layer(v)
            loss = tf.reduce_sum(weights * output)
        found.append((output, tape.gradient(loss, v)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_cross_network_by_hand():
    layer = CrossNetwork(2)
    layer.build([None, 2])
    layer.set_weights([np.eye(2), np.array([0.0, 1.0]), np.eye(2)[::-1], np.zeros(2)])
    # x1 = (2, 3) * (2, 3 + 1) + (2, 3) = (6, 15)
    # x2 = (2, 3) * (15, 6) + (6, 15) = (36, 33)
    np.testing.assert_array_equal(layer(tf.constant([[2.0, 3.0]])), [[36.0, 33.0]])


def test_low_rank_cross_has_fewer_weights():
    layer = CrossNetwork(1, projection_dim=2)
    layer(tf.ones([1, 16]))
    assert sorted(tuple(w.shape) for w in layer.weights) == [(2, 16), (16,), (16, 2)]


def test_combined_outputs_lie_side_by_side():
    embeddings, dense = tf.random.normal([3, 4, 2]), tf.random.normal([3, 5])
    layer = Interactions(["dot", "fm", "cross"], cross_layers=1)
    output = layer((embeddings, dense))
    assert output.shape == (3, 6 + 2 + 8 + 5)
    np.testing.assert_allclose(output[:, :6], DotProducts()(embeddings), rtol=1e-6)
    np.testing.assert_allclose(output[:, 6:8], make_interaction("fm")(embeddings), rtol=1e-6)
    flat = tf.concat([tf.reshape(embeddings, [3, 8]), dense], axis=1)
    np.testing.assert_allclose(output[:, 8:], layer.parts[2](flat), rtol=1e-6)


def test_none_of_them_is_empty():
    assert Interactions([])((tf.ones([3, 4, 2]), None)).shape == (3, 0)


def test_unknown_kind_names_the_known():
    with pytest.raises(ValueError, match=r"fm.*cross.*dot"):
        make_interaction("outer")
