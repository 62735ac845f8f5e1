"""Model inputs packed into two matrices: ids and numbers.

A training step that is fed forty tensors spends more time on handing them over than on
some of its arithmetic. One int32 matrix holds every id (single ids, then padded lists),
one float32 matrix every number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.spec.records import Spec
from recsys.spec.schema import ModelInput, model_inputs


@dataclass(frozen=True)
class Field:
    """Columns `start` to `start + length` of a packed matrix, which hold one model input."""

    name: str
    start: int
    length: int
    input: ModelInput


@dataclass(frozen=True)
class Packing:
    """Where each model input lies in the packed matrices.

    >>> from recsys.spec import loads
    >>> spec = loads('''
    ... name: shop
    ... data: {impressions: log.csv, keys: {user: user, item: item}, split: {test: 0.1}}
    ... features:
    ... - {name: user, owner: user, encode: vocabulary}
    ... - {name: price, owner: item, encode: numeric}
    ... tasks: [{name: click, label: {column: click}}]
    ... ''')
    >>> packed = Packing.of(spec).pack({"user": np.array([3, 1]), "price": np.array([0.5, 2.0])})
    >>> packed["ids"].tolist(), packed["numbers"].tolist()
    ([[3], [1]], [[0.5], [2.0]])
    """

    ids: tuple[Field, ...]
    numbers: tuple[Field, ...]

    @classmethod
    def of(cls, spec: Spec) -> Packing:
        """The packing of a spec's model inputs: single ids first, then lists of ids."""
        inputs = model_inputs(spec)
        ids = sorted((i for i in inputs if i.kind in ("id", "ids")), key=lambda i: i.kind)
        return cls(_layout(ids), _layout([i for i in inputs if i.kind in ("number", "numbers")]))

    @property
    def ids_width(self) -> int:
        """Columns of the matrix of ids."""
        return sum(field.length for field in self.ids)

    @property
    def numbers_width(self) -> int:
        """Columns of the matrix of numbers."""
        return sum(field.length for field in self.numbers)

    def pack(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pack columns, each [rows] or [rows, length], into `ids` int32 and `numbers` float32."""
        rows = len(next(iter(columns.values())))
        packed = {}
        for name, fields, width, dtype in (
            ("ids", self.ids, self.ids_width, np.int32),
            ("numbers", self.numbers, self.numbers_width, np.float32),
        ):
            matrix = np.empty((rows, width), dtype)
            for field in fields:
                matrix[:, field.start : field.start + field.length] = np.reshape(
                    columns[field.name], (rows, field.length)
                )
            packed[name] = matrix
        return packed

    def pack_tensors(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """As `pack`, on tensors, in graph."""
        import tensorflow as tf

        rows = tf.shape(next(iter(columns.values())))[0]
        packed = {}
        for name, fields, dtype in (
            ("ids", self.ids, tf.int32),
            ("numbers", self.numbers, tf.float32),
        ):
            parts = [
                tf.cast(tf.reshape(columns[field.name], [-1, field.length]), dtype)
                for field in fields
            ]
            packed[name] = tf.concat(parts, axis=1) if parts else tf.zeros([rows, 0], dtype)
        return packed


def _layout(inputs: list[ModelInput]) -> tuple[Field, ...]:
    fields, start = [], 0
    for item in inputs:
        fields.append(Field(item.name, start, item.length, item))
        start += item.length
    return tuple(fields)
