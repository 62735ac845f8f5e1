"""What boosted trees read of a batch (`model.trees`)."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from recsys.packing import Packing
from recsys.spec.records import Spec
from recsys.spec.schema import tree_inputs

MISSING = -1.0e9
"""Stands for a missing number, where its buckets tell that it is."""


class TreeInputs:
    """One float32 column for each input of `recsys.spec.schema.tree_inputs`.

    Ids are their number, which by vocabulary is the rank by frequency, and by quantiles that
    of the bucket (0 where missing). A piecewise encoding is how many bins the number fills.

    Args:
        spec: The spec.
    """

    def __init__(self, spec: Spec) -> None:
        packing, pairs = Packing.of(spec), tree_inputs(spec)
        fields = {field.name: field for field in (*packing.ids, *packing.numbers)}
        self._ids = [fields[item.name].start for item, _ in pairs if item.kind == "id"]
        self._numbers = [
            (fields[item.name], fields[bucket.name].start if bucket else None)
            for item, bucket in pairs
            if item.kind != "id"
        ]

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self._ids) + len(self._numbers)

    def __call__(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Columns, float32 [batch, width], of a packed batch."""
        ids = tf.gather(batch["ids"], tf.constant(self._ids, tf.int32), axis=1)
        columns = [tf.cast(ids, tf.float32)]
        for field, bucket in self._numbers:
            values = batch["numbers"][:, field.start : field.start + field.length]
            if field.input.kind == "numbers":
                # Full bins and the one in part, added once: the same to the last bit whatever
                # the order in which a sum is taken, for a threshold may lie on a value.
                full = values >= 1.0
                part = tf.reduce_max(tf.where(full, 0.0, values), axis=1, keepdims=True)
                whole = tf.reduce_sum(tf.cast(full, tf.float32), axis=1, keepdims=True)
                values = whole + part
            if bucket is not None:
                missing = batch["ids"][:, bucket, tf.newaxis] == 0
                values = tf.where(missing, MISSING, values)
            columns.append(values)
        return tf.concat(columns, axis=1)
