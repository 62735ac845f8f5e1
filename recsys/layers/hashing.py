"""Rows of a bounded table for ids without bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from recsys.layers.checks import require_positive
from recsys.splitmix import FACTORS, mixed


def hash_rows(ids: Any, buckets: int, hashes: int = 2, salt: int = 0) -> tf.Tensor:
    """Map each id to ``hashes`` rows; its embedding is the sum of those rows.

    Two ids share an embedding only if all their rows agree, so ``hashes`` rows out of
    ``buckets`` tell about ``buckets ** hashes`` ids apart (multi-hash embeddings:
    Svenstrup et al. 2017, https://arxiv.org/abs/1709.03933). The rows depend on the
    arguments alone: no state, the same on every machine.

    Args:
      ids: int32 or int64, any shape. A negative one is padding and gives -1 for all of its rows.
      buckets: rows of the table.
      hashes: rows an id.
      salt: sets apart features that share a table.

    Returns:
      int32 ``[..., hashes]``, each -1 or in ``[0, buckets)``.

    Raises:
      ValueError: ``ids`` that are no integers, or a number below 1.

    >>> rows = hash_rows(tf.constant([7, -1, 7]), buckets=100, hashes=2)
    >>> bool(tf.reduce_all(rows[0] == rows[2])), rows[1].numpy().tolist()
    (True, [-1, -1])
    """
    buckets = require_positive("hash_rows", "buckets", buckets)
    hashes = require_positive("hash_rows", "hashes", hashes)
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise ValueError(f"hash_rows requires integer `ids`, but received dtype {ids.dtype.name}.")
    padding = ids < 0
    key = tf.bitcast(tf.cast(ids, tf.int64), tf.uint64)
    rows = []
    for index in range(hashes):
        start = mixed(np.zeros(1, np.uint64), salt * hashes + index + 1)[0]
        spread = _mix(key ^ tf.constant(start, tf.uint64))
        # The upper 63 bits, as a signed integer: modulo has kernels for that everywhere.
        positive = tf.bitcast(tf.bitwise.right_shift(spread, tf.constant(1, tf.uint64)), tf.int64)
        rows.append(tf.where(padding, tf.constant(-1, tf.int64), positive % buckets))
    return tf.cast(tf.stack(rows, axis=-1), tf.int32)


def _mix(z: tf.Tensor) -> tf.Tensor:
    """As `mixed` without a seed, of tensors."""
    shift = tf.bitwise.right_shift
    z = (z ^ shift(z, tf.constant(30, tf.uint64))) * tf.constant(FACTORS[0], tf.uint64)
    z = (z ^ shift(z, tf.constant(27, tf.uint64))) * tf.constant(FACTORS[1], tf.uint64)
    return z ^ shift(z, tf.constant(31, tf.uint64))
