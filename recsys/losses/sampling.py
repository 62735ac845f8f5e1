"""Corrections for negatives that were thinned out before training."""

from __future__ import annotations

import math

import tensorflow as tf


def _log_rate(negative_rate: float) -> float:
    if not 0.0 < negative_rate <= 1.0:
        raise ValueError(f"negative_rate must lie in (0, 1]; received {negative_rate}.")
    return math.log(negative_rate)


def correct_logit(logits: tf.Tensor, negative_rate: float) -> tf.Tensor:
    """Turn a logit learnt on thinned negatives into one of the full data: x + log(rate).

    He et al. 2014 ("Practical lessons from predicting clicks on ads at Facebook")
    give it for probabilities as q = p / (p + (1 - p) / rate).

    Args:
        logits: float tensor (or array) of any shape.
        negative_rate: share of the negatives that was kept, in (0, 1].

    Returns:
        Logits of the same shape and dtype.

    >>> p = tf.sigmoid(correct_logit(tf.constant(0.0), 0.25))
    >>> round(float(p), 4)  # 0.5 / (0.5 + 0.5 / 0.25)
    0.2
    """
    return logits + _log_rate(negative_rate)


def sampled_logit(logits: tf.Tensor, negative_rate: float) -> tf.Tensor:
    """Inverse of `correct_logit`: the logit that thinned data shows, x - log(rate).

    A loss on this shifted logit teaches the unshifted one the full data's probability,
    so that nothing is left to correct when serving.
    """
    return logits - _log_rate(negative_rate)
