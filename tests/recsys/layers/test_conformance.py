"""What every layer promises: saving, graph mode, gradients, precision, clear errors."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from recsys import layers

pytestmark = pytest.mark.long

TASKS = ("click", "conversion")


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-1, 6, size=shape).astype("int32")


MASK = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


@dataclass
class Case:
    """One layer in one configuration, its arguments, and arguments that it must refuse.

    With each of these goes what the layer says that it requires instead.
    """

    name: str
    make: Callable[..., Any]
    inputs: tuple[Any, ...]
    bad: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    training: bool = False  # whether the call takes `training`
    trained: dict[str, Any] = field(default_factory=dict)  # further arguments in training


SEED = np.array([3, 4], "int32")
BAD_MATRIX = [
    ("`x` of shape", (floats(3),)),
    ("`x` of shape", (floats(3, 4, 4),)),
    ("a floating-point `x`", (np.ones([3, 4], "int32"),)),
]


def bad_cube(name):
    return [
        (f"`{name}` of shape", (floats(3, 4),)),
        (f"a floating-point `{name}`", (np.ones([3, 4, 4], "int32"),)),
    ]


def gated(**kw):
    return layers.GatedTower([5, 4], dropout=0.3, activation="tanh", **kw)


def sharing(kind, **extra):
    return lambda **kw: kind(TASKS, [5, 4], dropout=0.2, activation="tanh", **extra, **kw)


def interactions(**kw):
    return layers.Interactions(["fm", "cross", "dot"], cross_layers=2, cross_projection=3, **kw)


CASES = [
    Case(
        "gated_dense",
        lambda **kw: layers.GatedDense(4, activation="tanh", **kw),
        (floats(3, 5),),
        [
            ("`x` of shape", (floats(3),)),
            ("a floating-point `x`", (np.ones([3, 5], "int32"),)),
        ],
    ),
    Case(
        "gated_dense_cube",
        lambda **kw: layers.GatedDense(4, kernel_initializer="he_normal", **kw),
        (floats(2, 3, 5),),
    ),
    Case("tower", gated, (floats(3, 5),), BAD_MATRIX, True, {"seed": SEED}),
    Case(
        "tower_recomputed",
        lambda **kw: gated(recompute=True, **kw),
        (floats(3, 5),),
        BAD_MATRIX,
        True,
        {"seed": SEED},
    ),
    Case(
        "fm",
        lambda **kw: layers.PairwiseInteraction(**kw),
        (floats(3, 4, 5),),
        bad_cube("embeddings"),
    ),
    Case(
        "fused",
        lambda **kw: layers.FusedEmbedding(
            {"user": 5, "item": 3}, 4, fields=["user", "item", "user"], stddev=1.0, **kw
        ),
        (ids(6, 3),),
        [
            ("an integer `fields`", (floats(6, 3),)),
            ("`fields` of shape", (ids(6),)),
            ("one column for each of its 3 fields", (ids(6, 2),)),
        ],
        True,
    ),
    Case(
        "fused_projected",
        lambda **kw: layers.FusedEmbedding(
            [("z", 5), ("a", 3)],
            4,
            fields=["z", "a"],
            lists={"history": "a"},
            output_dim=6,
            stddev=1.0,
            **kw,
        ),
        ({"fields": ids(3, 2), "lists": {"history": ids(3, 5)}},),
        [
            ("a dictionary with the keys 'fields'", ({"field": ids(3, 2)},)),
            ("lists among ['history']", ({"lists": {"unknown": ids(3, 5)}},)),
        ],
        True,
    ),
    Case(
        "piecewise",
        lambda **kw: layers.PiecewiseLinearEmbedding(4, activation="tanh", **kw),
        (np.clip(floats(3, 2, 5), 0, 1),),
        bad_cube("encodings"),
    ),
    Case(
        "interactions",
        interactions,
        ((floats(3, 4, 2), floats(3, 2)),),
        [
            ("the pair (embeddings, dense)", (floats(3, 4, 2),)),
            ("`embeddings` of shape", ((floats(3, 4), floats(3, 2)),)),
            ("`dense` of shape", ((floats(3, 4, 2), floats(3)),)),
            ("a floating-point `embeddings`", ((np.ones([3, 4, 2], "int32"), floats(3, 2)),)),
        ],
    ),
    Case(
        "match",
        lambda **kw: layers.SideMatch(TASKS, **kw),
        ((floats(3, 4), floats(3, 4)),),
        [
            ("the pair (left, right)", (floats(3, 4),)),
            ("`left` and `right` of one width", ((floats(3, 4), floats(3, 5)),)),
            ("`right` of shape", ((floats(3, 4), floats(3)),)),
            ("a floating-point `left`", ((np.ones([3, 4], "int32"), floats(3, 4)),)),
        ],
    ),
    Case("cross", lambda **kw: layers.CrossNetwork(3, **kw), (floats(3, 4),), BAD_MATRIX),
    Case("dot", lambda **kw: layers.DotProducts(**kw), (floats(3, 4, 2),), bad_cube("embeddings")),
    Case(
        "target",
        lambda **kw: layers.TargetAttention((6, 3), activation="tanh", **kw),
        (floats(3, 4), floats(3, 5, 4), MASK),
        [
            ("`query` of shape", (floats(3), floats(3, 5, 4), MASK)),
            ("`keys` of shape", (floats(3, 4), floats(3, 4), MASK)),
            ("a bool `valid`", (floats(3, 4), floats(3, 5, 4), MASK.astype("int32"))),
            ("a floating-point `query`", (np.ones([3, 4], "int32"), floats(3, 5, 4), MASK)),
        ],
        True,
    ),
    Case(
        "target_recomputed",
        lambda **kw: layers.TargetAttention(activation="sigmoid", recompute=True, **kw),
        (floats(3, 4), floats(3, 5, 4), MASK),
        training=True,
    ),
    Case(
        "local",
        lambda **kw: layers.LocalSelfAttention(heads=2, window=2, **kw),
        (floats(3, 5, 4), MASK),
        [
            ("`x` of shape", (floats(3, 5), MASK)),
            ("`valid` of shape", (floats(3, 5, 4), MASK[0])),
            ("a floating-point `x`", (np.ones([3, 5, 4], "int32"), MASK)),
        ],
        True,
    ),
    Case(
        "local_causal",
        lambda **kw: layers.LocalSelfAttention(
            heads=1, window=3, key_dim=3, causal=True, recompute=True, **kw
        ),
        (floats(3, 5, 4), MASK),
        training=True,
    ),
    Case(
        "shared_bottom",
        sharing(layers.SharedBottom),
        (floats(3, 5),),
        BAD_MATRIX,
        True,
        {"seed": SEED},
    ),
    Case(
        "mmoe", sharing(layers.MMoE, experts=3), (floats(3, 5),), BAD_MATRIX, True, {"seed": SEED}
    ),
    Case(
        "ple",
        sharing(layers.PLE, levels=2, recompute=True),
        (floats(3, 5),),
        BAD_MATRIX,
        True,
        {"seed": SEED},
    ),
    Case(
        "ple_plain",
        sharing(layers.PLE, gated=False),
        (floats(3, 5),),
        training=True,
        trained={"seed": SEED},
    ),
    Case(
        "position",
        lambda **kw: layers.PositionTower(4, TASKS, **kw),
        (np.array([0, 3, -1, 9, 1], "int32"),),
        [
            ("an integer `positions`", (floats(3),)),
            ("`positions` of shape", (ids(3, 2),)),
        ],
        True,
    ),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_case_of_floats = pytest.mark.parametrize(
    "case",
    [case for case in CASES if any(x.dtype == np.float32 for x in tf.nest.flatten(case.inputs))],
    ids=lambda case: case.name,
)


def tensors(value: Any) -> Any:
    return tf.nest.map_structure(tf.constant, value)


def build(case: Case, **kwargs: Any) -> Any:
    """The layer, built, with weights that no initializer leaves at zero."""
    layer = case.make(**kwargs)
    layer(*tensors(case.inputs))
    for index, weight in enumerate(layer.trainable_weights):
        if "logits" in weight.name or "bias" in weight.name:
            noise = np.random.default_rng(index).normal(size=weight.shape)
            weight.assign_add(tf.cast(noise, weight.dtype))
    return layer


def as_model(layer: Any, inputs: tuple[Any, ...]) -> tf_keras.Model:
    keys = tf.nest.map_structure(lambda x: tf_keras.Input(x.shape[1:], dtype=x.dtype), inputs)
    return tf_keras.Model(keys, layer(*keys))


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    tf.nest.assert_same_structure(actual, expected)
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@every_case
def test_graph_mode_gives_the_same(case):
    layer = build(case)
    inputs = tensors(case.inputs)
    assert_same(tf.function(layer)(*inputs), layer(*inputs))
    if case.training:
        run = tf.function(lambda *args: layer(*args, training=True, **case.trained))
        assert_same(run(*inputs), layer(*inputs, training=True, **case.trained))


@every_case
def test_unknown_batch_and_length(case):
    layer = build(case)
    inputs = tensors(case.inputs)
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), inputs)
    assert_same(tf.function(layer, input_signature=spec)(*inputs), layer(*inputs))
    first = tf.nest.map_structure(lambda x: x[:1], inputs)
    none = tf.nest.map_structure(lambda x: x[:0], inputs)
    assert_same(layer(*first), tf.nest.map_structure(lambda x: x[:1], layer(*inputs)), 1e-5)
    assert all(out.shape[0] == 0 for out in tf.nest.flatten(layer(*none)))


@every_case
def test_config_makes_an_equal_layer(case):
    layer = build(case)
    twin = type(layer).from_config(layer.get_config())
    twin(*tensors(case.inputs))
    assert twin.get_config() == layer.get_config()
    twin.set_weights(layer.get_weights())
    assert_same(twin(*tensors(case.inputs)), layer(*tensors(case.inputs)))


@pytest.mark.parametrize("form", ["model.keras", "saved_model"])
@every_case
def test_saved_and_loaded_gives_the_same(case, form, tmp_path):
    model = as_model(build(case), case.inputs)
    model.save(tmp_path / form)
    inputs = tensors(case.inputs)
    expected = model(inputs)
    loaded = tf_keras.models.load_model(tmp_path / form)
    assert_same(loaded(inputs), expected)
    assert type(loaded.layers[-1]) is type(model.layers[-1])
    if form == "saved_model":
        plain = tf.saved_model.load(str(tmp_path / form))
        assert_same(plain(inputs), expected)


@every_case
def test_gradient_against_numeric_differences(case):
    """Directional derivatives of every weight and float input, in float64."""
    tf_keras.backend.set_floatx("float64")
    try:
        layer = build(case, dtype="float64")
    finally:
        tf_keras.backend.set_floatx("float32")
    inputs = tf.nest.map_structure(
        lambda x: tf.Variable(x, dtype=tf.float64) if x.dtype == np.float32 else tf.constant(x),
        case.inputs,
    )
    kwargs = {"training": True, **case.trained} if case.training else {}
    sources = [x for x in tf.nest.flatten(inputs) if x.dtype.is_floating]
    sources += layer.trainable_weights

    def loss() -> tf.Tensor:
        # A fixed, uneven weighing of the outputs: a plain sum would hide permutations.
        values = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        outputs = tf.nest.flatten(layer(*values, **kwargs))
        flat = tf.concat([tf.reshape(out, [-1]) for out in outputs], axis=0)
        assert flat.dtype == tf.float64
        return tf.reduce_sum(flat * tf.sin(tf.cast(tf.range(tf.size(flat)) + 1, tf.float64)))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            value = loss()
        return [tf.convert_to_tensor(g) for g in tape.gradient(value, sources)]

    measure = tf.function(loss)
    rng = np.random.default_rng(0)
    for source, grad in zip(sources, gradients(), strict=True):
        assert np.any(grad), source.name
        start = source.numpy()
        for _ in range(3):
            direction = rng.normal(size=start.shape)
            if "fused_table" in source.name:
                assert not np.any(grad[0])
                direction[0] = 0  # the padding row is read, but by promise never trained
            ends = []
            for sign in (1, -1):
                source.assign(start + sign * 1e-5 * direction)
                ends.append(float(measure()))
            source.assign(start)
            numeric = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(
                np.sum(grad * direction), numeric, rtol=1e-5, atol=1e-7, err_msg=source.name
            )


def with_floats(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The case's arguments, with all that are floats changed."""

    def changed(x: np.ndarray) -> tf.Tensor:
        return tf.constant(change(x).astype("float32") if x.dtype == np.float32 else x)

    return tf.nest.map_structure(changed, case.inputs)


@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
@every_case_of_floats
def test_hostile_numbers_give_finite_answers_and_gradients(case, size):
    layer = build(case)
    inputs = with_floats(case, lambda x: size * np.sign(x))
    kwargs = {"training": True, **case.trained} if case.training else {}
    numbers = [x for x in tf.nest.flatten(inputs) if x.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(numbers)
        outputs = tf.nest.flatten(layer(*inputs, **kwargs))
        total = tf.add_n([tf.reduce_sum(out) for out in outputs])
    assert all(np.isfinite(out).all() for out in outputs)
    for grad in tape.gradient(total, [*numbers, *layer.trainable_weights]):
        assert np.isfinite(tf.convert_to_tensor(grad)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_case_of_floats
def test_a_row_that_is_no_number_spoils_no_other(case, bad):
    layer = build(case)
    inputs = with_floats(case, lambda x: np.concatenate([np.full_like(x[:1], bad), x[1:]]))
    rest = [out[1:] for out in tf.nest.flatten(layer(*tensors(case.inputs)))]
    found = tf.nest.flatten(layer(*inputs))
    assert_same([out[1:] for out in found], rest)
    # Nor is it hidden: training would otherwise go on from a number that means nothing.
    assert not all(np.isfinite(out[0]).all() for out in found)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@every_case
def test_mixed_precision_is_finite_and_near(case, policy):
    exact = build(case)
    layer = case.make(dtype=policy)
    inputs = tensors(case.inputs)
    kwargs = {"training": True} if case.training else {}
    layer(*inputs)
    layer.set_weights(exact.get_weights())
    assert all(weight.dtype == tf.float32 for weight in layer.weights)
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(layer(*inputs, **kwargs))
        total = tf.add_n([tf.reduce_sum(tf.cast(out, tf.float32)) for out in outputs])
    for grad in tape.gradient(total, layer.trainable_weights):
        assert np.all(np.isfinite(tf.convert_to_tensor(grad)))
    for half, full in zip(
        tf.nest.flatten(layer(*inputs)), tf.nest.flatten(exact(*inputs)), strict=True
    ):
        assert half.dtype in (tf.float32, tf.as_dtype(layer.compute_dtype))
        np.testing.assert_allclose(tf.cast(half, tf.float32), full, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@every_case
def test_gradients_of_thousands_of_rows_are_near_in_mixed_precision(case, policy):
    # A sum of rows in half precision stands still once the sum is some hundred times a row.
    rows = len(tf.nest.flatten(tensors(case.inputs))[0])
    inputs = tf.nest.map_structure(
        lambda x: tf.repeat(x, 6000 // rows, axis=0), tensors(case.inputs)
    )
    exact, layer = build(case), case.make(dtype=policy)
    kwargs = {"training": True, **case.trained} if case.training else {}
    found = []
    for each in (exact, layer):
        each(*inputs)
        each.set_weights(exact.get_weights())
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(each(*inputs, **kwargs))
            loss = tf.add_n([tf.reduce_mean(tf.cast(out, tf.float32)) for out in outputs]) * 100
        gradients = tape.gradient(loss, each.trainable_weights)
        found.append([tf.convert_to_tensor(gradient) for gradient in gradients])
    for weight, full, half in zip(exact.trainable_weights, *found, strict=True):
        assert np.any(full), weight.name
        error = np.linalg.norm(half - full) / np.linalg.norm(full)
        assert error < 0.2 or np.linalg.norm(full) < 1e-3, (weight.name, error)


@pytest.mark.parametrize(
    ("case", "required", "arguments"),
    [
        pytest.param(case, *bad, id=f"{case.name}-{index}")
        for case in CASES
        for index, bad in enumerate(case.bad)
    ],
)
def test_wrong_rank_or_dtype_is_refused(case, required, arguments):
    for layer in (case.make(), build(case)):
        with pytest.raises(ValueError, match=re.escape(f"requires {required}")):
            layer(*tensors(arguments))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.GatedDense(0), "`units` of at least 1, but received 0"),
        (lambda: layers.GatedTower([4, -1]), "`units` of at least 1, but received -1"),
        (lambda: layers.GatedTower([4], dropout=1.0), r"`dropout` in \[0, 1\).*received 1.0"),
        (lambda: layers.FusedEmbedding({}, 4), "at least one table"),
        (lambda: layers.FusedEmbedding({"user": 0}, 4), "at least 1, but received 0"),
        (lambda: layers.FusedEmbedding({"user": 3}, 4, fields=["item"]), "asked for 'item'"),
        (lambda: layers.FusedEmbedding({"user": 2**31}, 1), r"fewer than 2\*\*31 rows"),
        (lambda: layers.FusedEmbedding([("user", 3), ("user", 4)], 1), "distinct table names"),
        (lambda: layers.PiecewiseLinearEmbedding(0), "at least 1, but received 0"),
        (lambda: layers.Interactions(["fm", "fm"]), "distinct kinds"),
        (lambda: layers.Interactions(["cube"]), "but received 'cube'"),
        (lambda: layers.CrossNetwork(0), "at least 1, but received 0"),
        (lambda: layers.TargetAttention(()), "at least one hidden width"),
        (lambda: layers.LocalSelfAttention(window=0), "`window` of at least 1, but received 0"),
        (lambda: layers.SharedBottom([], [4]), "SharedBottom requires .*task name"),
        (lambda: layers.MMoE(["click", "click"], [4]), "distinct task names"),
        (lambda: layers.MMoE(["click"], [4], experts=0), "`experts` of at least 1"),
        (lambda: layers.PLE(["click"], [], levels=1), "at least one width in `units`"),
        (lambda: layers.PLE(["click"], [4], levels=0), "`levels` of at least 1"),
        (lambda: layers.PositionTower(3, []), "at least one task name"),
        (lambda: layers.SideMatch([]), "at least one task name"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
