import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import GatedTower

SEED = tf.constant([11, 5])


def gradients(tower, x, seed, as_graph):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(tower(x, training=True, seed=seed)))
        return tape.gradient(loss, [x, *tower.trainable_weights])

    return (tf.function(run) if as_graph else run)(x)


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputed_gradient_is_the_same_to_the_last_bit(dropout, as_graph):
    plain = GatedTower([16, 8], dropout=dropout)
    recomputed = GatedTower([16, 8], dropout=dropout, recompute=True)
    x = tf.random.normal([32, 6])
    plain(x), recomputed(x)
    recomputed.set_weights(plain.get_weights())
    for expected, actual in zip(
        gradients(plain, x, SEED, as_graph), gradients(recomputed, x, SEED, as_graph), strict=True
    ):
        assert np.any(expected != 0)
        np.testing.assert_array_equal(actual, expected)


def test_recomputation_keeps_its_own_draw_when_no_seed_is_passed():
    """With f(x) homogeneous of degree one in the last layer's linear half, x . df/dx tells."""
    tower = GatedTower([64], dropout=0.5, recompute=True, activation=None)
    x = tf.ones([8, 4])
    tower(x)
    kernel = tower.blocks[0].kernel
    # The gate is constant, so the output is linear in W, and sum(W * dL/dW) = L exactly
    # if, and only if, both passes have dropped the same entries.
    kernel.assign(tf.concat([tf.ones([4, 64]), tf.zeros([4, 64])], axis=1))
    with tf.GradientTape() as tape:
        output = tower(x, training=True)
        # Uneven weights tell every entry from every other.
        loss = tf.reduce_sum(output * tf.reshape(tf.range(512.0), [8, 64]))
    grad = tape.gradient(loss, kernel)
    np.testing.assert_allclose(tf.reduce_sum(grad[:, :64]), loss, rtol=1e-5)
    assert 100 < np.count_nonzero(output) < 412


def test_dropout_by_seed_and_only_in_training():
    tower = GatedTower([200], dropout=0.25, activation=None)
    x = tf.ones([50, 3])
    kept = tower(x)
    np.testing.assert_array_equal(tower(x), kept)
    once, again = (tower(x, training=True, seed=SEED) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    other = tower(x, training=True, seed=tf.constant([11, 6]))
    assert not np.array_equal(once, other)
    # What is kept is scaled up by 1 / (1 - rate); a quarter of 10,000 is dropped.
    mask = once.numpy() != 0
    np.testing.assert_allclose(once.numpy()[mask], kept.numpy()[mask] / 0.75, rtol=1e-5)
    assert abs(mask.mean() - 0.75) < 0.02


def test_layers_of_a_tower_drop_different_entries():
    tower = GatedTower([64, 64], dropout=0.5, activation=None)
    x = tf.ones([16, 64])
    tower(x)
    # Zero kernels but an identity in the linear half: the tower passes on what is not
    # dropped, so that a quarter is left if the two masks are independent, half if equal.
    for block in tower.blocks:
        block.kernel.assign(tf.concat([tf.eye(64), tf.zeros([64, 64])], axis=1))
    left = np.count_nonzero(tower(x, training=True, seed=SEED)) / 1024
    assert abs(left - 0.25) < 0.06


def test_two_calls_without_a_seed_draw_twice():
    tower = GatedTower([64], dropout=0.5)
    run = tf.function(lambda x: tower(x, training=True))
    x = tf.ones([4, 8])
    assert not np.array_equal(run(x), run(x))


def test_a_bad_seed_is_refused():
    tower = GatedTower([4], dropout=0.5)
    for seed in (tf.constant(3), tf.constant([1.0, 2.0]), tf.constant([1, 2, 3])):
        with pytest.raises(ValueError, match="seed"):
            tower(tf.ones([2, 3]), training=True, seed=seed)


def test_empty_tower_is_the_identity():
    x = tf.ones([2, 3])
    np.testing.assert_array_equal(GatedTower([])(x), x)


@pytest.mark.parametrize("recompute", [False, True])
def test_without_gates_it_is_a_plain_dense_tower(recompute):
    tower = GatedTower([2, 1], gated=False, recompute=recompute)
    tower.build([None, 2])
    assert [w.shape.as_list() for w in tower.weights] == [[2, 2], [2], [2, 1], [1]]
    tower.set_weights(
        [
            np.array([[1.0, -1.0], [2.0, 1.0]]),
            np.array([0.5, 0.0]),
            np.array([[2.0], [10.0]]),
            np.array([-1.0]),
        ]
    )
    # [1, 1] W = [3, 0], with the bias [3.5, 0]; 2 * 3.5 - 1 = 6.
    # [0, 2] W = [4, 2], with the bias [4.5, 2]; 2 * 4.5 + 10 * 2 - 1 = 28.
    # [-2, 0] W = [-2, 2], relu leaves [0, 2]; 10 * 2 - 1 = 19.
    x = tf.constant([[1.0, 1.0], [0.0, 2.0], [-2.0, 0.0]])
    np.testing.assert_array_equal(tower(x, training=True), [[6.0], [28.0], [19.0]])
