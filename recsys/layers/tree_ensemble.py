"""Boosted trees that were fitted elsewhere, evaluated by matrix products in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from recsys.layers.checks import require_floating, require_positive, require_rank

GROUP = 64
"""Trees that are evaluated at once: what lies between takes 4 * GROUP * leaves bytes a row."""


@dataclass(frozen=True)
class Node:
    """A leaf with a value, or a split with the numbers of its two children."""

    is_leaf: bool
    value: float = 0.0
    feature: int = 0
    threshold: float = 0.0
    left: int = 0
    right: int = 0


@dataclass(frozen=True)
class Forest:
    """The trees of one task, `splits` and `leaves` of each, padded to those of the largest.

    Attributes:
        feature: int32 [trees, splits], the column that a split reads.
        threshold: float32 [trees, splits]; a row goes left where its number is at most this.
        path: float32 [trees, leaves, splits]: 1 where the leaf lies left of the split, -1 where
            right of it, 0 where the split is not on the leaf's path.
        turns: float32 [trees, leaves], how many left turns lead to the leaf; -1 for none.
        value: float32 [trees, leaves], what a leaf adds to the logit.
        base: The logit before any tree.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    path: NDArray[np.float32]
    turns: NDArray[np.float32]
    value: NDArray[np.float32]
    base: float

    @property
    def trees(self) -> int:
        """How many trees there are."""
        return len(self.value)

    @classmethod
    def empty(cls, leaves: int) -> Forest:
        """No trees, and a logit of 0."""
        return cls.of([], leaves, 0.0)

    @classmethod
    def of(cls, trees: Sequence[Sequence[Node]], leaves: int, base: float) -> Forest:
        """A forest of binary trees.

        Args:
            trees: The nodes of each tree, the root first.
            leaves: The most leaves that a tree may have, at least 2.
            base: The logit before any tree.
        """
        count, splits = len(trees), leaves - 1
        feature = np.zeros((count, splits), np.int32)
        threshold = np.zeros((count, splits), np.float32)
        path = np.zeros((count, leaves, splits), np.float32)
        turns = np.full((count, leaves), -1.0, np.float32)
        value = np.zeros((count, leaves), np.float32)
        for tree, nodes in enumerate(trees):
            leaf = split = 0
            ahead: list[tuple[int, list[tuple[int, float]]]] = [(0, [])]
            while ahead:
                at, way = ahead.pop()
                node = nodes[at]
                if node.is_leaf:
                    for on, turn in way:
                        path[tree, leaf, on] = turn
                    turns[tree, leaf] = sum(turn > 0 for _, turn in way)
                    value[tree, leaf] = node.value
                    leaf += 1
                    continue
                feature[tree, split] = node.feature
                threshold[tree, split] = _at_most(node.threshold)
                ahead += [
                    (node.left, [*way, (split, 1.0)]),
                    (node.right, [*way, (split, -1.0)]),
                ]
                split += 1
        return cls(feature, threshold, path, turns, value, float(base))


def _at_most(threshold: float) -> np.float32:
    """The largest float32 that is not above: float32 numbers compare with both alike."""
    near = np.float32(threshold)
    return near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))


@tf_keras.utils.register_keras_serializable(package="recsys")
class TreeEnsemble(tf_keras.layers.Layer):
    """Sums of decision trees, one sum a task: what gradient boosting has fitted.

    Every split of every tree is decided at once, and the leaf that a row reaches is the one
    for which all splits on its path went its way, which a product with the paths tells (the
    `GEMM` strategy of Nakandala et al., A Tensor Compiler for Unified Machine Learning Prediction
    Serving, 2020). Nothing here is trained by gradients, and none flows through.

    Args:
      trees: the number of trees of each task.
      leaves: the most leaves that a tree has, at least 2.

    Input: float32 ``[batch, columns]``. NaN goes right at every split.
    Output: float32 ``[batch, tasks]``, zeros until `assign`.

    Raises:
      ValueError: an input that is not a floating-point matrix, or arguments out of range.

    >>> stump = [Node(False, feature=0, threshold=0.5, left=1, right=2),
    ...          Node(True, value=-1.0), Node(True, value=2.0)]
    >>> layer = TreeEnsemble([1], leaves=2)
    >>> layer.assign([Forest.of([stump], leaves=2, base=0.25)])
    >>> layer(tf.constant([[0.5], [0.6]])).numpy().tolist()
    [[-0.75], [2.25]]
    """

    def __init__(self, trees: Sequence[int], leaves: int, **kwargs: Any) -> None:
        # Sums of many leaves, and thresholds that numbers equal, take all of float32.
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        self.tree_counts = tuple(int(count) for count in trees)
        if not self.tree_counts or min(self.tree_counts) < 0:
            raise ValueError(
                "TreeEnsemble requires the number of trees of each task, at least 0 each, but "
                f"received {trees}."
            )
        self.leaves = require_positive("TreeEnsemble", "leaves", leaves)
        if leaves < 2:
            raise ValueError(f"TreeEnsemble requires `leaves` of at least 2, received {leaves}.")

    def build(self, input_shape: Any) -> None:
        splits, leaves = self.leaves - 1, self.leaves

        def weight(name: str, *shape: int, dtype: str = "float32") -> tf.Variable:
            return self.add_weight(
                name, shape=shape, dtype=dtype, initializer="zeros", trainable=False
            )

        self.base = weight("base", len(self.tree_counts))
        self.groups = [
            [
                (
                    weight(f"feature_{task}_{start}", count, splits, dtype="int32"),
                    weight(f"threshold_{task}_{start}", count, splits),
                    weight(f"path_{task}_{start}", count, leaves, splits),
                    weight(f"turns_{task}_{start}", count, leaves),
                    weight(f"value_{task}_{start}", count, leaves),
                )
                for start, count in _parts(trees)
            ]
            for task, trees in enumerate(self.tree_counts)
        ]
        super().build(input_shape)

    def assign(self, forests: Sequence[Forest]) -> None:
        """Take over the trees of each task.

        Raises:
          ValueError: forests of other numbers of trees, or leaves, than the layer has.
        """
        found = tuple(forest.trees for forest in forests)
        if found != self.tree_counts:
            raise ValueError(f"TreeEnsemble has {self.tree_counts} trees, received {found}.")
        if not self.built:
            self.build(None)
        self.base.assign([forest.base for forest in forests])
        for forest, groups in zip(forests, self.groups, strict=True):
            for (start, count), weights in zip(_parts(forest.trees), groups, strict=True):
                arrays = (
                    forest.feature,
                    forest.threshold,
                    forest.path,
                    forest.turns,
                    forest.value,
                )
                for weight, array in zip(weights, arrays, strict=True):
                    weight.assign(array[start : start + count])

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        inputs = require_floating("TreeEnsemble", "inputs", inputs)
        require_rank("TreeEnsemble", "inputs", inputs.shape, "[batch, columns]")
        columns = tf.transpose(inputs)
        rows = tf.shape(inputs)[0]
        logits = []
        for groups in self.groups:
            parts = [_evaluate(columns, *group) for group in groups]
            logits.append(tf.add_n(parts) if parts else tf.zeros([rows]))
        return tf.stack(logits, axis=1) + self.base

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "trees": list(self.tree_counts), "leaves": self.leaves}


def _parts(trees: int) -> list[tuple[int, int]]:
    """First tree and number of trees of each group."""
    return [(start, min(GROUP, trees - start)) for start in range(0, trees, GROUP)]


def _evaluate(
    columns: tf.Tensor,
    feature: tf.Tensor,
    threshold: tf.Tensor,
    path: tf.Tensor,
    turns: tf.Tensor,
    value: tf.Tensor,
) -> tf.Tensor:
    """The sum over a group's trees, [rows], of `columns` [columns, rows]."""
    # Gathered by whole columns: [trees, splits, rows].
    left = tf.gather(columns, feature) <= threshold[:, :, tf.newaxis]
    taken = tf.matmul(path, tf.cast(left, tf.float32))
    reached = tf.cast(tf.equal(taken, turns[:, :, tf.newaxis]), tf.float32)
    flat = tf.reshape(reached, [-1, tf.shape(columns)[1]])
    return tf.matmul(tf.reshape(value, [1, -1]), flat)[0]
