"""Correction for negative down-sampling."""

import numpy as np
import pytest
import tensorflow as tf

from recsys.losses import correct_logit, sampled_logit


def test_equals_the_formula_of_he() -> None:
    p, rate = np.array([0.1, 0.5, 0.9]), 0.05
    corrected = tf.sigmoid(correct_logit(tf.constant(np.log(p / (1 - p))), rate))
    np.testing.assert_allclose(corrected, p / (p + (1 - p) / rate), rtol=1e-12)


def test_inverse_dtype_and_identity() -> None:
    x = tf.constant([-1e4, 0.0, 1e4], tf.float16)
    assert correct_logit(x, 0.1).dtype == tf.float16
    np.testing.assert_array_equal(correct_logit(x, 1.0), x)
    y = tf.constant([0.3, -2.0])
    np.testing.assert_allclose(correct_logit(sampled_logit(y, 0.1), 0.1), y, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.1])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="negative_rate"):
        correct_logit(tf.zeros([1]), rate)
