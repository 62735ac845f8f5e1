import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import LocalSelfAttention


def naive(layer, x, valid):
    """Full attention, with a mask for the band of own and previous block."""
    kernel_in, kernel_out, bias = (w.numpy() for w in layer.weights)
    batch, length, _ = x.shape
    heads, window, width = layer.heads, layer.window, kernel_out.shape[0] // layer.heads
    block = np.arange(length) // window
    seen = (block[:, None] == block) | (block[:, None] == block + 1)
    if layer.causal:
        seen &= np.arange(length)[:, None] >= np.arange(length)
    output = np.zeros_like(x)
    for b in range(batch):
        q, k, v = np.split(x[b] @ kernel_in, 3, axis=1)
        mixed = np.zeros((length, heads * width))
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] @ k[:, part].T / np.sqrt(width)
            scores = np.where(seen & valid[b], scores, -np.inf)
            scores[~valid[b]] = 0  # such a query's output is replaced below
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, part] = share / share.sum(axis=1, keepdims=True) @ v[:, part]
        output[b] = (mixed @ kernel_out + bias) * valid[b][:, None]
    return output


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "window"), [(1, 4), (4, 4), (7, 3), (12, 4), (5, 1), (3, 8)])
def test_equals_full_attention_under_a_band_mask(length, window, causal):
    rng = np.random.default_rng(length)
    x = rng.normal(size=(2, length, 6))
    valid = rng.random((2, length)) < 0.7
    layer = LocalSelfAttention(heads=2, window=window, causal=causal, dtype="float64")
    actual = layer(tf.constant(x), tf.constant(valid))
    np.testing.assert_allclose(actual, naive(layer, x, valid), atol=1e-10)


def test_an_event_beyond_the_window_has_no_influence():
    layer = LocalSelfAttention(heads=1, window=4, causal=True)
    x = tf.random.normal([1, 16, 4])
    before = layer(x).numpy()
    changed = tf.tensor_scatter_nd_add(x, [[0, 5]], [tf.ones([4])])
    moved = np.any(layer(changed).numpy() != before, axis=(0, 2))
    # Event 5 lies in the block 4..7; it is seen from there on, up to the end of the next.
    assert moved.nonzero()[0].tolist() == [5, 6, 7, 8, 9, 10, 11]


def test_no_tensor_is_quadratic_in_the_length():
    layer = LocalSelfAttention(heads=2, window=32)
    x = tf.zeros([1, 4096, 8])
    layer(x)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, x)

    graph = step.get_concrete_function(tf.TensorSpec([1, 4096, 8])).graph
    shapes = [out.shape for op in graph.get_operations() for out in op.outputs]
    largest = max(s.num_elements() for s in shapes if s.is_fully_defined())
    assert largest <= 4096 * 2 * 32 * 2
    assert step(x).shape == x.shape


@pytest.mark.parametrize("causal", [False, True])
def test_recomputed_gradient_is_the_same(causal):
    x, valid = tf.random.normal([2, 10, 6]), tf.random.uniform([2, 10]) < 0.7
    grads, weights = [], None
    for recompute in (False, True):
        layer = LocalSelfAttention(2, 4, causal=causal, recompute=recompute)
        layer(x)
        weights = weights or layer.get_weights()
        layer.set_weights(weights)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(layer(x, valid, training=True)))
        grads.append(tape.gradient(loss, [x, *layer.trainable_weights]))
    for plain, recomputed in zip(*grads, strict=True):
        np.testing.assert_array_equal(recomputed, plain)
