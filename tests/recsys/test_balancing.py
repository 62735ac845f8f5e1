"""Balancers: each against a small problem whose answer is computed apart from it.

Run as a script, this file is one worker of the test under MultiWorkerMirroredStrategy.
"""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from cluster import run_workers

from recsys.balancing import BALANCERS, Balancer, make_balancer

KINDS = sorted(BALANCERS)


def linear(balancer: Balancer, directions: dict[str, list[float]], **kwargs):
    """One step on losses <direction, w> + 1 at w = 0: the gradients are the directions."""
    w = tf.Variable(tf.zeros([len(next(iter(directions.values())))]))
    with tf.GradientTape(persistent=balancer.persistent) as tape:
        losses = {k: tf.reduce_sum(w * tf.constant(g)) + 1.0 for k, g in directions.items()}
    (gradient,), logs = balancer.gradients(losses, tape, [[w]], [w], **kwargs)
    return gradient.numpy(), {k: float(v) for k, v in logs.items()}


def constant(balancer: Balancer, values: dict[str, float]):
    """One step on losses value * w, w = 1: loss and gradient are the value."""
    w = tf.Variable([1.0])
    with tf.GradientTape(persistent=balancer.persistent) as tape:
        losses = {k: tf.reduce_sum(w) * v for k, v in values.items()}
    (gradient,), logs = balancer.gradients(losses, tape, [[w]], [w])
    return float(gradient[0]), {k: float(v) for k, v in logs.items()}


class TestFixed:
    def test_is_the_weighted_sum(self) -> None:
        balancer = make_balancer("fixed", ["a", "b"], {"b": 0.5})
        gradient, logs = linear(balancer, {"a": [1.0, 2.0], "b": [4.0, -2.0]})
        np.testing.assert_allclose(gradient, [1 + 2, 2 - 1])
        assert logs == {"loss": 1.5, "weight/a": 1.0, "weight/b": 0.5}


class TestUncertainty:
    def test_one_step(self) -> None:
        balancer = make_balancer("uncertainty", ["a", "b"], learning_rate=0.1)
        balancer.log_variance.assign([math.log(2), 0.0])
        gradient, logs = constant(balancer, {"a": 0.5, "b": 3.0})
        # exp(-s) = 1/2 and 1: gradient 0.5 / 2 + 3, loss the same plus log 2 + 0.
        assert gradient == pytest.approx(0.25 + 3)
        assert logs["loss"] == pytest.approx(3.25 + math.log(2))
        # s_a -= 0.1 (1 - 0.25); the other's 1 - 3 is held at -1.
        np.testing.assert_allclose(balancer.log_variance, [math.log(2) - 0.075, 0.1], rtol=1e-6)

    def test_the_optimum_is_the_log_of_the_loss(self) -> None:
        balancer = make_balancer("uncertainty", ["a", "b", "c"], learning_rate=0.3)
        losses = {"a": 0.02, "b": 1.0, "c": 50.0}
        for _ in range(60):
            _, logs = constant(balancer, losses)
        np.testing.assert_allclose(balancer.log_variance, np.log([0.02, 1, 50]), atol=1e-4)
        assert logs["weight/c"] == pytest.approx(1 / 50, rel=1e-3)

    def test_fixed_factors_count_on_top(self) -> None:
        balancer = make_balancer("uncertainty", ["a", "b"], {"b": 10.0}, learning_rate=0.3)
        for _ in range(60):
            _, logs = constant(balancer, {"a": 0.5, "b": 0.5})
        assert logs["weight/a"] == pytest.approx(2.0, rel=1e-3)
        assert logs["weight/b"] == pytest.approx(20.0, rel=1e-3)

    def test_a_fixed_factor_weighs_the_log_variance_as_well(self) -> None:
        balancer = make_balancer("uncertainty", ["a", "b"], {"a": 3.0})
        balancer.log_variance.assign([math.log(2), math.log(4)])
        gradient, logs = constant(balancer, {"a": 0.5, "b": 2.0})
        # exp(-s) = 1/2 and 1/4: gradient 3 * 0.5 / 2 + 2 / 4; 3 log 2 + log 4 = 5 log 2 is added.
        assert gradient == pytest.approx(1.25)
        assert logs["loss"] == pytest.approx(1.25 + 5 * math.log(2))

    def test_zero_and_infinite_losses_leave_it_alone(self) -> None:
        balancer = make_balancer("uncertainty", ["a", "b"])
        constant(balancer, {"a": 0.0, "b": math.inf})
        np.testing.assert_array_equal(balancer.log_variance, [0.0, 0.0])


class TestDynamicWeightAverage:
    def test_formula_over_windows(self) -> None:
        balancer = make_balancer("dwa", ["a", "b"], window=2, temperature=2.0)
        steps = [(1.0, 4.0), (3.0, 4.0), (1.0, 4.0), (0.0, 2.0), (7.0, 7.0)]
        gradients = [constant(balancer, {"a": a, "b": b})[0] for a, b in steps]
        # Window means 2, 4 and then 0.5, 3: ratios 1/4 and 3/4.
        e = np.exp(np.array([0.25, 0.75]) / 2.0)
        w = 2 * e / e.sum()
        expected = [a + b for a, b in steps[:4]] + [7 * w.sum()]
        np.testing.assert_allclose(gradients, expected, rtol=1e-6)
        np.testing.assert_allclose(balancer.weights, w, rtol=1e-6)

    def test_a_window_without_loss_keeps_the_ratio_at_one(self) -> None:
        balancer = make_balancer("dwa", ["a", "b"], window=1)
        for losses in ((1.0, 1.0), (0.0, 1.0), (1.0, 1.0)):
            constant(balancer, dict(zip("ab", losses, strict=True)))
            np.testing.assert_allclose(balancer.weights, [1.0, 1.0], rtol=1e-6)

    def test_a_task_of_weight_zero_does_not_pull_the_others(self) -> None:
        balancer = make_balancer("dwa", ["a", "b", "c"], {"b": 0.0}, window=1, temperature=1.0)
        for losses in ((1.0, 1.0, 1.0), (0.5, 5.0, 1.0)):
            constant(balancer, dict(zip("abc", losses, strict=True)))
        e = np.exp([0.5, 1.0])  # ratios of a and c
        a, c = 2 * e / e.sum()
        np.testing.assert_allclose(balancer.weights, [a, 1.0, c], rtol=1e-6)

    def test_an_overflow_leaves_the_state_alone(self) -> None:
        balancer = make_balancer("dwa", ["a", "b"], window=2, temperature=1.0)
        for losses in ((1.0, 4.0), (math.inf, 4.0), (3.0, 4.0), (1.0, 6.0), (1.0, 2.0)):
            constant(balancer, dict(zip("ab", losses, strict=True)))
        # Without the second step: window means 2, 4 and then 1, 4, so ratios of 1/2 and 1.
        np.testing.assert_allclose(balancer.last, [1.0, 4.0])
        e = np.exp([0.5, 1.0])
        np.testing.assert_allclose(balancer.weights, 2 * e / e.sum(), rtol=1e-6)


def gradnorm_step(w, first, losses, norms, alpha, rate):
    """The paper's update, in NumPy, with sum_t |G_t - G r_t^alpha| / G as its loss."""
    ratio = losses / first
    target = (w * norms).mean() * (ratio / ratio.mean()) ** alpha
    slope = np.sign(w * norms - target) * norms / (w * norms).mean()
    w = np.maximum(w - rate * slope, 1e-3)
    return w * len(w) / w.sum()


class TestGradNorm:
    def test_steps_equal_numpy(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b", "c"], alpha=0.5, learning_rate=0.1)
        rng = np.random.default_rng(0)
        w, first = np.ones(3), None
        for _ in range(5):
            values = rng.uniform(0.5, 4.0, 3)
            first = values if first is None else first
            gradient, logs = constant(balancer, dict(zip("abc", values.tolist(), strict=True)))
            assert gradient == pytest.approx(float(w @ values), rel=1e-5)
            for name, weight, norm in zip("abc", w, values, strict=True):
                assert logs[f"gradient_norm/{name}"] == pytest.approx(weight * norm, rel=1e-5)
            w = gradnorm_step(w, first, values, values, 0.5, 0.1)
            np.testing.assert_allclose(balancer.weights, w, rtol=1e-5)
            assert float(tf.reduce_sum(balancer.weights)) == pytest.approx(3.0)

    def test_alpha_zero_levels_the_norms(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b"], alpha=0.0, learning_rate=0.02)
        for _ in range(100):
            linear(balancer, {"a": [9.0, 0.0], "b": [0.0, 1.0]})
        # w_a 9 = w_b 1 with w_a + w_b = 2.
        np.testing.assert_allclose(balancer.weights, [0.2, 1.8], atol=0.1)

    def test_fixed_factors_count_on_top(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b"], {"a": 3.0}, alpha=0.0, learning_rate=0.02)
        for _ in range(100):
            _, logs = linear(balancer, {"a": [9.0, 0.0], "b": [0.0, 1.0]})
        np.testing.assert_allclose(balancer.weights, [0.2, 1.8], atol=0.1)
        assert logs["weight/a"] == pytest.approx(0.6, abs=0.3)

    def test_a_task_without_weight_has_no_part(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b", "c"], {"b": 0.0}, alpha=0.0)
        for _ in range(100):
            gradient, _ = linear(balancer, {"a": [9.0, 0.0], "b": [5.0, 5.0], "c": [0.0, 1.0]})
        np.testing.assert_allclose(balancer.weights, [0.2, 1.0, 1.8], atol=0.1)
        np.testing.assert_allclose(gradient, [1.8, 1.8], atol=0.9)

    def test_no_weight_falls_below_the_floor(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b"], alpha=0.0, learning_rate=1.0)
        constant(balancer, {"a": 3.0, "b": 1.0})
        # Norms 3 and 1 of mean 2: steps of 3/2 down, which would be -1/2, and 1/2 up.
        np.testing.assert_allclose(balancer.weights, np.array([1e-3, 1.5]) * 2 / 1.501, rtol=1e-6)

    def test_first_loss_is_the_first_above_zero(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b"])
        for value in (0.0, 3.0, 2.0):
            constant(balancer, {"a": 1.0, "b": value})
        np.testing.assert_allclose(balancer.first, [1.0, 3.0])
        assert np.isfinite(balancer.weights).all()

    def test_an_overflow_leaves_the_state_alone(self) -> None:
        balancer = make_balancer("gradnorm", ["a", "b"])
        constant(balancer, {"a": 1.0, "b": math.inf})
        np.testing.assert_array_equal(balancer.weights, [1.0, 1.0])
        np.testing.assert_array_equal(balancer.first, [0.0, 0.0])

    def test_tables_alone_are_refused(self) -> None:
        balancer = make_balancer("gradnorm", ["a"])
        table = tf.Variable(tf.ones([4, 2]))
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_sum(tf.gather(table, [1, 2]))
        with pytest.raises(ValueError, match="dense"):
            balancer.gradients({"a": loss}, tape, [[table]], [table])


def pcgrad_results(g: np.ndarray) -> list[np.ndarray]:
    """The sum of projected gradients for every choice of orders."""
    n = len(g)
    results = []
    orders = [list(itertools.permutations([j for j in range(n) if j != i])) for i in range(n)]
    for choice in itertools.product(*orders):
        total = np.zeros(g.shape[1])
        for i, order in enumerate(choice):
            v = g[i].copy()
            for j in order:
                if v @ g[j] < 0:
                    v -= (v @ g[j]) / (g[j] @ g[j]) * g[j]
            total += v
        results.append(total)
    return results


class TestPCGrad:
    def test_two_that_conflict(self) -> None:
        balancer = make_balancer("pcgrad", ["a", "b"])
        gradient, logs = linear(balancer, {"a": [1.0, 0.0], "b": [-1.0, 1.0]})
        # a loses its part along b: (1, 0) + (-1, 1) / 2; b its part along a: (0, 1).
        np.testing.assert_allclose(gradient, [0.5, 1.5], rtol=1e-6)
        assert logs["conflicts"] == 1.0
        assert logs["gradient_norm/b"] == pytest.approx(math.sqrt(2))
        # In terms of a and b: a + b / 2, and b + a.
        assert logs["coefficient/a"] == pytest.approx(2.0)
        assert logs["coefficient/b"] == pytest.approx(1.5)

    def test_two_that_agree(self) -> None:
        balancer = make_balancer("pcgrad", ["a", "b"], {"a": 2.0})
        gradient, logs = linear(balancer, {"a": [1.0, 0.0], "b": [1.0, 1.0]})
        np.testing.assert_allclose(gradient, [3.0, 1.0])
        assert logs["conflicts"] == 0.0

    def test_opposite_gradients_cancel(self) -> None:
        gradient, _ = linear(make_balancer("pcgrad", ["a", "b"]), {"a": [2.0], "b": [-1.0]})
        np.testing.assert_allclose(gradient, [0.0], atol=1e-6)

    def test_a_gradient_of_zero_is_harmless(self) -> None:
        gradient, _ = linear(make_balancer("pcgrad", ["a", "b"]), {"a": [2.0], "b": [0.0]})
        np.testing.assert_allclose(gradient, [2.0])

    def test_three_tasks_in_random_orders(self) -> None:
        g = np.array([[1.0, 0.2, 0.0], [-1.0, 0.5, 0.3], [-0.5, -1.0, 0.2]])
        expected = pcgrad_results(g)
        balancer = make_balancer("pcgrad", ["a", "b", "c"])
        seen = set()
        for _ in range(30):
            gradient, _ = linear(balancer, dict(zip("abc", g.tolist(), strict=True)))
            distance = [np.abs(gradient - e).max() for e in expected]
            assert min(distance) < 1e-5
            seen.add(tuple(gradient.round(4)))
        assert len(seen) == len({tuple(e.round(4)) for e in expected}) > 1

    def test_tables_are_projected_with_the_dense_weights_and_all_else_summed(self) -> None:
        shared, table = tf.Variable([1.0, 1.0]), tf.Variable(tf.ones([3, 2]))
        head, unused, own = tf.Variable(2.0), tf.Variable(5.0), tf.Variable([[3.0], [4.0]])
        balancer = make_balancer("pcgrad", ["a", "b"])
        with tf.GradientTape(persistent=True) as tape:
            h = shared * tf.reduce_sum(tf.gather(table, [0, 0, 2]), axis=0)
            losses = {"a": head * h[0], "b": -h[0] + h[1] + tf.gather(own, [1])[0, 0]}
        variables = [table, head, unused, shared, own]
        grads, logs = balancer.gradients(losses, tape, [[shared, table, own]], variables)
        # On shared: 2 * 3 and 0, and -3 and 3. On rows 0 (twice) and 2 of the table, coordinates
        # in turn: 2 and 0, and -1 and 1. Each task's is one vector, projected off the other's.
        a = np.array([6.0, 0, 4, 0, 2, 0])
        b = np.array([-3.0, 3, -2, 2, -1, 1])
        (expected,) = pcgrad_results(np.array([a, b]))
        np.testing.assert_allclose(grads[3], expected[:2], rtol=1e-6)
        rows = np.zeros([3, 2])
        rows[[0, 2]] = expected[2:].reshape(2, 2)
        assert isinstance(grads[0], tf.IndexedSlices)
        assert sorted(grads[0].indices.numpy()) == [0, 2]
        np.testing.assert_allclose(tf.convert_to_tensor(grads[0]), rows, rtol=1e-6)
        assert float(logs["gradient_norm/a"]) == pytest.approx(math.sqrt(56))
        assert float(logs["gradient_norm/b"]) == pytest.approx(math.sqrt(28))
        # What one task alone reaches is no conflict of theirs, even where it is listed.
        np.testing.assert_allclose(grads[1], 3.0)
        assert grads[2] is None
        np.testing.assert_allclose(tf.convert_to_tensor(grads[4]), [[0.0], [1.0]])

    def test_networks_side_by_side_are_projected_each_by_itself(self) -> None:
        """The tasks conflict in one network, and agree over both taken together."""
        v, w = tf.Variable([0.0, 0.0]), tf.Variable(tf.zeros([2, 2]))
        balancer = make_balancer("pcgrad", ["a", "b"])
        with tf.GradientTape(persistent=True) as tape:
            row = tf.gather(w, [1])[0]
            losses = {"a": v[0] + 3.0 * row[0], "b": v[1] - v[0] + row[0]}
        grads, logs = balancer.gradients(losses, tape, [[v], [w]], [v, w])
        np.testing.assert_allclose(grads[0], [0.5, 1.5])  # as in `test_two_that_conflict`
        np.testing.assert_allclose(tf.convert_to_tensor(grads[1]), [[0.0, 0.0], [4.0, 0.0]])
        assert float(logs["conflicts"]) == 0.5
        assert float(logs["coefficient/a"]) == pytest.approx(1.5)
        assert float(logs["gradient_norm/a"]) == pytest.approx(math.sqrt(1 + 9))

    def test_a_variable_that_is_read_by_rows_and_whole(self) -> None:
        table = tf.Variable([[1.0], [1.0]])
        balancer = make_balancer("pcgrad", ["a", "b"])
        with tf.GradientTape(persistent=True) as tape:
            losses = {
                "a": tf.gather(table, [0])[0, 0],
                "b": tf.reduce_sum(table * [[-1.0], [1.0]]),
            }
        (gradient,), _ = balancer.gradients(losses, tape, [[table]], [table])
        # (1, 0) and (-1, 1), as in `test_two_that_conflict`.
        np.testing.assert_allclose(gradient, [[0.5], [1.5]], rtol=1e-6)

    def test_no_variable_of_two_tasks_is_refused(self) -> None:
        balancer = make_balancer("pcgrad", ["a", "b"])
        v, w = tf.Variable(1.0), tf.Variable(1.0)
        with tf.GradientTape(persistent=True) as tape:
            losses = {"a": v * 2.0, "b": w * 3.0}
        with pytest.raises(ValueError, match="two of the losses"):
            balancer.gradients(losses, tape, [[v, w]], [v, w])


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_scale_reaches_the_gradients_and_not_the_state(self, kind: str) -> None:
        results = []
        for scale in (1.0, tf.constant(1024.0)):
            balancer = make_balancer(kind, ["a", "b"])
            for _ in range(3):
                gradient, logs = linear(balancer, {"a": [1.0, 0.5], "b": [-3.0, 1.0]}, scale=scale)
            results.append((gradient / float(scale), logs, [v.numpy() for v in balancer.variables]))
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
        assert results[0][1] == pytest.approx(results[1][1])
        for a, b in zip(results[0][2], results[1][2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)

    def test_checkpoint_carries_the_state(self, kind: str, tmp_path: Path) -> None:
        directions = [{"a": [1.0, k], "b": [-3.0, 1.0]} for k in (0.1, 0.5, 2.0, 3.0)]
        options = {"window": 1} if kind == "dwa" else {}
        first = make_balancer(kind, ["a", "b"], **options)
        for d in directions[:3]:
            linear(first, d)
        path = tf.train.Checkpoint(balancer=first).save(str(tmp_path / "c"))
        again = make_balancer(kind, ["a", "b"], **options)
        tf.train.Checkpoint(balancer=again).restore(path).assert_consumed()
        for a, b in zip(first.variables, again.variables, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            linear(first, directions[3])[0], linear(again, directions[3])[0]
        )

    def test_its_state_is_its_own(self, kind: str) -> None:
        assert make_balancer(kind, ["a", "b"]).trainable_variables == ()

    def test_one_task_is_its_own_gradient(self, kind: str) -> None:
        gradient, _ = linear(make_balancer(kind, ["a"]), {"a": [3.0, -2.0]})
        np.testing.assert_allclose(gradient, [3.0, -2.0], rtol=1e-6)

    def test_losses_of_other_tasks_are_refused(self, kind: str) -> None:
        with pytest.raises(ValueError, match="losses must have the tasks"):
            linear(make_balancer(kind, ["a", "b"]), {"a": [1.0]})

    def test_float16_with_a_loss_scale(self, kind: str) -> None:
        """Gradients of 1e-8 vanish in float16 unless the scale enters the backward pass."""
        balancer = make_balancer(kind, ["a", "b"])
        w = tf.Variable([1.0, 1.0])
        with tf.GradientTape(persistent=balancer.persistent) as tape:
            h = tf.cast(tf.cast(w, tf.float16), tf.float32)
            losses = {"a": h[0] * 1e-8, "b": (h[1] - h[0]) * 1e-8 + 1e-8}
        (gradient,), _ = balancer.gradients(losses, tape, [[w]], [w], scale=2.0**20)
        # Directions (1, 0) and (-1, 1), with equal weights at the first step. Those of pcgrad are
        # projected as in `test_two_that_conflict`. Float16 keeps eleven bits.
        expected = [0.5, 1.5] if kind == "pcgrad" else [0.0, 1.0]
        unit = 2.0**20 * 1e-8
        np.testing.assert_allclose(gradient, unit * np.array(expected), rtol=2e-3, atol=1e-9)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'dwa'.*'gradnom'"):
        make_balancer("gradnom", ["a"])
    with pytest.raises(ValueError, match="option"):
        make_balancer("fixed", ["a"], alpha=1.0)
    with pytest.raises(ValueError, match=r"\['z'\]"):
        make_balancer("fixed", ["a"], {"z": 1.0})
    with pytest.raises(ValueError, match="different"):
        make_balancer("fixed", ["a", "a"])


@pytest.mark.parametrize(
    ("kind", "weights", "options", "refusal"),
    [
        ("fixed", {"a": -0.1}, {}, "weights must be at least 0"),
        ("fixed", {"a": 0.0, "b": 0.0}, {}, "one of them above"),
        ("uncertainty", {}, {"learning_rate": 0.0}, "learning_rate must be above 0"),
        ("gradnorm", {}, {"learning_rate": 0.0}, "learning_rate above"),
        ("gradnorm", {}, {"alpha": -0.1}, "alpha must be at least 0"),
        ("dwa", {}, {"temperature": 0.0}, "temperature must be above 0"),
        ("dwa", {}, {"temperature": math.nan}, "temperature must be above 0"),
        ("dwa", {}, {"window": 0}, "window must be at least 1"),
    ],
)
def test_weights_and_options_out_of_range_are_refused(
    kind: str, weights: dict[str, float], options: dict[str, float], refusal: str
) -> None:
    with pytest.raises(ValueError, match=refusal):
        make_balancer(kind, ["a", "b"], weights, **options)


# Several workers

IDS = np.array([0, 1, 2, 3, 1, 2, 0, 4])
TARGETS = np.arange(8, dtype=np.float32)


def train(kind: str, strategy: tf.distribute.Strategy, worker: int, workers: int):
    """Some steps on eight rows, shared evenly among workers."""
    with strategy.scope():
        w = tf.Variable([[1.0, 2.0], [0.5, -1.0]])
        table = tf.Variable(tf.ones([5, 2]))
        options = {"window": 1} if kind == "dwa" else {}
        balancer = make_balancer(kind, ["a", "b", "c"], **options)
        optimizer = tf_keras.optimizers.legacy.SGD(0.02)
    rows = slice(worker * 8 // workers, (worker + 1) * 8 // workers)
    ids, t = tf.constant(IDS[rows]), tf.constant(TARGETS[rows])

    @tf.function
    def step() -> dict[str, tf.Tensor]:
        def replica() -> dict[str, tf.Tensor]:
            with tf.GradientTape(persistent=balancer.persistent) as tape:
                h = tf.gather(table, ids) @ w
                losses = {
                    "a": tf.reduce_mean((h[:, 0] + h[:, 1] - t) ** 2),
                    "b": tf.reduce_mean((h[:, 0] - h[:, 1] + t) ** 2),
                    "c": tf.reduce_mean((h[:, 0] + 2.0 * t) ** 2),
                }
            shared = [w, table] if balancer.shares == "all" else [w]
            grads, logs = balancer.gradients(losses, tape, [shared], [w, table], scale=1 / workers)
            optimizer.apply_gradients(zip(grads, [w, table], strict=True))
            return logs

        return strategy.run(replica)

    for _ in range(4):
        logs = step()
    values = {f"state{i}": v.numpy() for i, v in enumerate(balancer.variables)}
    values.update(w=w.numpy(), table=table.numpy(), weight=logs["weight/a"].numpy())
    return values


def test_two_workers_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    run_workers(2, lambda index: [__file__, str(tmp_path), str(index)], CUDA_VISIBLE_DEVICES="")
    for kind in KINDS:
        alone = train(kind, tf.distribute.get_strategy(), 0, 1)
        for index in range(2):
            with np.load(tmp_path / f"{kind}-{index}.npz") as together:
                assert set(together) == set(alone)
                for name, value in alone.items():
                    np.testing.assert_allclose(
                        together[name], value, rtol=2e-4, atol=1e-5, err_msg=f"{kind} {name}"
                    )


if __name__ == "__main__":
    mirrored = tf.distribute.MultiWorkerMirroredStrategy()
    out, me = Path(sys.argv[1]), int(sys.argv[2])
    for each in KINDS:
        np.savez(out / f"{each}-{me}.npz", **train(each, mirrored, me, 2))
