"""Ranking losses within groups: the impressions of one request, say.

A pair or a list is not a row, so these reduce themselves to a total and the weight that it is
divided by.
"""

from __future__ import annotations

import tensorflow as tf

from recsys.losses.numeric import Ratio, check_same_shape, to_compute_dtype


def _observed(
    labels: tf.Tensor, logits: tf.Tensor, groups: tf.Tensor, sample_weight: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Rows with a label and a weight, with their groups renumbered 0, 1, ... and their weights."""
    logits = to_compute_dtype(logits)
    labels = tf.cast(labels, logits.dtype)
    groups = tf.convert_to_tensor(groups)
    weights = tf.ones_like(labels) if sample_weight is None else sample_weight
    weights = tf.cast(weights, logits.dtype)
    for other in (labels, groups, weights):
        check_same_shape(other, logits)
    rows = tf.where(~tf.math.is_nan(labels) & (weights != 0))[:, 0]
    index = tf.unique(tf.gather(groups, rows), out_idx=tf.int64).idx
    return tf.gather(labels, rows), tf.gather(logits, rows), index, tf.gather(weights, rows)


def _groups_of(index: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.concat([index, [-1]], axis=0)) + 1


def pairwise_ratio(
    labels: tf.Tensor,
    logits: tf.Tensor,
    groups: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
) -> Ratio:
    """Sum of log(1 + exp(x_j - x_i)) over a group's pairs with label_i > label_j, and its weight.

    The loss is their quotient, a mean over pairs: RankNet (Burges et al. 2005) with the order of
    labels as target, which for one positive and one sampled negative is BPR (Rendle et al. 2009).
    Only pairs within groups are built: memory is the sum, over rows above their group's lowest
    label, of the group's size. It is batch squared only if the batch is one group. A group
    with one row, or with all labels equal, has no pair; with no pair at all both numbers
    are 0 with zero gradients. Rows with a NaN label are left out. Shapes depend on the
    data, so this does not compile under XLA.

    Args:
        labels: [batch] relevance, any numeric dtype.
        logits: [batch] float scores.
        groups: [batch] integer (or string) ids; equal ids form a group.
        sample_weight: [batch] or None; a row of weight w counts as w rows like it, so a
            pair has the product of its two.

    Returns:
        Two scalars, float32 (float64 if logits are).

    >>> x = tf.constant([2.0, 0.0, 5.0])
    >>> total, weight = pairwise_ratio(tf.constant([1, 0, 1]), x, tf.constant([7, 7, 8]))
    >>> round(float(total / weight), 4)  # log(1 + e^-2)
    0.1269
    """
    y, x, index, w = _observed(labels, logits, groups, sample_weight)
    order = tf.argsort(index, stable=True)
    y, x, index, w = (tf.gather(v, order) for v in (y, x, index, w))
    n_groups = _groups_of(index)
    sizes = tf.math.bincount(tf.cast(index, tf.int32), minlength=tf.cast(n_groups, tf.int32))
    sizes = tf.cast(sizes, tf.int64)
    starts = tf.cumsum(sizes, exclusive=True)
    lowest = tf.math.unsorted_segment_min(y, index, n_groups)
    upper = tf.where(y > tf.gather(lowest, index))[:, 0]  # rows that can win a pair
    per_row = tf.gather(sizes, tf.gather(index, upper))
    i = tf.repeat(upper, per_row)
    within = tf.range(tf.size(i, tf.int64)) - tf.repeat(tf.cumsum(per_row, exclusive=True), per_row)
    j = tf.gather(starts, tf.gather(index, i)) + within
    both = tf.gather(w, i) * tf.gather(w, j)
    weight = tf.where(tf.gather(y, i) > tf.gather(y, j), both, 0.0)
    pair_loss = tf.math.softplus(tf.gather(x, j) - tf.gather(x, i))
    return Ratio(tf.reduce_sum(weight * pair_loss), tf.reduce_sum(weight))


def listwise_ratio(
    labels: tf.Tensor,
    logits: tf.Tensor,
    groups: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
) -> Ratio:
    """Softmax cross-entropy summed over groups (ListNet's top-one form), and their weight.

    The loss is their quotient, a mean over groups. A group's own is -sum_i t_i log softmax(x)_i
    over its rows, with t the labels divided by their sum (Cao et al. 2007). Groups with one row or
    without a positive label are left out; if none is left both numbers are 0 with zero gradients.
    Memory is linear in the batch. Rows with a NaN label or a weight of 0 are left out.

    Args:
        labels: [batch] relevance, at least 0.
        logits: [batch] float scores.
        groups: [batch] integer (or string) ids; equal ids form a group.
        sample_weight: [batch] or None; within its group a row of weight w counts as w rows
            like it, in the softmax's sum as well. A group counts as much as the mean weight
            of its positives.

    Returns:
        Two scalars, float32 (float64 if logits are).

    >>> x = tf.constant([2.0, 0.0])
    >>> total, weight = listwise_ratio(tf.constant([1, 0]), x, tf.constant([7, 7]))
    >>> round(float(total / weight), 4)  # -log(e^2 / (e^2 + 1))
    0.1269
    """
    y, x, index, w = _observed(labels, logits, groups, sample_weight)
    n = _groups_of(index)

    def total(values: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, index, n)

    peak = tf.stop_gradient(tf.math.unsorted_segment_max(x, index, n))
    x = x - tf.gather(peak, index)
    log_softmax = x - tf.gather(tf.math.log(total(w * tf.math.exp(x))), index)
    label_sum = total(y)
    used = (label_sum > 0) & (total(tf.ones_like(y)) > 1)
    target = tf.math.divide_no_nan(y, tf.gather(label_sum, index))
    target = w * tf.where(tf.gather(used, index), target, tf.zeros_like(target))
    return Ratio(-tf.reduce_sum(target * log_softmax), tf.reduce_sum(target))
