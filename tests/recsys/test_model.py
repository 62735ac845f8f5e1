"""The model on the shipped specs, shrunk: every switch trains, saves, loads, predicts the same."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from recsys.layers import PLE, GatedDense, GatedTower, LocalSelfAttention, TargetAttention
from recsys.layers.randomness import seed_of_step
from recsys.losses import TaskLoss, binary_cross_entropy, listwise_ratio, pairwise_ratio
from recsys.model import _LossScale, build, task_loss
from recsys.network import Network
from recsys.outputs import Outputs, probabilities
from recsys.packing import Packing
from recsys.spec import Spec, load, loads
from recsys.spec.records import (
    Balancing,
    Bce,
    ColumnLabel,
    Focal,
    HistoryAttention,
    Huber,
    Mmoe,
    Ple,
    Ranking,
    SharedBottom,
    SquaredError,
    Task,
)
from recsys.spec.schema import model_inputs

pytestmark = pytest.mark.long

SPECS = Path(__file__).parents[2] / "infra" / "specs"
ROWS = 40

TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "joint": ({"loss": Bce()}, {"loss": Focal(alpha=0.4, gamma=2.0), "space": "joint"}),
    "ranked": (
        {"loss": Focal(gamma=1.0), "ranking": Ranking(kind="pairwise", weight=0.5)},
        {
            "loss": Bce(label_smoothing=0.1),
            "space": "observed",
            "inverse_propensity": True,
            "ranking": Ranking(kind="listwise", weight=0.5),
        },
    ),
    "regression": ({"loss": Bce()}, {"loss": Huber(log=True), "space": "entire"}),
}

SWITCHES: dict[str, list[Any]] = {
    "balancing": ["fixed", "uncertainty", "gradnorm", "dwa", "pcgrad"],
    "sharing": [SharedBottom(), Mmoe(experts=2), Ple()],
    "precision": ["float32", "mixed_bfloat16", "mixed_float16"],
    "tasks": list(TASKS),
    "recompute": [False, True],
}


def covering(switches: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Few combinations in which every two values of different switches meet (greedy)."""
    names = list(switches)
    missing = {
        (a, i, b, j)
        for x, a in enumerate(names)
        for b in names[x + 1 :]
        for i in range(len(switches[a]))
        for j in range(len(switches[b]))
    }
    every = list(product(*(range(len(switches[name])) for name in names)))
    chosen = []
    while missing:

        def pairs(row: tuple[int, ...]) -> set[tuple[str, int, str, int]]:
            return {
                (names[x], row[x], names[y], row[y])
                for x in range(len(names))
                for y in range(x + 1, len(names))
            }

        best = max(every, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        chosen.append({name: switches[name][i] for name, i in zip(names, best, strict=True)})
    return chosen


COMBINATIONS = covering(SWITCHES)


def tables_of(spec: Spec) -> dict[str, int]:
    return {str(field.input.table): ROWS for field in Packing.of(spec).ids}


def batch_of(spec: Spec, rows: int = 64, seed: int = 0) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    packing = Packing.of(spec)
    ids = rng.integers(-1, ROWS, (rows, packing.ids_width)).astype(np.int32)
    for field in packing.ids:
        if field.input.kind == "id":
            ids[:, field.start] = np.abs(ids[:, field.start])
    click = (rng.random(rows) < 0.5).astype(np.float32)
    labels = np.tile(click[:, None], (1, len(spec.tasks)))
    labels[:, 1:] *= (rng.random((rows, len(spec.tasks) - 1)) < 0.5).astype(np.float32)
    return {
        "ids": tf.constant(ids),
        "numbers": tf.constant(rng.normal(size=(rows, packing.numbers_width)), tf.float32),
        "labels": tf.constant(labels),
        "groups": tf.constant(rng.integers(0, rows // 4, rows), tf.int64),
        "weights": tf.ones([rows]),
    }


def with_switches(spec: Spec, switches: dict[str, Any]) -> Spec:
    tasks = tuple(
        task.model_copy(update=update)
        for task, update in zip(spec.tasks, TASKS[switches["tasks"]], strict=True)
    )
    balancing = spec.train.balancing.model_copy(update={"kind": switches["balancing"]})
    keys = spec.data.keys.model_copy(update={"request": "request"})
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"keys": keys}),
            "tasks": tasks,
            "model": spec.model.model_copy(
                update={name: switches[name] for name in ("sharing", "recompute")}
            ),
            "train": spec.train.model_copy(
                update={
                    "balancing": balancing,
                    "precision": switches["precision"],
                    # Far from the reach of 20 steps at the default rate. A squared error has no
                    # bound on its slope, and overshoots at so high a one.
                    "table_learning_rate": 0.05 if switches["tasks"] == "regression" else 0.5,
                    "dense_learning_rate": 0.01,
                }
            ),
        }
    )


def name_of(switches: dict[str, Any]) -> str:
    return "-".join(str(getattr(value, "kind", value)) for value in switches.values())


@pytest.mark.parametrize("switches", COMBINATIONS, ids=name_of)
def test_every_switch_trains_saves_loads_and_predicts_the_same(
    switches: dict[str, Any], tmp_path: Path
) -> None:
    spec = with_switches(load(SPECS / "kuairand.yaml").shrunk(), switches)
    model = build(spec, tables_of(spec))
    batch = batch_of(spec)
    dataset = tf.data.Dataset.from_tensors(batch).repeat(20)
    before = float(model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"])
    history = model.fit(dataset, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    after = float(model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"])
    assert after < before

    network = model.networks[0]
    inputs = {
        name: tf_keras.Input(batch[name].shape[1:], dtype=batch[name].dtype, name=name)
        for name in ("ids", "numbers")
    }
    tf_keras.Model(inputs, network(inputs)).save(tmp_path / "network.keras")
    loaded = tf_keras.models.load_model(tmp_path / "network.keras")
    features = {name: batch[name] for name in inputs}
    np.testing.assert_array_equal(loaded(features), network(features))


def test_the_covering_set_covers() -> None:
    for (a, left), (b, right) in product(SWITCHES.items(), SWITCHES.items()):
        if a < b:
            met = {(str(row[a]), str(row[b])) for row in COMBINATIONS}
            assert met == set(product(map(str, left), map(str, right)))


EVERY_ENCODING = """
name: every
data:
  impressions: log.csv
  keys: {user: user, item: item, request: request}
  time: {column: ts, unit: s}
  split: {test: 0.1}
features:
- {name: user, owner: user, encode: {kind: hash, buckets: 39, hashes: 2}}
- {name: item, owner: item, encode: vocabulary, table: items}
- {name: small, owner: item, encode: vocabulary, dim: 2}
- {name: tags, owner: item, encode: {kind: vocabulary, max_length: 3, combiner: sum}}
- {name: words, owner: item, encode: {kind: hash, buckets: 39, hashes: 3, max_length: 2}}
- {name: price, owner: item, encode: numeric}
- {name: bucket, owner: item, column: price, encode: quantiles}
- {name: curve, owner: item, column: price, encode: {kind: piecewise, bins: 5}}
- {name: past, owner: user, encode: {kind: history, of: item, max_length: 7}}
- {name: position, owner: context, encode: vocabulary}
tasks:
- {name: click, label: {column: c}}
- {name: buy, label: {column: b}, given: click, space: observed, inverse_propensity: true}
- {name: value, label: {column: v}, given: click, loss: {kind: huber, log: true}}
model:
  dim: 4
  shared: [8]
  towers: [8]
  interactions: [fm, cross, dot, match]
"""


@pytest.mark.parametrize("reading", ["mean", "target", "local"])
def test_every_encoding_and_interaction_learns(reading: str) -> None:
    spec = loads(EVERY_ENCODING)
    model_part = spec.model.model_copy(update={"history": HistoryAttention(kind=reading, window=4)})
    spec = spec.model_copy(update={"model": model_part})
    model = build(spec, tables_of(spec))
    batch = batch_of(spec)
    dataset = tf.data.Dataset.from_tensors(batch).repeat(10)
    before = model.test_step(batch)
    model.fit(dataset, verbose=0)
    after = model.test_step(batch)
    assert all(after[name] < before[name] for name in ("loss", "loss/click", "loss/buy"))


def test_pcgrad_projects_all_that_tasks_share_in_a_network_and_nothing_else() -> None:
    spec = with_switches(
        load(SPECS / "kuairand.yaml").shrunk(),
        {
            "balancing": "pcgrad",
            "sharing": Ple(),
            "precision": "float32",
            "tasks": "joint",
            "recompute": False,
        },
    )
    members = spec.model.model_copy(update={"members": 2})
    spec = spec.model_copy(update={"model": members})
    model = build(spec, tables_of(spec))
    batch, variables = batch_of(spec), model.trainable_variables
    # Unlike at the start: zeros at the first order, and heads that point in any direction.
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(3), verbose=0)
    seed = tf.constant([1, 2])

    def losses_of(tape: tf.GradientTape) -> dict[str, tf.Tensor]:
        with tape:
            return model.task_losses(batch, model.member_logits(batch, True, seed))

    by_task = []
    for task in spec.tasks:
        tape = tf.GradientTape()
        loss = losses_of(tape)[task.name]
        by_task.append(
            [
                g if g is None else tf.convert_to_tensor(g).numpy()
                for g in tape.gradient(loss, variables)
            ]
        )
    tape = tf.GradientTape(persistent=True)
    losses = losses_of(tape)
    found, logs = model.balancer.gradients(losses, tape, model.shared_variables(), variables)
    own = ("first_order", "number_weights", "tower_", "head_")
    projected, squares = [], 0.0
    for network in model.networks:
        inside = {variable.ref() for variable in network.trainable_variables}
        both = [
            k
            for k, variable in enumerate(variables)
            if variable.ref() in inside
            and not any(word in variable.name for word in own)
            and all(gradients[k] is not None for gradients in by_task)
        ]
        assert any("fused_table" in variables[k].name for k in both)
        a, b = (np.concatenate([gradients[k].ravel() for k in both]) for gradients in by_task)
        along = min(0.0, a @ b)
        expected = a - along / (b @ b) * b + b - along / (a @ a) * a
        got = np.concatenate([tf.convert_to_tensor(found[k]).numpy().ravel() for k in both])
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())
        projected += both
        squares += a @ a
    np.testing.assert_allclose(logs["gradient_norm/click"], np.sqrt(squares), rtol=1e-4)
    for k in set(range(len(variables))) - set(projected):
        total = sum(g[k] for g in by_task if g[k] is not None)
        np.testing.assert_allclose(tf.convert_to_tensor(found[k]), total, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("sharing", "towers"), [(SharedBottom(), 1), (Ple(), 2), (Mmoe(experts=3), 3)]
)
def test_gradnorm_measures_the_last_shared_layer_whatever_its_width(sharing, towers) -> None:
    spec = loads(EVERY_ENCODING)
    train = spec.train.model_copy(update={"balancing": Balancing(kind="gradnorm")})
    network = spec.model.model_copy(update={"shared": (8, 8), "sharing": sharing, "members": 2})
    model = build(spec.model_copy(update={"model": network, "train": train}), tables_of(spec))
    shared = model.shared_variables()
    assert len(shared) == 2
    for variables in shared:
        assert len(variables) == 2 * towers  # a kernel and a bias
        assert all("block_1" in variable.name for variable in variables)


def test_every_step_drops_other_units() -> None:
    seeds = [tuple(seed_of_step(seed, step).numpy()) for seed in (0, 2**40) for step in range(50)]
    assert len(set(seeds)) == 50 and seeds[:50] == seeds[50:]
    assert not set(seeds) & {tuple(seed_of_step(1, step).numpy()) for step in range(50)}
    spec = loads(EVERY_ENCODING)
    changed = spec.model.model_copy(update={"dropout": 0.5})
    spec = spec.model_copy(update={"model": changed})

    def loss(step: int) -> float:
        model = build(spec, tables_of(spec))
        model.optimizer.iterations.assign(step)
        return float(model.train_step(batch_of(spec))["loss"])

    first = loss(0)
    assert loss(1) != first and loss(0) == first


@pytest.mark.parametrize("combiner", ["mean", "sum"])
def test_the_parts_of_a_list_count_by_their_weights(combiner: str) -> None:
    listed = f"max_length: 3, weights: shares, combiner: {combiner}"
    text = EVERY_ENCODING.replace("max_length: 3, combiner: sum", listed)
    spec, plain = loads(text), loads(EVERY_ENCODING)
    (name,) = {item.name for item in model_inputs(spec)} - {i.name for i in model_inputs(plain)}
    network = Network(spec, tables_of(spec))
    packing = network.packing
    batch = dict(batch_of(spec))
    listed = next(f for f in packing.ids if f.name == name.removesuffix("_weights"))
    weights = next(f for f in packing.numbers if f.name == name)
    ids, numbers = batch["ids"].numpy(), batch["numbers"].numpy()
    ids[:, listed.start : listed.start + 3] = [1, 2, -1]
    others = ids.copy()

    def pooled(row: list[float], ids: np.ndarray = ids) -> np.ndarray:
        numbers[:, weights.start : weights.start + 3] = row
        at = network._embedded().index(listed.name)
        return network.embed(tf.constant(ids), tf.constant(numbers), False)[0][:, at].numpy()

    first, second = pooled([1, 0, 9]), pooled([0, 1, 9])
    others[:, listed.start : listed.start + 3] = [1, -1, -1]
    alone = {"mean": 1, "sum": 5}[combiner] * first
    np.testing.assert_allclose(pooled([5, 1, 1], others), alone, atol=1e-7)
    assert np.abs(first - second).max() > 1e-4
    total = {"mean": 4, "sum": 1}[combiner]
    np.testing.assert_allclose(pooled([3, 1, 9]), (3 * first + second) / total, atol=1e-6)
    np.testing.assert_allclose(pooled([0, 0, 9]), 0.0, atol=1e-7)
    # The weights of a list are no numbers of the item.
    network(batch)
    assert len(network._numbers) == len(Network(plain, tables_of(plain))._numbers)


def test_members_drop_other_units_than_one_another() -> None:
    spec = loads(EVERY_ENCODING + "  dropout: 0.5\n  members: 2\n")
    model, batch = build(spec, tables_of(spec)), batch_of(spec)
    first, second = model.networks
    second.set_weights(first.get_weights())
    for seed, alike in ((None, True), (tf.constant([1, 2]), False)):
        one, other = model.member_logits(batch, seed is not None, seed)
        assert np.allclose(one, other, atol=1e-6) is alike


def test_embedding_dropout_drops_its_share_by_the_seed() -> None:
    spec = loads(EVERY_ENCODING + "  embedding_dropout: 0.25\n")
    network, batch = Network(spec, tables_of(spec)), batch_of(spec)
    network(batch)
    embeddings = tf.random.stateless_normal([64, 9, 4], [5, 6])
    assert network.embed(batch["ids"], batch["numbers"], False)[0].shape == embeddings.shape
    dense = batch["numbers"][:, :1]

    def dropped(training: bool, *seed: int) -> np.ndarray:
        """Where the logits do not depend on the embeddings."""
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            logits = network.read(embeddings, dense, tf.constant(seed), training)
        return tape.gradient(logits, embeddings).numpy() == 0

    one, again, other = dropped(True, 1, 2), dropped(True, 1, 2), dropped(True, 1, 3)
    # A quarter of 2304 numbers, give or take three deviations of 0.009.
    assert one.mean() == pytest.approx(0.25, abs=0.027)
    np.testing.assert_array_equal(one, again)
    # Both drop a number at a chance of 1/16.
    assert (one & other).mean() == pytest.approx(1 / 16, abs=0.02)
    assert not dropped(False, 1, 2).any()


PAST = "- {name: past, owner: user, encode: {kind: history, of: item, max_length: 7}}\n"


@pytest.mark.parametrize(("without", "user"), [("", 8), (PAST, 5)])
def test_sides_are_matched_by_attributes_or_where_there_are_none_by_the_id(
    without: str, user: int
) -> None:
    spec = loads(EVERY_ENCODING.replace(without, ""))
    network = Network(spec, tables_of(spec))
    batch = batch_of(spec)
    logits = network(batch).numpy()
    embeddings = network.embed(batch["ids"], batch["numbers"], False)[0].numpy()
    # By width, then as in the spec: item, bucket, position; small; curve; user, tags, words, past.
    item = embeddings[:, [1, 3, 4, 6, 7]].sum(axis=1)
    # The price is a number of the item: its value times its vector.
    item += batch["numbers"].numpy()[:, :1] * network.number_factors.numpy()
    for kernel in network.match.kernels:
        kernel.assign(tf.zeros_like(kernel))
    matched = logits - network(batch).numpy()
    expected = (embeddings[:, user] * item).sum(axis=1, keepdims=True)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(matched, np.tile(expected, [1, 3]), atol=1e-6)


def test_a_number_has_a_first_order_weight_of_each_task() -> None:
    spec = loads(EVERY_ENCODING)
    network = Network(spec, tables_of(spec))
    batch = batch_of(spec)
    logits = network(batch).numpy()
    network.number_weights.assign([[1.0, 0.0, -2.0]])
    price = batch["numbers"].numpy()[:, :1]
    np.testing.assert_allclose(network(batch) - logits, price * [[1, 0, -2]], atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_first_order_weights_read_numbers_in_full_precision(precision: str) -> None:
    """33.3 is 33.31 in float16 and 33.25 in bfloat16."""
    spec = loads(EVERY_ENCODING)
    network = Network(spec, tables_of(spec), dtype=precision)
    batch = {name: value[:2] for name, value in batch_of(spec).items()}
    price = np.array([[33.3], [-33.3]], np.float32)
    batch["numbers"] = tf.concat([price, batch["numbers"][:, 1:]], axis=1)
    logits = network(batch).numpy()
    network.number_weights.assign([[1.0, 0.0, -2.0]])
    np.testing.assert_allclose(network(batch) - logits, price * [[1, 0, -2]], atol=1e-3)


@pytest.mark.parametrize("section", ["{first_order: false}", "{interactions: [fm]}"])
def test_numbers_have_only_the_weights_that_are_used(section: str) -> None:
    text = EVERY_ENCODING[: EVERY_ENCODING.index("model:")] + f"model: {section}\n"
    network = Network(loads(text), tables_of(loads(text)))
    network(batch_of(loads(text)))
    assert network.number_factors is None
    assert (network.number_weights is None) == ("first_order" in section)


def test_a_number_learned_by_its_logarithm_is_answered_as_itself() -> None:
    text = EVERY_ENCODING.replace("{column: v}, given: click", "{column: v}")
    spec = loads(text + "train: {dense_learning_rate: 0.02}\n")
    model = build(spec, tables_of(spec))
    batch = batch_of(spec)
    labels = tf.concat([batch["labels"][:, :2], tf.fill([64, 1], 5000.0)], axis=1)
    model.fit(tf.data.Dataset.from_tensors(batch | {"labels": labels}).repeat(300), verbose=0)
    answers = Outputs(spec)(model.predict_logits(batch))
    assert float(tf.reduce_mean(answers["value"])) == pytest.approx(5000.0, rel=0.1)


@pytest.mark.parametrize("switch", ["recompute", "gated"])
@pytest.mark.parametrize("on", [False, True])
def test_a_switch_of_the_model_reaches_every_layer_that_has_it(switch: str, on: bool) -> None:
    spec = loads(EVERY_ENCODING)
    model = spec.model.model_copy(
        update={"history": HistoryAttention(kind="local", window=4), "sharing": Ple(), switch: on}
    )
    spec = spec.model_copy(update={"model": model})
    network = Network(spec, tables_of(spec))
    # What mixes experts is a plain dense layer, whatever the experts are.
    parts = [part for part in network.submodules if "_gate" not in str(getattr(part, "name", ""))]
    found = {type(part) for part in parts if getattr(part, switch, None) is on}
    others = [part for part in parts if getattr(part, switch, None) is (not on)]
    towers = {GatedTower, PLE}
    expected = {
        "recompute": towers | {TargetAttention, LocalSelfAttention},
        "gated": towers | {GatedDense},
    }
    assert found == expected[switch] and others == []


def test_each_feature_reaches_the_logits() -> None:
    """Changing one input alone changes the answer; nothing is wired past the network."""
    spec = loads(EVERY_ENCODING)
    model = build(spec, tables_of(spec))
    batch = dict(batch_of(spec, rows=32))
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(10), verbose=0)
    base = model.predict_logits(batch).numpy()
    for matrix, fields in (("ids", model.packing.ids), ("numbers", model.packing.numbers)):
        for field in fields:
            changed = batch[matrix].numpy().copy()
            part = changed[:, field.start : field.start + field.length]
            part[:] = (np.maximum(part, 0) + 7) % ROWS if matrix == "ids" else part + 3.0
            moved = np.abs(model.predict_logits({**batch, matrix: changed}).numpy() - base).max()
            assert moved > 1e-6, field.name


def test_position_counts_in_training_and_is_neutral_in_serving() -> None:
    spec = loads(EVERY_ENCODING.replace("  dim: 4", "  dim: 4\n  position: position"))
    model = build(spec, tables_of(spec))
    batch = dict(batch_of(spec))
    place = next(f.start for f in model.packing.ids if f.name == "position")
    ids = batch["ids"].numpy().copy()
    # Position 1 is always clicked, position 2 never, and nothing else tells.
    ids[:, place] = np.where(batch["labels"].numpy()[:, 0] > 0, 1, 2)
    batch["ids"] = tf.constant(ids)
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(40), verbose=0)
    swapped = ids.copy()
    swapped[:, place] = 3 - ids[:, place]
    other = {**batch, "ids": tf.constant(swapped)}
    np.testing.assert_array_equal(model.predict_logits(batch), model.predict_logits(other))
    trained = model.call(batch, training=True) - model.call(other, training=True)
    assert (np.sign(trained[:, 0]) == np.where(ids[:, place] == 1, 1, -1)).all()


def test_a_history_of_hashed_items_tells_its_items_apart() -> None:
    text = EVERY_ENCODING.replace(
        "owner: item, encode: vocabulary, table: items",
        "owner: item, encode: {kind: hash, buckets: 39, hashes: 2}, table: items",
    )
    assert text != EVERY_ENCODING
    spec = loads(text)
    model = build(spec, tables_of(spec))
    batch = {name: tf.repeat(value[:1], 3, axis=0) for name, value in batch_of(spec).items()}
    field = next(f for f in model.packing.ids if f.input.combiner == "history")
    ids = batch["ids"].numpy().copy()
    ids[:, field.start : field.start + field.length] = -1
    # Ids as the feature job writes them: far beyond the rows of the table.
    for row, past in enumerate(([1_234_567_890, 777_777], [99_999, 2_000_000_000], [-1, -1])):
        ids[row, field.start : field.start + 2] = past
    logits = model.predict_logits({**batch, "ids": tf.constant(ids)}).numpy()
    assert np.abs(np.diff(logits[:, 0])).min() > 1e-7


@pytest.mark.parametrize("members", [1, 3])
def test_a_step_reports_the_mean_loss_of_the_members(members: int) -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    network = spec.model.model_copy(update={"members": members, "dropout": 0.0})
    train = spec.train.model_copy(update={"balancing": Balancing(kind="uncertainty")})
    spec = spec.model_copy(update={"model": network, "train": train})
    model, batch = build(spec, tables_of(spec)), batch_of(spec)
    expected = {name: float(value) for name, value in model.test_step(batch).items()}
    found = model.train_step(batch)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name


def test_each_member_learns_as_it_would_alone() -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    train = spec.train.model_copy(update={"table_learning_rate": 0.5})
    models = []
    for members in (2, 1):
        part = spec.model.model_copy(update={"members": members, "dropout": 0.0})
        kind = spec.model_copy(update={"model": part, "train": train})
        models.append(build(kind, tables_of(kind)))
    both, alone = models
    alone.networks[0].set_weights(both.networks[1].get_weights())
    start = both.networks[1].get_weights()
    for _ in range(2):
        for model in models:
            model.train_step(batch_of(spec))
    ends = [model.networks[-1].get_weights() for model in models]
    for before, left, right in zip(start, *ends, strict=True):
        np.testing.assert_allclose(left - before, right - before, rtol=1e-3, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(start, ends[0], strict=True)) > 0.05


LABEL = ColumnLabel(column="c")


@pytest.mark.parametrize(
    ("of_spec", "expected"),
    [
        (
            {
                "loss": Bce(label_smoothing=0.1),
                "weight": 0.5,
                "ranking": Ranking(kind="pairwise", weight=0.3),
            },
            {
                "loss": "bce",
                "label_smoothing": 0.1,
                "weight": 0.5,
                "ranking": "pairwise",
                "ranking_weight": 0.3,
            },
        ),
        (
            {
                "loss": Focal(alpha=0.25, gamma=2.0, label_smoothing=0.2),
                "given": "before",
                "space": "observed",
                "inverse_propensity": True,
            },
            {
                "loss": "focal",
                "alpha": 0.25,
                "gamma": 2.0,
                "label_smoothing": 0.2,
                "given": "before",
                "space": "observed",
                "inverse_propensity": True,
            },
        ),
        # What the spec leaves out: focal loss of gamma 1, over the entire space.
        ({"given": "before"}, {"loss": "focal", "gamma": 1.0, "space": "entire"}),
        (
            {"given": "before", "space": "joint", "ranking": Ranking(kind="listwise")},
            {"loss": "focal", "gamma": 1.0, "space": "joint", "ranking": "listwise"},
        ),
        (
            {"loss": Huber(delta=2.5, log=True), "given": "before"},
            {"loss": "huber", "huber_delta": 2.5, "log": True},
        ),
        ({"loss": Huber()}, {"loss": "huber", "huber_delta": 1.0}),
        ({"loss": SquaredError(log=True)}, {"loss": "mse", "log": True}),
        ({"loss": SquaredError(), "weight": 3.0}, {"loss": "mse", "weight": 3.0}),
    ],
)
def test_a_task_is_trained_by_the_loss_that_the_spec_says(
    of_spec: dict[str, Any], expected: dict[str, Any]
) -> None:
    task = Task(name="a", label=LABEL, **of_spec)
    assert task_loss(task) == TaskLoss("a", **{"given": of_spec.get("given"), **expected})


@pytest.mark.parametrize(
    ("kind", "ratio"), [("pairwise", pairwise_ratio), ("listwise", listwise_ratio)]
)
def test_a_ranking_loss_is_added_and_trained(kind: str, ratio: Any) -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    ranking = Ranking(kind=kind, weight=0.25)
    click = spec.tasks[0].model_copy(update={"loss": Bce(), "ranking": ranking})
    part = spec.model.model_copy(update={"members": 1, "dropout": 0.0})
    train = spec.train.model_copy(update={"table_learning_rate": 0.5})
    spec = spec.model_copy(
        update={"tasks": (click, *spec.tasks[1:]), "model": part, "train": train}
    )
    model, batch = build(spec, tables_of(spec)), batch_of(spec)
    labels = batch["labels"][:, 0]

    def parts() -> tuple[float, float]:
        logits = model.predict_logits(batch)[:, 0]
        rows = tf.reduce_mean(binary_cross_entropy(labels, logits))
        ranked = ratio(labels, logits, batch["groups"])
        return float(rows), float(ranked.total / ranked.weight)

    rows, ranked = parts()
    found = model.train_step(batch)
    assert float(found["loss/click"]) == pytest.approx(rows + 0.25 * ranked, rel=1e-4)
    for _ in range(5):
        model.train_step(batch)
    assert parts()[1] < ranked - 0.01


def test_the_loss_reported_weighs_the_tasks_as_the_spec_does() -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    factors = [2.0, 0.5, 3.0][: len(spec.tasks)]
    tasks = tuple(
        task.model_copy(update={"weight": factor})
        for task, factor in zip(spec.tasks, factors, strict=True)
    )
    spec = spec.model_copy(update={"tasks": tasks})
    model = build(spec, tables_of(spec))
    found = {name: float(value) for name, value in model.test_step(batch_of(spec)).items()}
    expected = sum(task.weight * found[f"loss/{task.name}"] for task in tasks)
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["loss"] != pytest.approx(sum(found.values()) - found["loss"], rel=0.01)


def test_compiled_by_xla_it_learns_the_same() -> None:
    losses = []
    for xla in (False, True):
        spec = loads(EVERY_ENCODING + f"  xla: {str(xla).lower()}\n")
        model, batch = build(spec, tables_of(spec)), batch_of(spec)
        dense = tf.function(model.networks[0]).get_concrete_function(batch, training=True)
        assert ("_XlaMustCompile" in str(dense.graph.as_graph_def())) is xla
        data = tf.data.Dataset.from_tensors(batch).repeat(5)
        steps = model.fit(data, verbose=0)
        after = model.evaluate(data.take(1), verbose=0, return_dict=True)
        losses.append([steps.history["loss"][0], *after.values()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_while_without() -> None:
    scale = _LossScale(8.0, growth_steps=2)
    rows = tf.IndexedSlices(tf.constant([[16.0]]), tf.constant([1]), tf.constant([3, 1]))

    def step(value: float) -> tuple[float, float]:
        """The gradient without the scale, and the next scale."""
        dense, none, sparse = scale.unscale([tf.constant([value]), None, rows])
        assert none is None and sparse.indices.numpy().tolist() == [1]
        # Where one gradient overflows, all of them are left out.
        assert float(sparse.values[0, 0]) == (16.0 / before if np.isfinite(value) else 0.0)
        return float(dense[0]), float(scale.value())

    expected = [
        (16.0, 2.0, 8.0),
        (16.0, 2.0, 16.0),  # the second in a row
        (16.0, 1.0, 16.0),
        (np.inf, 0.0, 8.0),
        (16.0, 2.0, 8.0),  # counted anew
        (np.nan, 0.0, 4.0),
        (16.0, 4.0, 4.0),
        (16.0, 4.0, 8.0),
    ]
    for value, unscaled, after in expected:
        before = float(scale.value())
        assert step(value) == (unscaled, after)


@pytest.mark.parametrize(("start", "value"), [(2.0**24, 1.0), (1.0, np.inf)])
def test_the_loss_scale_has_a_ceiling_and_a_floor(start: float, value: float) -> None:
    scale = _LossScale(start, growth_steps=1)
    scale.unscale([tf.constant([value])])
    assert float(scale.value()) == start


def test_regressions_alone_are_ranked_by_their_mean() -> None:
    text = EVERY_ENCODING[: EVERY_ENCODING.index("tasks:")]
    text += """tasks:
- {name: a, label: {column: a}, loss: {kind: mse}}
- {name: b, label: {column: b}, loss: {kind: mse}}
"""
    spec = loads(text)
    logits = np.array([[1.0, 3.0], [0.0, -4.0]], np.float32)
    np.testing.assert_allclose(probabilities(spec, logits)["score"], [2.0, -2.0])
    np.testing.assert_allclose(Outputs(spec)(tf.constant(logits))["score"], [2.0, -2.0])


def test_outputs_are_the_funnel_product_in_numpy_and_in_graph() -> None:
    spec = loads(EVERY_ENCODING)
    logits = np.array([[0.0, np.log(3.0), np.log(5.0)], [-1e4, 1e4, 0.0]], np.float32)
    answers = probabilities(spec, logits)
    np.testing.assert_allclose(answers["click"], [0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(answers["buy_given_click"], [0.75, 1.0])
    np.testing.assert_allclose(answers["buy"], [0.375, 0.0], atol=1e-12)
    # expm1(log 5) = 4 given a click, which has a chance of one half.
    np.testing.assert_allclose(answers["value"], [2.0, 0.0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(answers["score"], [(0.5 + 0.375) / 2, 0.0], rtol=1e-6, atol=1e-12)
    graph = tf.function(Outputs(spec))(tf.constant(logits))
    assert set(graph) == set(answers)
    for name, values in answers.items():
        np.testing.assert_allclose(graph[name], values, rtol=1e-5, atol=1e-6)


def test_an_answer_by_logarithm_is_never_infinite() -> None:
    spec = loads(EVERY_ENCODING)
    logits = np.array([[50.0, 50.0, 800.0]], np.float32)
    for answers in (probabilities(spec, logits), Outputs(spec)(tf.constant(logits))):
        assert np.isfinite(float(answers["value"][0])) and answers["value"][0] > 1e34


def test_a_joint_head_answers_for_both_and_never_more_than_its_parent() -> None:
    text = EVERY_ENCODING.replace("space: observed, inverse_propensity: true", "space: joint")
    spec = loads(text.replace("{column: v}, given: click", "{column: v}, given: buy"))
    # p(click) of one half, and p(click and buy) of a fifth; then heads that disagree; then none.
    logits = [
        [0.0, np.log(1 / 4), np.log(5.0)],
        [0.0, np.log(3.0), np.log(5.0)],
        [-1e4, 1e4, np.log(5.0)],
    ]
    answers = probabilities(spec, np.array(logits, np.float32))
    np.testing.assert_allclose(answers["buy"], [0.2, 0.5, 0.0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(answers["buy_given_click"], [0.4, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(answers["value"], [0.8, 2.0, 0.0], rtol=1e-6, atol=1e-12)
    graph = tf.function(Outputs(spec))(tf.constant(logits, tf.float32))
    for name, values in answers.items():
        np.testing.assert_allclose(graph[name], values, rtol=1e-5, atol=1e-6)


def test_same_seed_same_model() -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    batch = batch_of(spec)
    first, second = (build(spec, tables_of(spec)) for _ in range(2))
    for model in (first, second):
        model.fit(tf.data.Dataset.from_tensors(batch).repeat(3), verbose=0)
    np.testing.assert_allclose(
        first.predict_logits(batch), second.predict_logits(batch), rtol=0, atol=1e-6
    )


def test_rows_of_weight_zero_do_not_count() -> None:
    spec = load(SPECS / "world.yaml").shrunk()
    batch = batch_of(spec, rows=8)
    poisoned = dict(batch)
    poisoned["weights"] = tf.concat([tf.ones([4]), tf.zeros([4])], 0)
    kept = {name: value[:4] for name, value in batch.items()}
    model = build(spec, tables_of(spec))
    a = model.evaluate(tf.data.Dataset.from_tensors(poisoned), verbose=0, return_dict=True)
    b = model.evaluate(tf.data.Dataset.from_tensors(kept), verbose=0, return_dict=True)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_missing_table_is_named() -> None:
    spec = load(SPECS / "world.yaml")
    with pytest.raises(ValueError, match="'item_id'"):
        Network(spec, {"user_id": 3})


def test_rates_and_accumulators_follow_the_spec() -> None:
    """A tenth of the steps warm up at most; accumulators count squared gradients of one row."""
    world = load(SPECS / "world.yaml").shrunk()
    spec = world.model_copy(
        update={
            "train": world.train.model_copy(
                update={"batch_size": 64, "warmup_steps": 50, "table_initial_accumulator": 2.0}
            )
        }
    )
    model = build(spec, tables_of(spec), steps=100)
    dense, tables, first = model.optimizer.optimizers
    assert dense.learning_rate.warmup_steps == 10
    assert dense.learning_rate.peak == spec.train.dense_learning_rate
    assert tables.learning_rate.peak == spec.train.table_learning_rate
    assert tables.initial_accumulator_value == 2.0 / 64**2
    assert first.initial_accumulator_value == 200.0 / 64**2


def test_kinds_of_networks_differ_as_their_variants_say_and_count_by_weight() -> None:
    spec = loads(
        EVERY_ENCODING + "  dropout: 0.5\n  members: 2\n"
        "  variants: [{shared: [6], dropout: 0.0}, {members: 1, embedding_dropout: 0.25}]\n"
    )
    # Five networks take long to trace, by their features.
    spec = spec.model_copy(update={"features": spec.features[:3]})
    model = build(spec, tables_of(spec))
    parts = [n.spec.model for n in model.networks]
    assert [p.dropout for p in parts] == [0.5, 0.5, 0.0, 0.0, 0.5]
    assert [p.shared for p in parts] == [(8,), (8,), (6,), (6,), (8,)]
    assert [p.embedding_dropout for p in parts] == [0.0] * 4 + [0.25]
    batch = batch_of(spec)
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(3), verbose=0)
    alone = np.stack([network(batch).numpy() for network in model.networks])
    kinds = np.stack([alone[:2].mean(axis=0), alone[2:4].mean(axis=0), alone[4]])
    np.testing.assert_allclose(model.predict_logits(batch), kinds.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model.predict_kinds(batch), kinds.transpose(1, 0, 2), atol=1e-5)
    model.kind_weights.assign([[1.0, 0.0, 0.5], [0.0, 0.0, 0.25], [0.0, 1.0, 0.25]])
    expected = [kinds[0, :, 0], kinds[2, :, 1], kinds[0, :, 2] / 2 + kinds[1:, :, 2].sum(0) / 4]
    np.testing.assert_allclose(model.predict_logits(batch), np.stack(expected, 1), atol=1e-5)
