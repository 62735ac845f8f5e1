"""Trees by matrix products, against trees walked from the root."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.layers import TreeEnsemble
from recsys.layers.tree_ensemble import GROUP, Forest, Node

LEAF = Node(True, value=3.0)
# x0 <= 1 ? (x1 <= -2 ? 10 : 20) : (x1 <= 5 ? 30 : (x0 <= 7 ? 40 : 50))
TREE = [
    Node(False, feature=0, threshold=1.0, left=1, right=2),
    Node(False, feature=1, threshold=-2.0, left=3, right=4),
    Node(False, feature=1, threshold=5.0, left=5, right=6),
    Node(True, value=10.0),
    Node(True, value=20.0),
    Node(True, value=30.0),
    Node(False, feature=0, threshold=7.0, left=7, right=8),
    Node(True, value=40.0),
    Node(True, value=50.0),
]
ROWS = np.array([[1, -2], [1, -1.9], [1.1, 5], [7, 6], [7.1, 6], [9, -9]], np.float32)


def layer_of(*forests: Forest) -> TreeEnsemble:
    layer = TreeEnsemble([f.trees for f in forests], forests[0].value.shape[1])
    layer.assign(forests)
    return layer


def draw_tree(rng: np.random.Generator, leaves: int, columns: int) -> list[Node]:
    """A tree of some shape; thresholds are whole numbers, as the rows are, so that many tie."""
    nodes, open_leaves = [Node(True, value=float(rng.normal()))], [0]
    while len(open_leaves) < leaves:
        at = open_leaves.pop(int(rng.integers(len(open_leaves))))
        left, right = len(nodes), len(nodes) + 1
        nodes[at] = Node(
            False,
            feature=int(rng.integers(columns)),
            threshold=float(rng.integers(-3, 4)),
            left=left,
            right=right,
        )
        nodes += [Node(True, value=float(v)) for v in rng.normal(size=2)]
        open_leaves += [left, right]
    return nodes


def walk(nodes: list[Node], row: np.ndarray) -> float:
    node = nodes[0]
    while not node.is_leaf:
        node = nodes[node.left if row[node.feature] <= node.threshold else node.right]
    return node.value


def test_a_tree_by_hand() -> None:
    layer = layer_of(Forest.of([TREE, [LEAF]], leaves=6, base=0.5), Forest.empty(6))
    found = layer(ROWS)
    np.testing.assert_allclose(found[:, 0], np.array([10, 20, 30, 40, 50, 30]) + 3.5)
    np.testing.assert_array_equal(found[:, 1], np.zeros(6))
    # What is not a number goes right.
    np.testing.assert_allclose(layer(np.full([1, 2], np.nan, np.float32))[:, 0], [53.5])
    np.testing.assert_allclose(layer(np.array([[np.inf, -np.inf]], np.float32))[:, 0], [33.5])


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**31), st.integers(2, 9), st.sampled_from([1, 3, GROUP, GROUP + 1, 2 * GROUP])
)
def test_the_same_as_walking_from_the_root(seed: int, leaves: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [
        [draw_tree(rng, int(rng.integers(1, leaves + 1)), 4) for _ in range(trees)]
        for trees in (count, 2)
    ]
    rows = rng.integers(-3, 4, size=(11, 4)).astype(np.float32)
    expected = [[1.5 + sum(walk(t, row) for t in trees) for trees in tasks] for row in rows]
    layer = layer_of(*(Forest.of(trees, leaves, 1.5) for trees in tasks))
    np.testing.assert_allclose(layer(rows), expected, atol=1e-4)


def test_a_threshold_between_two_float32_numbers_parts_them() -> None:
    low = np.float32(0.1)
    high = np.nextafter(low, np.float32(1))
    for threshold in (float(low), (float(low) + float(high)) / 2, float(high) - 1e-12):
        stump = [Node(False, threshold=threshold, left=1, right=2), LEAF, Node(True, value=4.0)]
        found = layer_of(Forest.of([stump], 2, 0.0))(np.array([[low], [high]]))
        assert found[:, 0].numpy().tolist() == [3.0, 4.0]


@pytest.mark.parametrize("form", ["model.keras", "saved_model"])
def test_eager_graph_and_saved_are_the_same(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    forests = [
        Forest.of([draw_tree(rng, 5, 2) for _ in range(n)], 5, 0.1) for n in (GROUP + 2, 0, 1)
    ]
    layer = layer_of(*forests)
    rows = rng.integers(-3, 4, size=(50, 2)).astype(np.float32)
    expected = layer(rows)
    by_any_batch = tf.function(layer, input_signature=[tf.TensorSpec([None, 2])])
    np.testing.assert_allclose(by_any_batch(rows), expected, atol=1e-6)
    assert by_any_batch(rows[:0]).shape == (0, 3)

    inputs = tf_keras.Input([2])
    model = tf_keras.Model(inputs, layer(inputs))
    assert not model.trainable_variables
    model.save(tmp_path / form)
    loaded = tf_keras.models.load_model(tmp_path / form)
    np.testing.assert_allclose(loaded(rows), expected, atol=1e-6)
    assert loaded.layers[-1].get_config() == layer.get_config()


def test_no_gradient_and_no_less_precision() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    layer, rows = layer_of(Forest.of([TREE], 6, 0.0)), tf.Variable(ROWS)
    with tf.GradientTape() as tape:
        found = layer(rows)
    assert found.dtype == tf.float32 and tape.gradient(found, rows) is None
    # 2049 is no float16.
    stump = [Node(False, threshold=2048.5, left=1, right=2), LEAF, Node(True, value=2049.0)]
    found = layer_of(Forest.of([stump], 2, 0.0))(np.array([[2048.0], [2049.0]], np.float32))
    assert found[:, 0].numpy().tolist() == [3.0, 2049.0]


@pytest.mark.parametrize("bad", [np.ones(3, np.float32), np.ones([3, 2], np.int32)])
def test_inputs_that_are_no_matrix_of_numbers(bad: Any) -> None:
    with pytest.raises(ValueError, match="TreeEnsemble"):
        layer_of(Forest.of([TREE], 6, 0.0))(bad)


def test_arguments_out_of_range() -> None:
    for trees, leaves in (([], 4), ([-1], 4), ([1], 1), ([1], 0)):
        with pytest.raises(ValueError, match="TreeEnsemble requires"):
            TreeEnsemble(trees, leaves)
    with pytest.raises(ValueError, match=r"has \(2,\) trees, received \(1,\)"):
        TreeEnsemble([2], 6).assign([Forest.of([TREE], 6, 0.0)])
