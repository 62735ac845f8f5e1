"""Focal loss: derivations by hand, numeric gradients, precision, serialization."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from recsys.losses import (
    FocalLoss,
    binary_cross_entropy,
    focal_from_log_probs,
    focal_loss,
    log_sigmoid,
)

EXTREME = [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]


def reference(y: float, x: float, alpha: float | None, gamma: float) -> float:
    p = 1 / (1 + math.exp(-x))
    p_t = p if y == 1 else 1 - p
    weight = 1.0 if alpha is None else (alpha if y == 1 else 1 - alpha)
    return -weight * (1 - p_t) ** gamma * math.log(p_t)


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_equals_the_formula_on_each_example(alpha: float | None, gamma: float) -> None:
    y = [1, 1, 0, 0, 1]
    x = [0.0, 2.0, -1.5, 3.0, -4.0]
    expected = [reference(a, b, alpha, gamma) for a, b in zip(y, x, strict=True)]
    loss = focal_loss(tf.constant(y), tf.constant(x), alpha, gamma)
    assert loss.shape == (5,)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_p_t_comes_from_the_sigmoid() -> None:
    # p = 1/2 at logit 0: (1/2)^2 log 2, a quarter of it on the positive side.
    loss = focal_loss(tf.constant([1.0]), tf.constant([0.0]), alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(loss, [0.25 * 0.25 * math.log(2)], rtol=1e-6)


def test_without_alpha_and_gamma_it_is_cross_entropy() -> None:
    x = tf.constant(np.linspace(-30, 30, 41), tf.float32)
    y = tf.cast(tf.range(41) % 2, tf.float32)
    expected = tf.nn.sigmoid_cross_entropy_with_logits(y, x)
    np.testing.assert_allclose(focal_loss(y, x), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(binary_cross_entropy(y, x), expected, rtol=1e-6, atol=1e-12)


def test_label_smoothing_mixes_both_sides() -> None:
    # y = 1 becomes 0.9: 0.9 log(1 + e^-1) + 0.1 log(1 + e^1).
    loss = focal_loss(tf.constant([1.0]), tf.constant([1.0]), label_smoothing=0.2)
    expected = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_are_finite_with_finite_gradients(dtype: tf.DType, gamma: float) -> None:
    for label in (0.0, 1.0, 0.5):
        x = tf.constant(EXTREME, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = focal_loss(tf.fill(x.shape, label), x, 0.25, gamma)
        assert loss.dtype == tf.float32
        assert np.isfinite(loss).all()
        gradient = tape.gradient(loss, x)
        assert gradient.dtype == dtype
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()
    # A wrong logit of 1e4 costs its size, a right one nothing.
    wrong = focal_loss(tf.constant([0.0, 1.0]), tf.constant([9984.0, 9984.0], dtype), gamma=gamma)
    np.testing.assert_allclose(wrong, [9984.0, 0.0])


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.25, 2.0), (0.7, 0.5)])
def test_gradient_equals_numeric_differences(alpha: float | None, gamma: float) -> None:
    y = tf.constant([0.0, 1.0, 0.0, 1.0, 0.3], tf.float64)
    x = tf.constant([0.3, -2.0, 4.0, 6.0, -1.0], tf.float64)
    theory, numeric = tf.test.compute_gradient(lambda v: focal_loss(y, v, alpha, gamma, 0.1), [x])
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_any_shape_and_graph_equals_eager(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), tf.float32)
    y = tf.constant(rng.integers(0, 2, size=shape), tf.float32)
    graph = tf.function(lambda a, b: focal_loss(a, b, 0.25, 2.0))
    eager = focal_loss(y, x, 0.25, 2.0)
    assert eager.shape == shape
    np.testing.assert_allclose(graph(y, x), eager, rtol=1e-6)
    np.testing.assert_allclose(tf.function(graph, jit_compile=True)(y, x), eager, rtol=1e-5)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        focal_loss(tf.zeros([3]), tf.zeros([3, 1]))


@pytest.mark.parametrize(
    "options", [{"alpha": 1.5}, {"alpha": 0.0}, {"gamma": -1.0}, {"label_smoothing": 1.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        focal_loss(tf.zeros([1]), tf.zeros([1]), **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        FocalLoss(**options)


def test_log_probs_give_the_same_as_the_logit() -> None:
    x = tf.constant([-3.0, 0.5, 1e4, -1e4])
    y = tf.constant([1.0, 0.0, 1.0, 0.0])
    same = focal_from_log_probs(y, log_sigmoid(x), log_sigmoid(-x), 0.3, 1.5)
    np.testing.assert_allclose(same, focal_loss(y, x, 0.3, 1.5), rtol=1e-6)


class TestKerasLoss:
    def test_call_is_per_example_and_weights_apply(self) -> None:
        y, x = tf.constant([1.0, 0.0]), tf.constant([0.0, 0.0])
        loss = FocalLoss()
        np.testing.assert_allclose(loss.call(y, x), [math.log(2)] * 2, rtol=1e-6)
        # Keras' mean divides by the number of examples: (2 log 2 + 0) / 2.
        weighted = loss(y, x, sample_weight=tf.constant([2.0, 0.0]))
        np.testing.assert_allclose(weighted, math.log(2), rtol=1e-6)

    def test_a_column_of_labels_does_not_broadcast(self) -> None:
        y, x = tf.constant([1.0, 0.0, 1.0]), tf.constant([1.0, -2.0, 0.5])
        expected = FocalLoss().call(y, x)
        for a, b in ((y[:, None], x), (y, x[:, None]), (y[:, None], x[:, None])):
            np.testing.assert_allclose(FocalLoss().call(a, b), expected)

    def test_config_round_trip(self) -> None:
        loss = FocalLoss(alpha=0.3, gamma=1.5, label_smoothing=0.1, reduction="sum", name="f")
        again = tf_keras.losses.deserialize(tf_keras.losses.serialize(loss))
        assert isinstance(again, FocalLoss)
        assert again.get_config() == loss.get_config()
        y, x = tf.constant([1.0, 0.0]), tf.constant([0.2, 0.7])
        np.testing.assert_allclose(again(y, x), loss(y, x))

    @pytest.mark.parametrize("file", ["model", "model.keras"])
    def test_fits_and_loads_without_custom_objects(self, tmp_path, file: str) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(256, 3)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.float32)
        model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(3,))])
        model.compile(tf_keras.optimizers.Adam(0.1), loss=FocalLoss(alpha=0.25, gamma=2.0))
        history = model.fit(x, y, epochs=3, batch_size=64, verbose=0).history["loss"]
        assert history[-1] < history[0]
        model.save(tmp_path / file)
        again = tf_keras.models.load_model(tmp_path / file)
        assert isinstance(again.loss, FocalLoss) and again.loss.gamma == 2.0
        np.testing.assert_allclose(
            again.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-6
        )

    def test_a_half_precision_model_trains_on_a_float32_loss(self) -> None:
        x = tf.cast(tf.constant([1e4, -1e4]), tf.float16)
        assert FocalLoss(gamma=2.0)(tf.constant([0.0, 0.0]), x).dtype == tf.float32
