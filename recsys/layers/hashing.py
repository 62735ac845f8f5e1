"""Rows of a bounded table for ids without bound."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from recsys.layers.checks import require_positive

# Odd multipliers and the golden-ratio step of SplitMix64 (Steele et al. 2014).
_STEP = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def hash_rows(ids: Any, buckets: int, hashes: int = 2, salt: int = 0) -> tf.Tensor:
    """Map each id to ``hashes`` rows; its embedding is the sum of those rows.

    Two ids share an embedding only if all their rows agree, so ``hashes`` rows out of
    ``buckets`` tell about ``buckets ** hashes`` ids apart (multi-hash embeddings:
    Svenstrup et al. 2017, https://arxiv.org/abs/1709.03933). The rows depend on the
    arguments alone: no state, the same on every machine.

    Args:
      ids: int32, int64 or string, any shape. A negative integer, or an empty string, is
        padding and gives -1 for all of its rows.
      buckets: rows of the table.
      hashes: rows an id.
      salt: sets apart features that share a table.

    Returns:
      int32 ``[..., hashes]``, each -1 or in ``[0, buckets)``.

    Raises:
      ValueError: ``ids`` that are neither integers nor strings, or a number below 1.

    >>> rows = hash_rows(tf.constant([7, -1, 7]), buckets=100, hashes=2)
    >>> bool(tf.reduce_all(rows[0] == rows[2])), rows[1].numpy().tolist()
    (True, [-1, -1])
    """
    buckets = require_positive("hash_rows", "buckets", buckets)
    hashes = require_positive("hash_rows", "hashes", hashes)
    ids = tf.convert_to_tensor(ids)
    if ids.dtype == tf.string:
        padding = tf.equal(ids, "")
        ids = tf.strings.to_hash_bucket_fast(ids, (1 << 63) - 1)
    elif ids.dtype.is_integer:
        padding = ids < 0
    else:
        raise ValueError(
            f"hash_rows requires integer or string `ids`, but received dtype {ids.dtype.name}."
        )
    key = tf.bitcast(tf.cast(ids, tf.int64), tf.uint64)
    rows = []
    for index in range(hashes):
        start = (_STEP * (salt * hashes + index + 1)) & _MASK
        mixed = _mix(key ^ tf.constant(_scramble(start), tf.uint64))
        # The upper 63 bits, as a signed integer: modulo has kernels for that everywhere.
        positive = tf.bitcast(tf.bitwise.right_shift(mixed, tf.constant(1, tf.uint64)), tf.int64)
        rows.append(tf.where(padding, tf.constant(-1, tf.int64), positive % buckets))
    return tf.cast(tf.stack(rows, axis=-1), tf.int32)


def _mix(z: tf.Tensor) -> tf.Tensor:
    shift = tf.bitwise.right_shift
    z = (z ^ shift(z, tf.constant(30, tf.uint64))) * tf.constant(_MIX[0], tf.uint64)
    z = (z ^ shift(z, tf.constant(27, tf.uint64))) * tf.constant(_MIX[1], tf.uint64)
    return z ^ shift(z, tf.constant(31, tf.uint64))


def _scramble(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX[0]) & _MASK
    z = ((z ^ (z >> 27)) * _MIX[1]) & _MASK
    return z ^ (z >> 31)
