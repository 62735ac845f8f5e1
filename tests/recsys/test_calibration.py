"""Calibration: recovers known distortions, keeps the ranking, equals itself in the graph."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from recsys import metrics
from recsys.calibration import (
    IDENTITY,
    Calibration,
    CalibrationLayer,
    calibration_report,
    fit_calibration,
    isotonic_regression,
)
from recsys.calibration.isotonic import isotonic_knots

NAN = math.nan
KINDS = ("temperature", "platt", "isotonic")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def world(distort, n: int = 200_000, mean: float = -3.0):
    """Labels drawn from true logits, and the logits as a distorting model gives them."""
    rng = np.random.default_rng(0)
    truth = rng.normal(mean, 1.5, n)
    return (rng.random(n) < sigmoid(truth)).astype(float), distort(truth), truth


def examples() -> list[Calibration]:
    y, x, _ = world(lambda t: 0.4 * t + np.tanh(t) - 1, 20_000)
    bent = Calibration("isotonic", {"x": (-2.0, 0.0, 2.0), "y": (-3.0, -1.0, 0.0), "slope": 0.2})
    return [IDENTITY, *(fit_calibration(kind, y, x) for kind in KINDS), bent]


class TestFit:
    def test_temperature_is_recovered(self) -> None:
        y, x, _ = world(lambda t: 2.5 * t)
        record = fit_calibration("temperature", y, x)
        assert record.parameters["temperature"] == pytest.approx(2.5, rel=0.02)

    def test_platt_is_recovered(self) -> None:
        y, x, _ = world(lambda t: (t - 1.0) / 0.5)  # so that t = 0.5 x + 1
        record = fit_calibration("platt", y, x)
        assert record.parameters["slope"] == pytest.approx(0.5, rel=0.02)
        assert record.parameters["intercept"] == pytest.approx(1.0, rel=0.02)

    def test_platt_equals_logistic_regression(self) -> None:
        y, x, _ = world(lambda t: 0.3 * t + 1, 5000)
        w = np.random.default_rng(1).uniform(0.5, 2.0, y.size)
        record = fit_calibration("platt", y, x, w)
        peer = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], y, w)
        # Platt's targets differ from 0 and 1 by one in the number of each class.
        assert record.parameters["slope"] == pytest.approx(peer.coef_[0, 0], rel=0.01)
        assert record.parameters["intercept"] == pytest.approx(peer.intercept_[0], rel=0.01)

    def test_platt_by_hand(self) -> None:
        record = fit_calibration("platt", [1, 0, 0], [1.0, 1.0, -1.0])
        # One positive and two negatives: targets (1 + 1) / (1 + 2) and 1 / (2 + 2), not 1 and 0.
        # Two logits and two parameters: each logit is given its rows' mean target, 11/24 and 1/4.
        above, below = math.log(11 / 13), math.log(1 / 3)
        assert record.parameters["slope"] == pytest.approx((above - below) / 2, rel=1e-6)
        assert record.parameters["intercept"] == pytest.approx((above + below) / 2, rel=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_logits_beyond_30_count_as_30(self, kind: str) -> None:
        labels = [0, 0, 1, 0, 0, 1, 1, 1]
        far = fit_calibration(kind, labels, [-1e4, -1e4, -1e4, -2.0, 2.0, 2.0, 31.0, 1e4])
        near = fit_calibration(kind, labels, [-30.0, -30.0, -30.0, -2.0, 2.0, 2.0, 30.0, 30.0])
        assert far == near and far.kind == kind

    def test_isotonic_leans_on_its_prior_by_half_an_event(self) -> None:
        labels, logits = np.array([0.0, 0, 1, 0]), np.array([0.0, 0, 1, 1])
        x, y = isotonic_knots(labels, logits, np.ones(4), np.full(4, 0.25), max_knots=100)
        # Half an event at a rate of 1/4 is two rows: 0 of 2 becomes 1/2 of 4, 1 of 2 3/2 of 4.
        np.testing.assert_allclose(x, [0.0, 1.0])
        np.testing.assert_allclose(y, [math.log(1 / 7), math.log(3 / 5)])

    def test_isotonic_bends_where_platt_cannot(self) -> None:
        y, x, truth = world(lambda t: np.sinh(t / 2))
        before = metrics.ece(y, sigmoid(x))
        isotonic = metrics.ece(y, fit_calibration("isotonic", y, x).apply(x))
        platt = metrics.ece(y, fit_calibration("platt", y, x).apply(x))
        best = metrics.ece(y, sigmoid(truth))  # the noise of the labels
        assert isotonic < 0.5 * platt < before
        assert isotonic < best + 0.001

    def test_isotonic_has_at_most_the_knots_allowed(self) -> None:
        y, x, _ = world(lambda t: np.sinh(t / 2))
        for limit in (4, 7, 100):
            knots = fit_calibration("isotonic", y, x, max_knots=limit).parameters["x"]
            assert 2 <= len(knots) <= limit

    def test_isotonic_that_fits_no_better_is_platt(self) -> None:
        y, x, _ = world(lambda t: t, 5000)
        record = fit_calibration("isotonic", y, x, max_knots=1)
        assert record.parameters == fit_calibration("platt", y, x).parameters
        assert record.warning.startswith("platt in place of isotonic")

    @pytest.mark.parametrize("kind", ["platt", "isotonic"])
    @pytest.mark.parametrize("deviation", [1.0, 2.0, 4.0])
    @pytest.mark.parametrize("slope", [-0.3, 0.0, 0.1, 0.5, 1.0])
    @pytest.mark.parametrize("base", [-4.0, -2.0, 0.0])
    def test_no_worse_than_the_label_rate(self, kind, deviation, slope, base) -> None:
        """On the rows of the fit, however weak, overconfident or upside down the head."""
        for seed in range(4):
            rng = np.random.default_rng(seed)
            x = np.sort(rng.normal(0, deviation, 4000))
            y = (rng.random(4000) < sigmoid(slope * x + base)).astype(float)
            p = fit_calibration(kind, y, x).apply(x)
            rate = y.mean()
            constant = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            # Platt's smoothed targets are off by about one event in 4,000 rows.
            assert p.mean() == pytest.approx(rate, abs=1 / 4000)
            assert metrics.log_loss(y, p) < constant + 1e-3
            assert (np.diff(p) > 0).all()

    @pytest.mark.parametrize("kind", ["platt", "isotonic"])
    def test_rare_logits_beyond_those_of_the_fit_do_not_run_away(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(0, 4, 4000)
        y = (rng.random(4000) < sigmoid(0.1 * x - 2)).astype(float)
        p = fit_calibration(kind, y, x).apply([x.min() - 8, x.max() + 8])
        assert (p > 0.005).all() and (p < 0.6).all()

    @pytest.mark.parametrize("deviation", [1.0, 3.0])
    def test_isotonic_of_logits_that_do_not_rise_has_the_right_mean(self, deviation) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(0, deviation, 4000)
        y = (rng.random(4000) < sigmoid(-2.0 - 0.3 * x)).astype(float)
        record = fit_calibration("isotonic", y, x)
        assert "only the mean" in record.warning
        assert record.apply(x).mean() == pytest.approx(y.mean(), rel=1e-6)

    def test_isotonic_on_few_events_stays_near_platt(self) -> None:
        """Fitted on some hundred positives, scored on fresh rows."""
        y, x, _ = world(lambda t: 2 * t + 1, 400_000, mean=-7.0)
        few, fresh = slice(0, 30_000), slice(30_000, None)
        assert 50 < y[few].sum() < 150
        loss = {
            kind: metrics.log_loss(y[fresh], fit_calibration(kind, y[few], x[few]).apply(x[fresh]))
            for kind in ("platt", "isotonic")
        }
        assert loss["isotonic"] < 1.02 * loss["platt"]

    @pytest.mark.parametrize("kind", ["platt", "isotonic"])
    def test_undoes_the_thinning_of_negatives(self, kind: str) -> None:
        """Held-out rows with all negatives: logits from a tenth of them are log 10 too high."""
        y, x, _ = world(lambda t: t + math.log(10))
        report = calibration_report(fit_calibration(kind, y, x), y, x)
        assert report["ece_before"] > 0.1
        assert report["ece_after"] < 0.002
        assert report["log_loss_after"] < report["log_loss_before"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_ranking_is_kept(self, kind: str) -> None:
        y, x, _ = world(lambda t: 0.4 * t + np.tanh(t), 20_000)
        calibrated = fit_calibration(kind, y, x).apply(x)
        assert metrics.auc(y, calibrated) == metrics.auc(y, x)
        order = np.argsort(x)
        assert (np.diff(calibrated[order]) > 0).all()

    def test_weights_are_repetitions(self) -> None:
        y, x, _ = world(lambda t: 2 * t + 1, 2000, mean=0.0)
        w = np.random.default_rng(1).integers(1, 4, y.size)
        for kind in ("temperature", "platt"):
            a = fit_calibration(kind, y, x, w).parameters
            b = fit_calibration(kind, np.repeat(y, w), np.repeat(x, w)).parameters
            assert a == pytest.approx(b, rel=1e-6)


class TestHostile:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ([0, 0, 0], "only label 0"),
            ([1, 1, 1], "only label 1"),
            ([1], "only label 1"),
            ([], "no usable rows"),
            ([NAN, NAN], "no usable rows"),
        ],
    )
    def test_nothing_to_fit_is_identity_with_the_reason(self, kind, labels, reason) -> None:
        record = fit_calibration(kind, labels, np.linspace(-1, 1, len(labels)))
        assert record.kind == "identity" and reason in record.warning

    @pytest.mark.parametrize("kind", KINDS)
    def test_extreme_and_broken_logits(self, kind: str) -> None:
        y, x, _ = world(lambda t: t, 5000)
        clean = fit_calibration(kind, y, x)
        dirty = fit_calibration(kind, np.r_[y, 1, 0, NAN], np.r_[x, NAN, math.inf, 3.0])
        assert dirty == clean
        record = fit_calibration(kind, [0, 1, 0, 1], [-1e4, 1e4, 1e4, -1e4])
        p = record.apply([-1e4, 0.0, 1e4])
        assert np.isfinite(p).all() and (np.diff(p) >= 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_separable_labels(self, kind: str) -> None:
        x = np.linspace(-1, 1, 40)
        record = fit_calibration(kind, x > 0, x)
        p = record.apply(x)
        assert np.isfinite(p).all() and (np.diff(p) >= 0).all()

    def test_a_ranking_upside_down_is_not_turned(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=4000)
        y = (rng.random(4000) < sigmoid(-x - 1)).astype(float)
        assert fit_calibration("temperature", y, x).kind == "identity"
        for kind in ("platt", "isotonic"):
            record = fit_calibration(kind, y, x)
            assert record.warning.startswith("only the mean is calibrated")
            # All but the label rate, and still in the order of the logits, in float32 too.
            p = record.apply(x)
            assert p.mean() == pytest.approx(y.mean(), abs=1e-6)
            assert p.std() < 0.01 * y.mean()
            assert metrics.auc(y, CalibrationLayer(record)(x).numpy()) == pytest.approx(
                metrics.auc(y, x), abs=1e-5
            )
            assert (np.diff(p[np.argsort(x)]) > 0).all()

    def test_constant_logits(self) -> None:
        y, x = [0, 0, 0, 1] * 500, np.full(2000, 2.0)
        for kind in ("platt", "isotonic"):
            assert fit_calibration(kind, y, x).apply([2.0])[0] == pytest.approx(0.25, abs=0.01)

    def test_faulty_input_is_refused(self) -> None:
        with pytest.raises(ValueError, match="kind"):
            fit_calibration("beta", [0, 1], [0.0, 1.0])
        with pytest.raises(ValueError, match="0 or 1"):
            fit_calibration("platt", [0, 2], [0.0, 1.0])
        with pytest.raises(ValueError, match="rows"):
            fit_calibration("platt", [0, 1], [0.0])


class TestFunnel:
    def test_the_product_of_parts_fitted_where_they_could_happen_is_calibrated(self) -> None:
        rng = np.random.default_rng(0)
        n = 200_000
        click_truth, buy_truth = rng.normal(-1, 1, n), rng.normal(-2, 1, n)
        click = rng.random(n) < sigmoid(click_truth)
        buy = np.where(click, rng.random(n) < sigmoid(buy_truth), NAN)
        clicks = fit_calibration("platt", click, 2 * click_truth)
        buys = fit_calibration("platt", buy, buy_truth + 1)
        assert clicks.parameters["slope"] == pytest.approx(0.5, rel=0.03)
        assert buys.parameters["intercept"] == pytest.approx(-1.0, rel=0.05)
        p_click = clicks.apply(2 * click_truth)
        both = p_click * buys.apply(buy_truth + 1)
        assert (both <= p_click).all()
        assert metrics.ece(np.nan_to_num(buy), both) < 0.003


class TestIsotonicRegression:
    def test_equals_sklearn(self) -> None:
        rng = np.random.default_rng(0)
        for n in (1, 2, 50):
            v, w = rng.normal(size=n), rng.uniform(0.1, 3, n)
            levels, starts = isotonic_regression(v, w)
            assert (np.diff(levels) > 0).all()
            fitted = np.repeat(levels, np.diff(np.r_[starts, n]))
            peer = IsotonicRegression().fit(np.arange(n), v, w).predict(np.arange(n))
            np.testing.assert_allclose(fitted, peer, atol=1e-12)


class TestRecord:
    @pytest.mark.parametrize("record", examples(), ids=lambda r: r.kind)
    def test_json_round_trip(self, record: Calibration) -> None:
        again = Calibration.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
        assert again == record

    def test_isotonic_by_hand(self) -> None:
        knots = {"x": (0.0, 2.0, 3.0), "y": (-1.0, 0.0, 3.0)}
        logits = [-5.0, 0.0, 1.0, 2.0, 2.5, 3.0, 4.0, NAN]
        got = Calibration("isotonic", {**knots, "slope": 0.2}).apply_logit(logits)
        np.testing.assert_allclose(got, [-2.0, -1.0, -0.5, 0.0, 1.5, 3.0, 3.2, NAN])
        older = Calibration.from_json({"kind": "isotonic", "parameters": knots})
        got = older.apply_logit(logits)
        np.testing.assert_allclose(got, [-6.0, -1.0, -0.5, 0.0, 1.5, 3.0, 4.0, NAN])

    @pytest.mark.parametrize(
        ("kind", "parameters", "match"),
        [
            ("beta", {}, "kind must be one of .* received 'beta'"),
            (
                "platt",
                {"slope": 1.0},
                r"platt needs parameters .*'intercept'.*received \['slope'\]",
            ),
            ("temperature", {"temperature": 0.0}, "temperature must be above 0; received 0.0"),
            ("platt", {"slope": -1.0, "intercept": 0.0}, "slope must be above 0; received -1.0"),
            ("temperature", {"temperature": NAN}, "temperature needs finite parameters"),
            ("isotonic", {"x": (0.0, 0.0), "y": (0.0, 1.0)}, "both increasing"),
            ("isotonic", {"x": (0.0, 1.0), "y": (1.0, 1.0)}, "both increasing"),
            ("isotonic", {"x": (0.0, 1.0), "y": (0.0,)}, "equally many"),
            ("isotonic", {"x": (), "y": ()}, "isotonic needs knots"),
            ("isotonic", {"x": (0.0,), "y": (0.0,), "slope": 0.0}, "slope must be above 0"),
        ],
    )
    def test_faulty_records_are_refused(self, kind, parameters, match) -> None:
        with pytest.raises(ValueError, match=match):
            Calibration(kind, parameters)


GRID = np.r_[-1e4, np.linspace(-30, 30, 4001), 1e4].astype(np.float32)


@pytest.mark.parametrize("record", examples(), ids=lambda r: r.kind)
class TestLayer:
    def test_equals_numpy_in_eager_graph_and_xla(self, record: Calibration) -> None:
        layer = CalibrationLayer(record)
        expected = record.apply(GRID)
        for call in (layer, tf.function(layer), tf.function(layer, jit_compile=True)):
            np.testing.assert_allclose(call(tf.constant(GRID)), expected, atol=1e-6, rtol=0)

    def test_shapes_and_half_precision(self, record: Calibration) -> None:
        layer = CalibrationLayer(record)
        for dtype in (tf.float16, tf.bfloat16):
            x = tf.cast(tf.constant([[0.3], [-2.0]]), dtype)
            out = layer(x)
            assert out.shape == (2, 1) and out.dtype == tf.float32
            np.testing.assert_allclose(out, record.apply(tf.cast(x, tf.float32)), atol=1e-6)

    def test_saved_and_loaded_without_custom_objects(self, record, tmp_path) -> None:
        inputs = tf_keras.Input([1])
        model = tf_keras.Model(inputs, CalibrationLayer(record, name="calibrated")(inputs))
        for name in ("model", "model.keras"):
            model.save(tmp_path / name)
            again = tf_keras.models.load_model(tmp_path / name)
            np.testing.assert_array_equal(again(GRID[:, None]), model(GRID[:, None]))
            assert again.get_layer("calibrated").get_config()["record"] == record.to_json()
        plain = tf.saved_model.load(str(tmp_path / "model"))
        np.testing.assert_allclose(
            plain(tf.constant(GRID[:, None])), record.apply(GRID[:, None]), atol=1e-6
        )

    def test_converts_to_lite_with_built_in_ops_alone(self, record: Calibration) -> None:
        layer = CalibrationLayer(record)
        function = tf.function(layer.call, input_signature=[tf.TensorSpec([None, 1])])
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()], layer
        )
        lite = tf.lite.Interpreter(model_content=converter.convert())
        lite.resize_tensor_input(lite.get_input_details()[0]["index"], [GRID.size, 1])
        lite.allocate_tensors()
        lite.set_tensor(lite.get_input_details()[0]["index"], GRID[:, None])
        lite.invoke()
        out = lite.get_tensor(lite.get_output_details()[0]["index"])
        np.testing.assert_allclose(out[:, 0], record.apply(GRID), atol=1e-5)
