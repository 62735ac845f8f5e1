"""Multi-task loss: the funnel's spaces derived by hand, and hostile batches."""

import math

import numpy as np
import pytest
import tensorflow as tf

from recsys.losses import MultiTaskLoss, TaskLoss, focal_loss

NAN = math.nan
CLICK = TaskLoss("click")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def run(tasks, labels, logits, **kwargs) -> dict[str, float]:
    out = MultiTaskLoss(tasks)(
        {k: tf.constant(v, tf.float32) for k, v in labels.items()},
        {k: tf.constant(v, tf.float32) for k, v in logits.items()},
        **kwargs,
    )
    assert all(v.shape == () and v.dtype == tf.float32 for v in out.values())
    return {k: float(v) for k, v in out.items()}


LABELS = {"click": [1, 1, 0], "conversion": [1, 0, 0]}
LOGITS = {"click": [logit(0.5)] * 3, "conversion": [logit(0.2)] * 3}


def test_entire_space_is_the_loss_of_the_product() -> None:
    out = run([CLICK, TaskLoss("conversion", given="click")], LABELS, LOGITS)
    # p(click and conversion) = 0.1: one positive and two negatives.
    expected = (-math.log(0.1) - 2 * math.log(0.9)) / 3
    assert out == pytest.approx({"click": math.log(2), "conversion": expected}, rel=1e-5)


def test_joint_is_the_loss_of_its_own_logit_on_all_rows() -> None:
    out = run([CLICK, TaskLoss("conversion", "click", "joint")], LABELS, LOGITS)
    expected = (-math.log(0.2) - 2 * math.log(0.8)) / 3
    assert out == pytest.approx({"click": math.log(2), "conversion": expected}, rel=1e-5)


def test_what_follows_a_joint_task_starts_from_it() -> None:
    tasks = [
        CLICK,
        TaskLoss("cart", "click", "joint"),
        TaskLoss("buy", "cart"),
        TaskLoss("value", "cart", "observed", inverse_propensity=True),
    ]
    p = 0.2
    labels = {"click": [1, 1], "cart": [1, 0], "buy": [1, 0], "value": [1, 0]}
    logits = {"click": [0.7, 0.7], "cart": [logit(p)] * 2, "buy": [0.0, 0.0], "value": [0.0, 0.0]}
    out = run(tasks, labels, logits)
    # 0.2 for click and cart at once, and one half to buy, whatever the click's logit says.
    assert out["buy"] == pytest.approx((-math.log(0.1) - math.log(0.9)) / 2, rel=1e-5)
    assert out["value"] == pytest.approx(math.log(2) / p / 2, rel=1e-5)


def test_observed_is_the_mean_over_clicked_rows() -> None:
    out = run([CLICK, TaskLoss("conversion", "click", "observed")], LABELS, LOGITS)
    assert out["conversion"] == pytest.approx((-math.log(0.2) - math.log(0.8)) / 2, rel=1e-5)


def test_propensity_weighs_by_its_inverse_over_all_rows() -> None:
    task = TaskLoss("conversion", "click", "observed", inverse_propensity=True, min_propensity=0.25)
    logits = {**LOGITS, "click": [logit(0.5), logit(0.01), logit(0.5)]}
    out = run([CLICK, task], LABELS, logits)
    # Weights 1 / 0.5 and 1 / max(0.01, 0.25), over three impressions.
    expected = (-math.log(0.2) / 0.5 - math.log(0.8) / 0.25) / 3
    assert out["conversion"] == pytest.approx(expected, rel=1e-5)


def test_propensity_divides_by_the_rows_whose_outcome_is_known() -> None:
    labels = {"click": [1, 1, 0, NAN], "conversion": [1, NAN, NAN, 1]}
    logits = {"click": [0.0] * 4, "conversion": [logit(0.2)] * 4}
    task = TaskLoss("conversion", "click", "observed", inverse_propensity=True)
    # One conversion was seen, and one row without a click cannot have any. The click without a
    # label and the row of which not even the click is known say nothing.
    out = run([CLICK, task], labels, logits)
    assert out["conversion"] == pytest.approx(-math.log(0.2) / 0.5 / 2, rel=1e-5)
    out = run([CLICK, task], labels, logits, sample_weight=tf.constant([2.0, 5.0, 1.0, 7.0]))
    assert out["conversion"] == pytest.approx(2 * -math.log(0.2) / 0.5 / (2 + 1), rel=1e-5)


def test_propensity_is_an_unbiased_estimate_of_the_entire_space() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    p_click = rng.uniform(0.1, 0.9, n)
    p_conversion = p_click**2  # conversions follow the taste for clicks: selection bias
    click = rng.random(n) < p_click
    conversion = np.where(click, rng.random(n) < p_conversion, NAN)
    logits = {"click": np.log(p_click / (1 - p_click)), "conversion": np.zeros(n) - 1.0}
    labels = {"click": click, "conversion": conversion}
    task = TaskLoss("conversion", "click", "observed", inverse_propensity=True)
    weighed = run([CLICK, task], labels, logits)["conversion"]
    plain = run([CLICK, TaskLoss("conversion", "click", "observed")], labels, logits)["conversion"]
    p = 1 / (1 + math.e)
    truth = float(np.mean(-p_conversion * math.log(p) - (1 - p_conversion) * math.log(1 - p)))
    assert abs(weighed - truth) < 0.01 < abs(plain - truth)


def test_propensity_passes_no_gradient() -> None:
    task = TaskLoss("conversion", "click", "observed", inverse_propensity=True)
    click, conversion = tf.constant([0.3, -0.2]), tf.constant([0.1, 0.4])
    with tf.GradientTape() as tape:
        tape.watch([click, conversion])
        loss = MultiTaskLoss([CLICK, task])(
            {"click": [1.0, 1.0], "conversion": [1.0, 0.0]},
            {"click": click, "conversion": conversion},
        )["conversion"]
    to_click, to_conversion = tape.gradient(loss, [click, conversion])
    assert to_click is None and (to_conversion.numpy() != 0).all()


def test_entire_space_teaches_both_heads_and_observed_only_its_own() -> None:
    for space, reaches in (("entire", True), ("observed", False), ("joint", False)):
        click, conversion = tf.constant([0.3]), tf.constant([0.1])
        with tf.GradientTape() as tape:
            tape.watch([click, conversion])
            loss = MultiTaskLoss([CLICK, TaskLoss("conversion", "click", space)])(
                {"click": [1.0], "conversion": [1.0]}, {"click": click, "conversion": conversion}
            )["conversion"]
        assert (tape.gradient(loss, click) is not None) is reaches


class TestUnobservedLabels:
    def test_a_plain_task_leaves_them_out(self) -> None:
        out = run([CLICK], {"click": [1, NAN, 0]}, {"click": [1.0, 50.0, 0.0]})
        expected = (math.log1p(math.exp(-1)) + math.log(2)) / 2
        assert out["click"] == pytest.approx(expected, rel=1e-5)

    def test_conversion_unknown_without_click_is_no_conversion(self) -> None:
        tasks = [CLICK, TaskLoss("conversion", "click")]
        unknown = {"click": [1, 1, 0], "conversion": [1, 0, NAN]}
        assert run(tasks, unknown, LOGITS) == run(tasks, LABELS, LOGITS)

    def test_conversion_unknown_after_a_click_is_left_out(self) -> None:
        tasks = [CLICK, TaskLoss("conversion", "click")]
        out = run(tasks, {"click": [1, 1, 0], "conversion": [1, NAN, 0]}, LOGITS)
        expected = (-math.log(0.1) - math.log(0.9)) / 2
        assert out["conversion"] == pytest.approx(expected, rel=1e-5)

    def test_unknown_click_but_no_conversion(self) -> None:
        out = run(
            [CLICK, TaskLoss("conversion", "click")],
            {"click": [NAN], "conversion": [0]},
            {"click": [0.0], "conversion": [logit(0.2)]},
        )
        assert out == pytest.approx({"click": 0.0, "conversion": -math.log(0.9)}, rel=1e-5)

    @pytest.mark.parametrize("space", ["entire", "observed", "joint"])
    def test_a_conversion_without_its_click_is_not_a_success_of_the_funnel(self, space) -> None:
        tasks = [CLICK, TaskLoss("conversion", "click", space)]
        odd = {"click": [1, 1, 0], "conversion": [1, 0, 1]}
        assert run(tasks, odd, LOGITS) == run(tasks, LABELS, LOGITS)


RECORDS = [
    TaskLoss("conversion", "click"),
    TaskLoss("conversion", "click", loss="focal", alpha=0.25, gamma=2.0, label_smoothing=0.1),
    TaskLoss("conversion", "click", "observed"),
    TaskLoss("conversion", "click", "joint"),
    TaskLoss("conversion", "click", "observed", inverse_propensity=True),
    TaskLoss("conversion", "click", ranking="pairwise"),
    TaskLoss("conversion", "click", ranking="listwise"),
    TaskLoss("conversion", "click", loss="mse"),
    TaskLoss("conversion", "click", loss="huber", inverse_propensity=True),
]
BATCHES = {
    "no positives": ([0, 0, 0], [0, 0, 0]),
    "all positives": ([1, 1, 1], [1, 1, 1]),
    "all masked": ([NAN, NAN, NAN], [NAN, NAN, NAN]),
    "one row": ([1], [0]),
    "no rows": ([], []),
    "some unobserved": ([1, NAN, 0], [NAN, 1, NAN]),
}


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("task", RECORDS, ids=lambda t: f"{t.resolved_space}-{t.loss}-{t.ranking}")
def test_hostile_batches_stay_finite(task: TaskLoss, batch: str, size: float) -> None:
    click, conversion = BATCHES[batch]
    n = len(click)
    x = [tf.Variable(tf.fill([n], size * sign)) for sign in (1.0, -1.0)]
    loss = MultiTaskLoss([CLICK, task])
    with tf.GradientTape() as tape:
        out = loss(
            {"click": np.float32(click), "conversion": np.float32(conversion)},
            {"click": x[0], "conversion": x[1]},
            groups=tf.zeros([n], tf.int64),
        )
        total = tf.add_n(list(out.values()))
    assert np.isfinite(total)
    for gradient in tape.gradient(total, x):
        assert np.isfinite(gradient).all()
    if batch in ("all masked", "no rows"):
        assert float(total) == 0.0


def test_sample_weights_are_those_of_a_weighted_mean() -> None:
    tasks = [
        CLICK,
        TaskLoss("conversion", "click"),
        TaskLoss("buy", "click", "observed", inverse_propensity=True),
    ]
    labels = {**LABELS, "buy": [0, 1, 0]}
    logits = {**LOGITS, "buy": [0.4, -1.0, 0.0]}
    weighed = run(tasks, labels, logits, sample_weight=tf.constant([2, 1, 1]))
    doubled = {k: [v[0], *v] for k, v in labels.items()}
    repeated = run(tasks, doubled, {k: [v[0], *v] for k, v in logits.items()})
    assert weighed == pytest.approx(repeated, rel=1e-5)
    zero = run(tasks, labels, logits, sample_weight=tf.zeros([3]))
    assert set(zero.values()) == {0.0}


def test_three_stages() -> None:
    tasks = [TaskLoss("buy", "cart"), TaskLoss("cart", "click"), CLICK]
    labels = {"click": [1, 1], "cart": [1, 1], "buy": [1, 0]}
    logits = {"click": [logit(0.5)] * 2, "cart": [logit(0.5)] * 2, "buy": [logit(0.4)] * 2}
    out = run(tasks, labels, logits)
    assert list(out) == ["buy", "cart", "click"]
    assert out["cart"] == pytest.approx(-math.log(0.25), rel=1e-5)
    assert out["buy"] == pytest.approx((-math.log(0.1) - math.log(0.9)) / 2, rel=1e-5)


def test_regression_losses() -> None:
    tasks = [
        CLICK,
        TaskLoss("time", "click", loss="mse"),
        TaskLoss("value", loss="huber", huber_delta=2.0),
    ]
    out = run(
        tasks,
        {"click": [1, 0], "time": [3, 9], "value": [1, 10]},
        {"click": [0.0, 0.0], "time": [1.0, 0.0], "value": [0.0, 0.0]},
    )
    assert out["time"] == pytest.approx(4.0)  # clicked rows alone
    assert out["value"] == pytest.approx((0.5 * 1 + 2.0 * (10 - 1.0)) / 2)


def test_the_logarithm_of_a_number_is_learned_where_asked() -> None:
    e = math.e
    tasks = [
        TaskLoss("time", loss="mse", log=True),
        TaskLoss("value", loss="huber", huber_delta=2.0, log=True),
    ]
    out = run(
        tasks,
        # Not observed, and below 0: left out, and taken for 0.
        {"time": [e - 1, e**3 - 1, NAN, -5.0], "value": [e**10 - 1, 0.0, 0.0, 0.0]},
        {"time": [0.0, 1.0, 7.0, 0.0], "value": [0.0, 0.0, 0.0, 0.0]},
    )
    assert out["time"] == pytest.approx((1 + 4 + 0) / 3, rel=1e-5)
    assert out["value"] == pytest.approx(2.0 * (10 - 1.0) / 4, rel=1e-5)


def test_focal_task_equals_the_focal_loss() -> None:
    task = TaskLoss("click", loss="focal", alpha=0.25, gamma=2.0, label_smoothing=0.1)
    y, x = [1.0, 0.0, 1.0], [0.3, 1.0, -2.0]
    expected = tf.reduce_mean(focal_loss(tf.constant(y), tf.constant(x), 0.25, 2.0, 0.1))
    assert run([task], {"click": y}, {"click": x})["click"] == pytest.approx(float(expected))


def test_negative_sampling_leaves_the_full_rate_as_optimum() -> None:
    # 1 positive against 9 negatives, a third of them kept: the best logit is log(1/9).
    task = TaskLoss("click", negative_sampling_rate=1 / 3)
    x = tf.Variable(0.0)
    y = tf.constant([1.0, 0.0, 0.0, 0.0])
    with tf.GradientTape() as tape:
        loss = MultiTaskLoss([task])({"click": y}, {"click": tf.fill([4], x)})["click"]
    assert float(tape.gradient(loss, x)) > 0.1
    x.assign(logit(0.1))
    with tf.GradientTape() as tape:
        loss = MultiTaskLoss([task])({"click": y}, {"click": tf.fill([4], x)})["click"]
    assert float(tape.gradient(loss, x)) == pytest.approx(0.0, abs=1e-6)


def test_ranking_term_is_added_on_the_score_of_the_product() -> None:
    labels = {"click": [1, 1], "conversion": [1, 0]}
    logits = {"click": [logit(0.5), logit(0.9)], "conversion": [logit(0.2)] * 2}
    plain = run([CLICK, TaskLoss("conversion", "click")], labels, logits)["conversion"]
    task = TaskLoss("conversion", "click", ranking="pairwise", ranking_weight=0.5)
    out = run([CLICK, task], labels, logits, groups=tf.constant([1, 1]))["conversion"]
    # Click and conversion at once have odds of .1 / .9 and .18 / .82; those of a conversion given
    # a click are equal, and would give log 2.
    assert out == pytest.approx(plain + 0.5 * math.log(122 / 41), rel=1e-5)
    with pytest.raises(ValueError, match="groups"):
        run([CLICK, task], labels, logits)


def test_ranking_term_weighs_by_the_inverse_propensity() -> None:
    task = TaskLoss(
        "conversion",
        "click",
        "observed",
        inverse_propensity=True,
        ranking="listwise",
        ranking_weight=0.5,
    )
    out = run(
        [CLICK, task],
        {"click": [1, 1], "conversion": [1, 0]},
        {"click": [logit(0.5), logit(0.25)], "conversion": [0.0, 0.0]},
        groups=tf.constant([1, 1]),
    )
    # Weights are 1 / .5 and 1 / .25: the rows give (2 + 4) log 2 over both, and in the group each
    # row like the positive is one of 2 + 4.
    expected = (2 + 4) / 2 * math.log(2) + 0.5 * math.log(2 + 4)
    assert out["conversion"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        # Pairs of the positive with both negatives, of weights 2 * 1 and 2 * 3.
        ("pairwise", (2 * math.log(2) + 6 * math.log(4)) / 8),
        # e^x is 1, 1 and 3: the positive's share is 1 of 2 * 1 + 1 * 1 + 3 * 3.
        ("listwise", math.log(12)),
    ],
)
def test_ranking_counts_a_row_as_often_as_it_weighs(ranking: str, expected: float) -> None:
    task = TaskLoss("click", ranking=ranking, ranking_weight=0.5)
    out = run(
        [task],
        {"click": [1, 0, 0]},
        {"click": [0.0, 0.0, math.log(3)]},
        sample_weight=tf.constant([2.0, 1.0, 3.0]),
        groups=tf.constant([7, 7, 7]),
    )
    rows = (2 * math.log(2) + 1 * math.log(2) + 3 * math.log(4)) / 6
    assert out["click"] == pytest.approx(rows + 0.5 * expected, rel=1e-5)


def test_columns_half_precision_and_graph() -> None:
    loss = MultiTaskLoss([CLICK, TaskLoss("conversion", "click", loss="focal", gamma=2.0)])
    labels = {k: tf.constant(v, tf.int64) for k, v in LABELS.items()}
    logits = {k: tf.constant(v, tf.float32) for k, v in LOGITS.items()}
    expected = loss(labels, logits)
    column = loss(labels, {k: v[:, None] for k, v in logits.items()})
    graph = tf.function(loss.__call__, jit_compile=True)(labels, logits)
    half = loss(labels, {k: tf.cast(v, tf.bfloat16) for k, v in logits.items()})
    for name in expected:
        np.testing.assert_allclose(column[name], expected[name])
        np.testing.assert_allclose(graph[name], expected[name], rtol=1e-5)
        np.testing.assert_allclose(half[name], expected[name], rtol=1e-2)
        assert half[name].dtype == tf.float32


def test_gradient_equals_numeric_differences() -> None:
    tasks = [
        CLICK,
        TaskLoss("conversion", "click", loss="focal", alpha=0.3, gamma=1.5),
        TaskLoss("buy", "conversion", "observed"),
        TaskLoss("time", loss="huber"),
    ]
    loss = MultiTaskLoss(tasks)
    labels = {
        "click": [1, 1, 0, 1],
        "conversion": [1, 0, 0, 1],
        "buy": [1, NAN, 0, 0],
        "time": [0.1, 5.0, NAN, 0.0],
    }
    names = list(labels)
    rng = np.random.default_rng(0)
    x = [tf.constant(rng.normal(size=4)) for _ in names]

    def total(*values: tf.Tensor) -> tf.Tensor:
        return tf.add_n(list(loss(labels, dict(zip(names, values, strict=True))).values()))

    theory, numeric = tf.test.compute_gradient(total, x)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_gradient_of_propensity_and_squared_error_equals_numeric_differences() -> None:
    """Of all logits but the click's, from which the propensity takes no gradient."""
    tasks = [
        CLICK,
        TaskLoss(
            "conversion", "click", "observed", inverse_propensity=True, loss="focal", gamma=2.0
        ),
        TaskLoss("time", "click", loss="mse", log=True, inverse_propensity=True),
        TaskLoss("value", loss="mse"),
    ]
    loss = MultiTaskLoss(tasks)
    labels = {
        "click": [1, 1, 0, 1],
        "conversion": [1, 0, NAN, NAN],
        "time": [0.5, 9.0, 3.0, NAN],
        "value": [0.1, 5.0, NAN, -2.0],
    }
    rng = np.random.default_rng(1)
    click, *x = [tf.constant(rng.normal(size=4)) for _ in labels]

    def total(*values: tf.Tensor) -> tf.Tensor:
        logits = dict(zip(labels, [click, *values], strict=True))
        units = {"time": tf.constant(0.5, tf.float64), "value": tf.constant(3.0, tf.float64)}
        out = loss(labels, logits, tf.constant([1.0, 2.0, 0.5, 1.0], tf.float64), units=units)
        return tf.add_n([out[name] for name in labels if name != "click"])

    theory, numeric = tf.test.compute_gradient(total, x)
    for a, b in zip(theory, numeric, strict=True):
        assert np.abs(a).max() > 0.01
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([CLICK, CLICK], "differ"),
        ([TaskLoss("conversion", "click")], "'click'"),
        ([TaskLoss("a", "b"), TaskLoss("b", "a")], "itself"),
        ([TaskLoss("time", loss="mse"), TaskLoss("conversion", "time")], "not binary"),
    ],
)
def test_faulty_funnels_are_refused(tasks, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MultiTaskLoss(tasks)


@pytest.mark.parametrize(
    "options",
    [
        {"space": "observed"},
        {"given": "click", "space": "joint", "loss": "mse"},
        {"space": "joint"},
        {"given": "click", "inverse_propensity": True},
        {"gamma": 2.0},
        {"loss": "hinge"},
        {"loss": "focal", "alpha": 1.0},
        {"negative_sampling_rate": 0.0},
        {"loss": "mse", "label_smoothing": 0.1},
        {"loss": "bce", "log": True},
        {"ranking": "listwize"},
    ],
)
def test_faulty_records_are_refused(options) -> None:
    with pytest.raises(ValueError, match="task 'x'"):
        TaskLoss("x", **options)


def test_missing_or_misshapen_inputs_are_refused() -> None:
    loss = MultiTaskLoss([CLICK])
    with pytest.raises(ValueError, match="logits must hold task 'click'"):
        loss({"click": tf.zeros([2])}, {})
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        loss({"click": tf.zeros([2])}, {"click": tf.zeros([2, 3])})
    with pytest.raises(ValueError, match="compatible"):
        loss({"click": tf.zeros([2])}, {"click": tf.zeros([3])})


def test_errors_and_scores_of_a_regression_are_measured_in_its_unit() -> None:
    tasks = [
        TaskLoss("time", loss="mse"),
        TaskLoss("value", loss="huber", huber_delta=2.0, ranking="pairwise"),
        TaskLoss("click"),
    ]
    labels = {"time": [100.0, 300.0], "value": [0.0, 40.0], "click": [0.0, 1.0]}
    logits = {"time": [150.0, 250.0], "value": [10.0, 20.0], "click": [0.0, 0.0]}
    groups = tf.constant([1, 1])
    out = MultiTaskLoss(tasks)(labels, logits, None, groups, {"time": 100.0, "value": 10.0})
    # Errors of a half; of 1 and of 2; scores of 1 and 2.
    assert float(out["time"]) == pytest.approx(0.25)
    assert float(out["value"]) == pytest.approx((0.5 + 2.0) / 2 + math.log1p(math.exp(-1.0)))
    assert float(out["click"]) == pytest.approx(math.log(2.0))
