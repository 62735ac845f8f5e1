"""Seeds that are drawn once and passed on, so that a recomputation sees the same mask."""

from __future__ import annotations

import tensorflow as tf


def draw_seed() -> tf.Tensor:
    """Draw an int32 ``[2]`` seed for stateless operations.

    Follows ``tf.random.set_seed``. To be called outside any recomputed function: a
    second draw gives a second mask, and so a wrong gradient.
    """
    limits = tf.int32.limits
    return tf.random.uniform([2], minval=limits[0], maxval=limits[1], dtype=tf.int32)


def seed_of_step(seed: int, step: tf.Tensor | tf.Variable) -> tf.Tensor:
    """The ``[2]`` seed of a training step on this replica.

    It depends on nothing but these: a resumed run goes on with the masks that it would have
    drawn, and no two replicas draw the same.

    Args:
      seed: of the run.
      step: integer scalar.
    """
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    start = tf.constant([seed % 2**31, 0], tf.int32)
    own = tf.random.experimental.stateless_fold_in(start, tf.cast(step, tf.int32))
    return tf.random.experimental.stateless_fold_in(own, tf.cast(replica, tf.int32))


def fold_in(seed: tf.Tensor | None, index: int) -> tf.Tensor | None:
    """Derive the seed of part ``index`` from ``seed``; ``None`` stays ``None``."""
    if seed is None:
        return None
    return tf.random.experimental.stateless_fold_in(seed, index)


def seed_for(training: bool | None, dropout: float, seed: tf.Tensor | None) -> tf.Tensor | None:
    """The seed to use in this call: ``None`` where nothing is dropped.

    Raises:
      ValueError: the seed given is not of shape ``[2]``.
    """
    if not training or dropout == 0.0:
        return None
    if seed is None:
        return draw_seed()
    seed = tf.convert_to_tensor(seed)
    if seed.shape.rank != 1 or seed.shape[0] not in (None, 2) or not seed.dtype.is_integer:
        raise ValueError(
            "Dropout requires a `seed` of shape [2] and an integer dtype, "
            f"but received shape {seed.shape} and dtype {seed.dtype.name}."
        )
    return seed


def check_rate(layer: str, dropout: float) -> float:
    """Return ``dropout`` as a float; raise ``ValueError`` unless it lies in [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{layer} requires `dropout` in [0, 1), but received {dropout!r}.")
    return float(dropout)
