"""Sums and means over the replicas of all workers, in as few exchanges as they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None


def replica_mean(values: tf.Tensor) -> tf.Tensor:
    """Mean over all replicas of all workers; the value itself outside a strategy.

    State that is updated from such means, and from nothing else, stays equal on all
    replicas.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, values)


def sum_over_replicas(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Each gradient's sum over all replicas, which is the same on each of them.

    Small steps wait for the network's answers and not for its width, so what counts is how many
    exchanges there are. TensorFlow's own sum takes three for each ``tf.IndexedSlices``: lengths,
    indices and values. Here all of them travel in one gathering, whose length goes ahead in an
    exchange of its own, and dense gradients in one sum.

    Args:
      gradients: dense float32, of the same shapes on each replica; or ``tf.IndexedSlices`` of
        float32 values with int32 or int64 indices below 2**31, as many as each replica has. None
        stays None.

    Returns:
      In the same order. Slices are those of all replicas, one after another: an index that
      several have is repeated. With a single replica, the gradients as they are.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(gradients)
    sums = list(gradients)
    dense = [n for n, g in enumerate(sums) if g is not None and not isinstance(g, tf.IndexedSlices)]
    if dense:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, [sums[n] for n in dense])
        for n, value in zip(dense, total, strict=True):
            sums[n] = value
    sparse = [n for n, g in enumerate(sums) if isinstance(g, tf.IndexedSlices)]
    if sparse:
        with tf.name_scope("embedding_exchange"):
            slices = [sums[n] for n in sparse]
            together = context.all_gather(_pack(slices), axis=0)
            joined = _unpack(together, slices, context.num_replicas_in_sync)
        for n, value in zip(sparse, joined, strict=True):
            sums[n] = value
    return sums


def _pack(slices: Sequence[tf.IndexedSlices]) -> tf.Tensor:
    """One float32 vector of what is to be sent: the lengths, all indices, all values.

    Integers are carried as the bits of floats, which nothing on the way computes with.
    """
    lengths = tf.stack([tf.size(each.indices) for each in slices])
    indices = [tf.cast(each.indices, tf.int32) for each in slices]
    numbers = tf.bitcast(tf.concat([lengths, *indices], axis=0), tf.float32)
    return tf.concat([numbers, *(tf.reshape(each.values, [-1]) for each in slices)], axis=0)


def _unpack(
    together: tf.Tensor, slices: Sequence[tf.IndexedSlices], replicas: int
) -> list[tf.IndexedSlices]:
    """The slices of all replicas, from their packed vectors one after another."""
    shapes = [each.values.shape[1:] for each in slices]
    widths = tf.constant([shape.num_elements() for shape in shapes], tf.int32)
    parts: list[list[tf.Tensor]] = []
    end = tf.constant(0)
    for _ in range(replicas):
        start = end + len(slices)
        lengths = tf.bitcast(together[end:start], tf.int32)
        sizes = tf.concat([lengths, lengths * widths], axis=0)
        end = start + tf.reduce_sum(sizes)
        parts.append(tf.split(together[start:end], sizes, num=2 * len(slices)))
    joined = [tf.concat(of_all, axis=0) for of_all in zip(*parts, strict=True)]
    return [
        tf.IndexedSlices(
            tf.reshape(values, [-1, *shape]),
            tf.cast(tf.bitcast(numbers, tf.int32), each.indices.dtype),
            each.dense_shape,
        )
        for each, shape, numbers, values in zip(
            slices, shapes, joined[: len(slices)], joined[len(slices) :], strict=True
        )
    ]
