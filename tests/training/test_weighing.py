"""Weights of kinds of networks, by labels whose best answer is known."""

import numpy as np
import pytest

from training.weighing import averaged, stacked


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


def test_one_row_of_a_boundless_logit_does_not_silence_its_model() -> None:
    rng = np.random.default_rng(5)
    parts = rng.normal(size=(4000, 2))
    labels = (rng.random(4000) < 1 / (1 + np.exp(-parts @ [1.5, 0.5]))).astype(float)
    # The row's loss would be 1e4 times the first model's weight; it counts as one of 30.
    parts[np.flatnonzero(labels == 0)[0], 0] = 1e4
    np.testing.assert_allclose(stacked(labels, parts), [0.75, 0.25], atol=0.02)


@pytest.mark.parametrize("unit", [1.0, 3.6e6, 1e-6])
def test_errors_apart_count_by_the_inverse_of_their_squares(unit: float) -> None:
    rng = np.random.default_rng(3)
    labels = rng.exponential(size=100_000)
    errors = rng.normal(size=(100_000, 2)) * [1.0, 2.0]
    labels[::7] = np.nan  # not observed
    found = averaged(unit * labels, unit * (labels[:, np.newaxis] + errors))
    np.testing.assert_allclose(found, [0.8, 0.2], atol=0.01)


def test_a_model_that_errs_as_another_and_more_gets_nothing() -> None:
    rng = np.random.default_rng(4)
    labels, error = rng.normal(size=(2, 1000))
    # Without bounds, twice the first less the second would have no error at all.
    found = averaged(labels, labels[:, np.newaxis] + error[:, np.newaxis] * [1.0, 2.0])
    np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-12)
    right = averaged(labels, np.stack([labels + error, labels], axis=1))
    np.testing.assert_allclose(right, [0.0, 1.0], atol=1e-12)


def test_values_of_no_labels_or_no_error_count_alike() -> None:
    values = np.ones((5, 4))
    for labels in (np.ones(5), np.full(5, np.nan), np.array([])):
        assert averaged(labels, values[: len(labels)]).tolist() == [0.25] * 4
