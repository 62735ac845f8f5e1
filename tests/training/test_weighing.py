"""Weights of kinds of networks, by labels whose best answer is known."""

import numpy as np

from training.weighing import stacked


def test_the_kind_that_tells_the_truth_gets_all() -> None:
    rng = np.random.default_rng(0)
    truth, other = rng.normal(size=(2, 20000))
    labels = (rng.random(20000) < 1 / (1 + np.exp(-2 * truth + 1))).astype(float)
    # Neither the scale nor the mean of the logits matters.
    found = stacked(labels, np.stack([other, 0.3 * truth + 5], axis=1))
    np.testing.assert_allclose(found, [0.0, 1.0], atol=0.05)
    against = stacked(labels, np.stack([-truth, truth], axis=1))
    np.testing.assert_allclose(against, [0.0, 1.0], atol=1e-6)


def test_two_halves_of_the_truth_count_as_they_do_in_it() -> None:
    rng = np.random.default_rng(1)
    parts = rng.normal(size=(50000, 2))
    labels = (rng.random(50000) < 1 / (1 + np.exp(-parts @ [1.5, 0.5]))).astype(float)
    labels[::7] = np.nan  # not observed
    np.testing.assert_allclose(stacked(labels, parts), [0.75, 0.25], atol=0.02)


def test_where_nothing_can_be_told_the_weights_are_equal() -> None:
    logits = np.random.default_rng(2).normal(size=(50, 4))
    for labels in (np.zeros(50), np.ones(50), np.full(50, np.nan), np.array([])):
        assert stacked(labels, logits[: len(labels)]).tolist() == [0.25] * 4
    upside_down = np.sign(logits[:, :1]) * [[-1.0, -2.0]]
    assert stacked(logits[:, 0] > 0, upside_down).tolist() == [0.5, 0.5]
