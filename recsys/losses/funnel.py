"""Log-probabilities of a funnel: the product of a chain of conditional sigmoids."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from recsys.losses.numeric import LN2, log_sigmoid, to_compute_dtype


def funnel_log_probs(chain_logits: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return log p and log(1 - p) of p = sigmoid(x_1) sigmoid(x_2) ... sigmoid(x_n).

    With x_1 the click logit and x_2 the logit of conversion given click, p is the
    probability of click *and* conversion over all impressions (CTCVR of ESMM, Ma et
    al. 2018, https://arxiv.org/abs/1804.07931).

    log p is a sum of log-sigmoids. For 1 - p there are two exact forms, each good
    where the other is not. Below p = 1/2, log1p(-exp(log p)). Above it, the chance
    to leave the funnel at some stage,
    1 - p = sum_k sigmoid(-x_k) prod_{j<k} sigmoid(x_j), as a log-sum-exp: it stays
    finite when every sigmoid rounds to one. Both forms, and their gradients, are
    finite for logits of plus and minus 1e4.

    Args:
        chain_logits: at least one float tensor, all of one shape, first stage first.

    Returns:
        (log_p, log_1mp), each of that shape, float32 (float64 if given float64).

    Raises:
        ValueError: if the chain is empty.

    >>> log_p, log_1mp = funnel_log_probs([tf.constant([0.0]), tf.constant([0.0])])
    >>> tf.exp(log_p).numpy().round(4).tolist(), tf.exp(log_1mp).numpy().round(4).tolist()
    ([0.25], [0.75])
    """
    if not chain_logits:
        raise ValueError("chain_logits must hold at least one stage; received none.")
    stages = [to_compute_dtype(x) for x in chain_logits]
    log_p = log_sigmoid(stages[0])
    if len(stages) == 1:
        return log_p, log_sigmoid(-stages[0])
    leave = [log_sigmoid(-stages[0])]
    for x in stages[1:]:
        leave.append(log_p + log_sigmoid(-x))
        log_p = log_p + log_sigmoid(x)
    above_half = log_p > -LN2
    exact_above = tf.reduce_logsumexp(tf.stack(leave, axis=-1), axis=-1)
    # log1p sees a harmless input where it is not taken, or its gradient there is NaN.
    safe = tf.where(above_half, tf.fill(tf.shape(log_p), tf.cast(-LN2, log_p.dtype)), log_p)
    exact_below = tf.math.log1p(-tf.math.exp(safe))
    return log_p, tf.where(above_half, exact_above, exact_below)
