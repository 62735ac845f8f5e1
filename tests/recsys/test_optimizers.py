import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from recsys.layers import FusedEmbedding, GatedDense
from recsys.optimizers import (
    DecayedAdam,
    RowAdagrad,
    WarmupDecay,
    create_slots,
    is_table,
    make_optimizer,
    parts,
    sum_repeated,
)


def slices(indices, values, rows=4):
    values = np.asarray(values, "float32")
    return tf.IndexedSlices(
        tf.constant(values), tf.constant(indices), tf.constant([rows, values.shape[1]])
    )


def table(rows=4, dim=2):
    return tf.Variable(np.arange(rows * dim, dtype="float32").reshape(rows, dim), name="table")


class Reference:
    """Row-wise Adagrad in numpy."""

    def __init__(self, weights, rate, start=0.0, epsilon=1e-8):
        self.weights = weights.astype("float64").copy()
        self.total = np.full(len(weights), start)
        self.rate, self.epsilon = rate, epsilon

    def apply(self, indices, values):
        dense = np.zeros_like(self.weights)
        np.add.at(dense, indices, values)
        for row in set(indices):
            self.total[row] += np.mean(dense[row] ** 2)
            root = np.sqrt(self.total[row]) + self.epsilon
            self.weights[row] -= self.rate * dense[row] / root


def test_step_by_hand():
    var = table()
    optimizer = RowAdagrad(0.5, initial_accumulator_value=1.0)
    optimizer.apply_gradients([(slices([2], [[1.0, 7.0]]), var)])
    # 1 + (1 + 49) / 2 = 26; the step is 0.5 * (1, 7) / sqrt(26).
    expected = np.array([4.0, 5.0]) - 0.5 * np.array([1.0, 7.0]) / np.sqrt(26)
    np.testing.assert_allclose(var[2], expected, rtol=1e-6)
    accumulator = optimizer.get_slot(var, "accumulator")
    assert accumulator.shape == (4,)
    np.testing.assert_allclose(accumulator, [1, 1, 26, 1])
    for row in (0, 1, 3):
        np.testing.assert_array_equal(var[row], [2 * row, 2 * row + 1])


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("as_graph", [False, True])
def test_many_steps_equal_numpy(distinct, as_graph):
    rng = np.random.default_rng(0)
    var = tf.Variable(rng.normal(size=(20, 3)).astype("float32"))
    reference = Reference(var.numpy(), 0.1)
    optimizer = RowAdagrad(0.1, distinct_indices=distinct)

    def step(values, indices):
        grad = tf.IndexedSlices(values, indices, tf.constant([20, 3]))
        optimizer.apply_gradients([(grad, var)])

    run = tf.function(step) if as_graph else step
    for _ in range(8):
        indices = rng.choice(20, 6, replace=not distinct)
        values = rng.normal(size=(6, 3)).astype("float32")
        run(tf.constant(values), tf.constant(indices))
        reference.apply(indices, values)
    np.testing.assert_allclose(var, reference.weights, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == 8


def test_repeated_indices_step_as_their_sum():
    repeated, summed = table(), table()
    RowAdagrad(0.1).apply_gradients([(slices([1, 3, 1], [[1, 2], [5, 5], [3, -1]]), repeated)])
    RowAdagrad(0.1).apply_gradients([(slices([1, 3], [[4, 1], [5, 5]]), summed)])
    np.testing.assert_allclose(repeated, summed, rtol=1e-6)


def test_a_dense_gradient_equals_the_sparse_one_of_all_rows():
    dense, sparse = table(), table()
    values = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    RowAdagrad(0.1).apply_gradients([(tf.constant(values), dense)])
    RowAdagrad(0.1).apply_gradients([(slices([0, 1, 2, 3], values), sparse)])
    np.testing.assert_allclose(dense, sparse, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_variables_of_any_rank(shape):
    var = tf.Variable(tf.zeros(shape))
    RowAdagrad(0.5).apply_gradients([(tf.fill(shape, 2.0), var)])
    # From an accumulator of zero, the first step is the learning rate.
    np.testing.assert_allclose(var, np.full(shape, -0.5), rtol=1e-6)


def test_rows_without_gradient_and_zero_gradients_stay():
    var = table()
    RowAdagrad(0.1).apply_gradients([(slices([0, 1], [[0, 0], [1, 1]]), var)])
    np.testing.assert_array_equal(var[0], [0, 1])
    np.testing.assert_array_equal(tf.gather(var, [2, 3]), [[4, 5], [6, 7]])


def test_schedule_moves_the_learning_rate():
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.25])
    optimizer = RowAdagrad(schedule)
    var = tf.Variable([[0.0]])
    optimizer.apply_gradients([(slices([0], [[3.0]], rows=1), var)])
    np.testing.assert_allclose(var, [[-1.0]])
    optimizer.apply_gradients([(slices([0], [[3.0]], rows=1), var)])
    np.testing.assert_allclose(var, [[-1.0 - 0.25 * 3 / np.sqrt(18)]], rtol=1e-6)


def test_config_round_trip():
    optimizer = RowAdagrad(0.3, 0.2, 1e-5, distinct_indices=True, name="Rows")
    config = tf_keras.optimizers.serialize(optimizer)
    twin = tf_keras.optimizers.deserialize(config, use_legacy_optimizer=True)
    assert type(twin) is RowAdagrad
    assert twin.get_config() == optimizer.get_config()
    adam = DecayedAdam(0.1, weight_decay=0.2)
    assert DecayedAdam.from_config(adam.get_config()).get_config() == adam.get_config()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RowAdagrad(initial_accumulator_value=-1),
        lambda: RowAdagrad(epsilon=0.0),
        lambda: DecayedAdam(weight_decay=-0.1),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="requires"):
        make()


REPLICAS = """
import recsys, tensorflow as tf
from recsys.optimizers import RowAdagrad
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    var = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]))
    optimizer = RowAdagrad(0.1, distinct_indices=True)

@tf.function
def step():
    def replica():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        values = (1.0 + 2.0 * tf.cast(number, tf.float32)) * tf.ones([2, 2])
        grad = tf.IndexedSlices(values, tf.constant([1, 2]), tf.constant([4, 2]))
        optimizer.apply_gradients([(grad, var)])
    strategy.run(replica)

step(), step()
for copy in strategy.experimental_local_results(var):
    print(*copy.numpy().ravel().tolist())
"""


def test_replicas_repeat_indices_and_their_gradients_are_summed():
    """Two replicas touch the same rows; the promise of distinct indices is then not relied on.

    In a process of its own, for devices are split before TensorFlow starts.
    """
    run = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, check=True)
    reference = Reference(table().numpy(), 0.1)
    for _ in range(2):
        reference.apply([1, 2], np.full((2, 2), 4.0))  # 1 from one replica, 3 from the other
    copies = [[float(x) for x in line.split()] for line in run.stdout.splitlines()]
    assert len(copies) == 2
    for copy in copies:
        np.testing.assert_allclose(copy, reference.weights.ravel(), rtol=1e-5)


def test_sum_repeated():
    values, indices = sum_repeated(
        tf.constant([[1.0], [2.0], [4.0], [8.0]]), tf.constant([7, 3, 7, 0])
    )
    np.testing.assert_array_equal(indices, [7, 3, 0])
    np.testing.assert_array_equal(values, [[5.0], [2.0], [8.0]])
    values, indices = sum_repeated(tf.constant([[1.0], [2.0]]), tf.constant([7, 3]))
    np.testing.assert_array_equal(indices, [7, 3])
    np.testing.assert_array_equal(values, [[1.0], [2.0]])


class Small(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding = FusedEmbedding({"user": 50}, 4, fields=["user"], stddev=0.5)
        self.head = GatedDense(1)

    def call(self, ids):
        return self.head(self.embedding(ids)[:, 0])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_make_optimizer_by_name(decay):
    model = Small()
    ids = tf.constant([[3], [4], [3]])
    model(ids)
    assert [is_table(v) for v in model.trainable_variables] == [True, False, False]
    optimizer = make_optimizer(
        lambda: model.trainable_variables, 0.5, 0.001, dense_weight_decay=decay
    )
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(ids))
    grads = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    rows, kernel, bias = (
        v.numpy() - b for v, b in zip(model.trainable_variables, before, strict=True)
    )
    touched = np.flatnonzero(np.any(rows != 0, axis=1))
    assert touched.tolist() == [4, 5]  # users 3 and 4, after the padding row
    np.testing.assert_allclose(np.sqrt(np.mean(rows[touched] ** 2, axis=1)), 0.5, rtol=1e-5)

    # Adam's first step is the learning rate, against the gradient, but for epsilon beside the
    # root of a second moment of 0.001 g^2: with a gradient of 0.001, it is 0.3 % short.
    # Decay comes on top, on the matrix and not on the bias.
    def adam(gradient):
        size = np.sqrt(0.001) * np.abs(gradient)
        return -0.001 * np.sign(gradient) * size / (size + 1e-7)

    step = adam(grads[1]) - 0.001 * decay * before[1]
    np.testing.assert_allclose(kernel, step, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(bias, adam(grads[2]), rtol=1e-3, atol=1e-7)
    assert int(optimizer.iterations) == 1
    assert not any(is_table(v) and v.shape.rank == 2 for v in optimizer.optimizers[0].variables())


def test_training_resumes_from_a_checkpoint_with_its_accumulators(tmp_path):
    ids, labels = tf.constant([[3], [4], [7], [3]]), tf.constant([[1.0], [0.0], [1.0], [1.0]])

    def start():
        model = Small()
        model(ids)
        optimizer = make_optimizer(lambda: model.trainable_variables, 0.1, 0.01)
        return model, optimizer

    def train(model, optimizer, steps):
        for _ in range(steps):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(ids) - labels))
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))

    model, optimizer = start()
    train(model, optimizer, 3)
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "c"))
    train(model, optimizer, 3)
    other, other_optimizer = start()
    status = tf.train.Checkpoint(model=other, optimizer=other_optimizer).read(path)
    train(other, other_optimizer, 3)
    status.assert_existing_objects_matched()
    for a, b in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Two steps of warm-up, then the peak of 2 falls to a tenth of it at step 8 and stays.
        ("constant", [1.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear", [1.0, 2 * (0.1 + 0.9 * 7 / 8), 1.1, 0.2, 0.2]),
        ("cosine", [1.0, 2 * (0.1 + 0.45 * (1 + np.cos(np.pi / 8))), 1.1, 0.2, 0.2]),
    ],
)
def test_learning_rates_rise_and_fall(kind, expected):
    schedule = WarmupDecay(2.0, total_steps=8, kind=kind, warmup_steps=2, floor=0.1)
    found = [float(schedule(step)) for step in (0, 1, 4, 8, 99)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    twin = WarmupDecay.from_config(schedule.get_config())
    assert [float(twin(step)) for step in (0, 1, 4, 8, 99)] == found


def test_learning_rates_that_cannot_be():
    with pytest.raises(ValueError, match="linear, cosine or constant"):
        WarmupDecay(1.0, 8, "step")
    with pytest.raises(ValueError, match="at least 1"):
        WarmupDecay(1.0, 0)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("network_0/sharing/kernel", 0.9),
        ("network_0/tower_match/kernel", 0.9),  # of a task with that name
        ("network_0/match/kernel_click", 1.0),
        ("network_0/number_factors", 1.0),
        ("network_0/number_weights", 1.0),
    ],
)
def test_decay_leaves_weights_alone_that_carry_an_effect_of_their_own(name, left):
    weight = tf.Variable(tf.ones([2, 2]), name=name)
    DecayedAdam(0.1, weight_decay=1.0).apply_gradients([(tf.zeros([2, 2]), weight)])
    np.testing.assert_allclose(weight, np.full([2, 2], left), rtol=1e-6)


def test_first_order_weights_start_apart():
    table = tf.Variable(tf.zeros([2, 3]), name="embedding_4/fused_table")
    weights = tf.Variable(tf.zeros([2, 1]), name="first_order/fused_table")
    kernel = tf.Variable(tf.zeros([3, 1]), name="kernel")
    optimizer = make_optimizer(
        lambda: [table, weights, kernel],
        initial_accumulator_value=0.25,
        first_order_initial_accumulator_value=25.0,
    )
    create_slots(optimizer)
    (_, dense), (rows, tables), (first, firsts) = parts(optimizer)
    assert [v.name for v in dense] == ["kernel:0"]
    assert rows.get_slot(tables[0], "accumulator").numpy().tolist() == [0.25, 0.25]
    assert first.get_slot(firsts[0], "accumulator").numpy().tolist() == [25.0, 25.0]


@pytest.mark.parametrize("sparse", [False, True])
def test_moments_that_were_taken_over_are_no_new_ones(sparse):
    rng = np.random.default_rng(0)

    def gradient():
        values = tf.constant(rng.normal(size=(3, 2)), tf.float32)
        return slices([0, 1, 2], values) if sparse else values

    old, new = (tf.Variable(tf.ones([3, 2])) for _ in range(2))
    first, second = DecayedAdam(0.1), DecayedAdam(0.1, past_steps=7)
    for _ in range(7):
        first.apply_gradients([(gradient(), old)])
    second._create_all_weights([new])
    new.assign(old)
    for slot in ("m", "v"):
        second.get_slot(new, slot).assign(first.get_slot(old, slot))
    for _ in range(3):
        step = gradient()
        first.apply_gradients([(step, old)])
        second.apply_gradients([(step, new)])
        np.testing.assert_allclose(new, old, rtol=1e-6)
    assert int(second.iterations) == 3  # by which learning rates go
