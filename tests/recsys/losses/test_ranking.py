"""Ranking losses against a plain loop over groups and pairs."""

import math

import numpy as np
import pytest
import tensorflow as tf

from recsys.losses import listwise_ratio, pairwise_ratio


def pairwise(*args) -> tf.Tensor:
    return tf.math.divide_no_nan(*pairwise_ratio(*args))


def listwise(*args) -> tf.Tensor:
    return tf.math.divide_no_nan(*listwise_ratio(*args))


LOSSES = [pairwise, listwise]


def loop_pairwise(y, x, g, w) -> float:
    total = weight = 0.0
    for i in range(len(y)):
        for j in range(len(y)):
            if g[i] == g[j] and y[i] > y[j]:
                total += w[i] * w[j] * math.log1p(math.exp(x[j] - x[i]))
                weight += w[i] * w[j]
    return total / weight if weight else 0.0


def loop_listwise(y, x, g, w) -> float:
    total = weight = 0.0
    for group in set(g.tolist()):
        rows = np.flatnonzero(g == group)
        if len(rows) < 2 or y[rows].sum() == 0:
            continue
        target = w[rows] * y[rows] / y[rows].sum()
        log_softmax = x[rows] - np.log((w[rows] * np.exp(x[rows])).sum())
        total -= target @ log_softmax
        weight += target.sum()
    return total / weight if weight else 0.0


@pytest.mark.parametrize(("loss", "loop"), [(pairwise, loop_pairwise), (listwise, loop_listwise)])
def test_equals_the_loop(loss, loop) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        n = 40
        y = rng.integers(0, 3, n).astype(np.float64)
        x, g = rng.normal(size=n), rng.integers(0, 9, n) * 10**12
        w = rng.uniform(0.1, 2.0, n)
        got = loss(tf.constant(y), tf.constant(x), tf.constant(g), tf.constant(w))
        np.testing.assert_allclose(got, loop(y, x, g, w), rtol=1e-12)
        got = tf.function(loss)(tf.constant(y), tf.constant(x), tf.constant(g))
        np.testing.assert_allclose(got, loop(y, x, g, np.ones(n)), rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_by_hand(loss) -> None:
    # Two rows, the positive two logits ahead: both losses are log(1 + e^-2).
    args = tf.constant([1, 0]), tf.constant([2.0, 0.0]), tf.constant([5, 5])
    np.testing.assert_allclose(loss(*args), math.log1p(math.exp(-2)), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0.0, 0.0], [1, 1]),  # no positives
        ([1.0, 0.0], [1, 2]),  # groups of one row
        ([1.0], [1]),  # one row
        ([], []),  # no rows
        ([math.nan, math.nan], [1, 1]),  # nothing observed
    ],
)
def test_nothing_to_rank_gives_zero_and_zero_gradients(loss, labels, groups) -> None:
    x = tf.constant([3.0, -1e4][: len(labels)], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(tf.constant(labels, tf.float32), x, tf.constant(groups, tf.int64))
    assert float(value) == 0.0
    gradient = tf.convert_to_tensor(tape.gradient(value, x))
    np.testing.assert_array_equal(gradient, np.zeros(len(labels)))


@pytest.mark.parametrize("loss", LOSSES)
def test_all_positives(loss) -> None:
    y, x, g = tf.ones([3]), tf.constant([0.0, 0.0, 0.0]), tf.constant([1, 1, 1])
    # No pair differs; a uniform target against a uniform softmax costs log 3.
    expected = 0.0 if loss is pairwise else math.log(3)
    np.testing.assert_allclose(loss(y, x, g), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_extreme_logits(loss, dtype: tf.DType) -> None:
    x = tf.constant([-1e4, 1e4, 0.0, 1e4], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(tf.constant([1, 0, 1, 0]), x, tf.constant([1, 1, 2, 2]))
    assert np.isfinite(value)
    assert np.isfinite(tf.cast(tf.convert_to_tensor(tape.gradient(value, x)), tf.float32)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_label_are_left_out(loss) -> None:
    y, x, g = [1.0, 0.0, 1.0], [0.3, 0.8, -1.0], [1, 1, 2]
    expected = loss(tf.constant(y), tf.constant(x), tf.constant(g))
    with_nan = loss(tf.constant([math.nan, *y]), tf.constant([9.0, *x]), tf.constant([1, *g]))
    np.testing.assert_allclose(with_nan, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_equals_numeric_differences(loss) -> None:
    y, g = tf.constant([1, 0, 0, 1, 0, 1]), tf.constant([1, 1, 2, 2, 2, 3])
    x = tf.constant([0.2, -1.0, 2.0, 0.1, 0.5, 4.0], tf.float64)
    theory, numeric = tf.test.compute_gradient(lambda v: loss(y, v, g), [x])
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_is_a_number_of_rows(loss) -> None:
    """A positive and three negatives alike are a positive and one negative of weight three."""
    x, y = tf.constant([0.5, -0.2, -0.2, -0.2]), tf.constant([1, 0, 0, 0])
    each = loss(y, x, tf.zeros([4], tf.int64))
    thinned = loss(y[:2], x[:2], tf.zeros([2], tf.int64), tf.constant([1.0, 3.0]))
    np.testing.assert_allclose(thinned, each, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_zero_is_no_row(loss) -> None:
    # The last group has one row left; the third row of the first would underflow the others.
    labels = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    logits = np.array([0.0, 1.0, 200.0, 0.5, 0.2, -1.0, 0.3])
    groups = np.array([1, 1, 1, 2, 2, 3, 3])
    weights = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    kept = weights > 0
    found = loss(*map(tf.constant, (labels, logits, groups, weights)))
    left = loss(*(tf.constant(x[kept]) for x in (labels, logits, groups)))
    expected = (math.log1p(math.e) + math.log1p(math.exp(-0.3))) / 2
    np.testing.assert_allclose([found, left], [expected, expected], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_shift_of_a_group_changes_nothing(loss) -> None:
    y, g = tf.constant([1, 0, 0, 1]), tf.constant([1, 1, 2, 2])
    x = tf.constant([0.2, -1.0, 2.0, 0.1])
    shifted = x + tf.constant([3.0, 3.0, -2.0, -2.0])
    np.testing.assert_allclose(loss(y, x, g), loss(y, shifted, g), rtol=1e-5)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        pairwise(tf.zeros([3]), tf.zeros([3]), tf.zeros([2], tf.int64))
