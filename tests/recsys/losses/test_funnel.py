"""Funnel log-probabilities against exact arithmetic, with gradients, at every extreme."""

import math
from decimal import Decimal, getcontext
from itertools import product

import numpy as np
import pytest
import tensorflow as tf

from recsys.losses import focal_from_log_probs, funnel_log_probs, log_sigmoid

getcontext().prec = 60
GRID = [-60.0, -15.0, -3.0, -0.1, 0.0, 0.7, 5.0, 30.0, 80.0]


def exact(chain: list[float]) -> tuple[float, float, list[float], list[float]]:
    """log p, log(1 - p) and their gradients, in sixty decimal digits."""
    s = [1 / (1 + (-Decimal(x)).exp()) for x in chain]
    p = math.prod(s, start=Decimal(1))
    grad_log_p = [float(1 - v) for v in s]
    grad_log_1mp = [float(-p * (1 - v) / (1 - p)) for v in s]
    return float(p.ln()), float((1 - p).ln()), grad_log_p, grad_log_1mp


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_values_and_gradients_are_exact_to_float32(stages: int) -> None:
    chains = list(product(GRID, repeat=stages))[:: 1 if stages < 3 else 7]
    columns = [tf.constant(c, tf.float32) for c in zip(*chains, strict=True)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(columns)
        log_p, log_1mp = funnel_log_probs(columns)
    truth = [exact([float(np.float32(v)) for v in c]) for c in chains]
    # exp(-180) in float32 carries 180 roundings of its exponent: some 1e-5.
    np.testing.assert_allclose(log_p, [t[0] for t in truth], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(log_1mp, [t[1] for t in truth], rtol=2e-5, atol=1e-37)
    for k, column in enumerate(columns):
        for value, row in ((log_p, 2), (log_1mp, 3)):
            np.testing.assert_allclose(
                tape.gradient(value, column), [t[row][k] for t in truth], rtol=2e-5, atol=1e-36
            )


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_finite_at_one_e_four(dtype: tf.DType) -> None:
    pairs = list(product([-1e4, 0.0, 1e4], repeat=2))
    a, b = (tf.constant(c, dtype) for c in zip(*pairs, strict=True))
    for label in (0.0, 1.0):
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            log_p, log_1mp = funnel_log_probs([a, b])
            loss = focal_from_log_probs(tf.fill(a.shape, label), log_p, log_1mp, 0.25, 2.0)
        assert log_p.dtype == tf.float32
        for values in (log_p, log_1mp, loss, *tape.gradient(loss, [a, b])):
            assert np.isfinite(tf.cast(values, tf.float32)).all()


def test_when_all_are_sure_leaving_costs_the_logit() -> None:
    # 1 - p = 2 e^-1e4 up to a square: log(1 - p) = log 2 - 1e4.
    _, log_1mp = funnel_log_probs([tf.constant([1e4]), tf.constant([1e4])])
    np.testing.assert_allclose(log_1mp, [math.log(2) - 1e4], rtol=1e-7)


def test_one_stage_is_the_sigmoid() -> None:
    x = tf.constant([-1e4, -2.0, 0.0, 3.0, 1e4])
    log_p, log_1mp = funnel_log_probs([x])
    np.testing.assert_allclose(log_p, log_sigmoid(x))
    np.testing.assert_allclose(log_1mp, log_sigmoid(-x))


def test_the_product_never_exceeds_a_stage() -> None:
    rng = np.random.default_rng(0)
    a, b = (tf.constant(rng.normal(0, 8, 1000), tf.float32) for _ in range(2))
    log_p, _ = funnel_log_probs([a, b])
    assert (log_p <= log_sigmoid(a)).numpy().all()


def test_graph_and_xla_equal_eager() -> None:
    a, b = tf.constant([-3.0, 8.0, 40.0]), tf.constant([2.0, 9.0, 50.0])
    eager = funnel_log_probs([a, b])
    for jit in (False, True):
        graph = tf.function(lambda u, v: funnel_log_probs([u, v]), jit_compile=jit)
        for got, expected in zip(graph(a, b), eager, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        funnel_log_probs([])
