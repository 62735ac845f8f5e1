"""Metrics by hand, against scikit-learn, and by properties."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from recsys import metrics

NAN = math.nan


@st.composite
def ranked(draw, max_groups: int = 4):
    """Labels of both classes, scores with ties, groups."""
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    labels[:2] = [0, 1]
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, max_groups), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / 4.0, np.array(groups)


class TestAuc:
    def test_by_hand(self) -> None:
        # Pairs (positive, negative): .8>.3, .8>.5, .5>.3, .5=.5: 3.5 of 4.
        assert metrics.auc([1, 0, 1, 0], [0.8, 0.3, 0.5, 0.5]) == 3.5 / 4

    @given(ranked())
    @settings(max_examples=60, deadline=None)
    def test_equals_sklearn_with_ties_and_weights(self, data) -> None:
        y, s, g = data
        assert metrics.auc(y, s) == pytest.approx(sk.roc_auc_score(y, s))
        w = g + 0.5
        expected = sk.roc_auc_score(y, s, sample_weight=w)
        assert metrics.auc(y, s, w) == pytest.approx(expected)

    @given(ranked())
    @settings(max_examples=60, deadline=None)
    def test_properties(self, data) -> None:
        y, s, _ = data
        value = metrics.auc(y, s)
        assert metrics.auc(y, np.exp(s)) == pytest.approx(value)  # any monotone map
        assert metrics.auc(1 - y, s) == pytest.approx(1 - value)
        assert metrics.auc(y, -s) == pytest.approx(1 - value)
        assert metrics.auc(y, np.zeros_like(s)) == 0.5

    @pytest.mark.parametrize("labels", [[], [1], [0, 0], [1, 1, 1], [NAN, NAN], [NAN, 1]])
    def test_one_class_has_none(self, labels) -> None:
        assert math.isnan(metrics.auc(labels, np.arange(len(labels))))

    def test_rows_without_label_are_left_out(self) -> None:
        y, s = [1.0, NAN, 0.0, 0.0], [0.5, 0.9, 0.2, 0.6]
        assert metrics.auc(y, s, [1, 1, 1, 3]) == 0.25

    def test_extreme_scores(self) -> None:
        assert metrics.auc([0, 1, 0, 1], [-1e4, 1e4, -math.inf, math.inf]) == 1.0

    def test_faulty_input_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 NaN among 2"):
            metrics.auc([0, 1], [0.5, NAN])
        with pytest.raises(ValueError, match="0 or 1"):
            metrics.auc([0, 2], [0.5, 0.1])
        with pytest.raises(ValueError, match="shapes"):
            metrics.auc([0, 1], [0.5])


class TestGauc:
    def test_by_hand(self) -> None:
        y = [1, 0, 1, 0, 0, 1]
        s = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
        # a: AUC 1 over two rows; b: AUC 0 over three; c has one class.
        assert metrics.gauc(y, s, ["a", "a", "b", "b", "b", "c"]) == (2 * 1 + 3 * 0) / 5

    @given(ranked())
    @settings(max_examples=60, deadline=None)
    def test_equals_a_loop_over_users(self, data) -> None:
        y, s, g = data
        aucs, weights = [], []
        for user in np.unique(g):
            rows = g == user
            if 0 < y[rows].sum() < rows.sum():
                aucs.append(sk.roc_auc_score(y[rows], s[rows]))
                weights.append(rows.sum())
        value = metrics.gauc(y, s, g)
        far_apart = (g - 2) * 10**18
        for other in (s.astype(np.float32), s):
            tight = np.where(g == 0, -128, 100 + g).astype(np.int8)
            for ids in (g, far_apart, tight, g.astype(np.uint64), g.astype(str)):
                np.testing.assert_equal(metrics.gauc(y, other, ids), value)
        if not aucs:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(np.average(aucs, weights=weights))

    @given(ranked())
    @settings(max_examples=30, deadline=None)
    def test_one_group_is_the_auc(self, data) -> None:
        y, s, g = data
        assert metrics.gauc(y, s, np.full(g.shape, "u")) == pytest.approx(metrics.auc(y, s))

    def test_zero_is_zero_whatever_its_sign(self) -> None:
        for dtype in (np.float32, np.float64):
            assert metrics.gauc([1, 0], np.array([-0.0, 0.0], dtype), [1, 1]) == 0.5

    def test_no_user_with_both_classes(self) -> None:
        assert math.isnan(metrics.gauc([1, 0], [0.1, 0.2], [1, 2]))
        assert math.isnan(metrics.gauc([], [], []))


class TestProbabilities:
    def test_log_loss_equals_sklearn(self) -> None:
        rng = np.random.default_rng(0)
        p = rng.random(200)
        y = rng.integers(0, 2, 200)
        assert metrics.log_loss(y, p) == pytest.approx(sk.log_loss(y, p))
        assert metrics.log_loss([0, 1], [1.0, 0.0]) == pytest.approx(-math.log(2.0**-52))
        assert math.isfinite(metrics.log_loss([0], np.ones(1, np.float32)))

    def test_normalized_entropy_of_the_rate_is_one(self) -> None:
        y = [1, 0, 0, 0]
        assert metrics.normalized_entropy(y, [0.25] * 4) == pytest.approx(1.0)
        expected = -math.log(0.5) / (-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
        assert metrics.normalized_entropy(y, [0.5] * 4) == pytest.approx(expected)
        assert math.isnan(metrics.normalized_entropy([1, 1], [0.5, 0.5]))


class TestEce:
    def test_by_hand(self) -> None:
        y, p = [0, 1, 1, 1], [0.1, 0.2, 0.6, 0.9]
        # Halves: |0.15 - 0.5| and |0.75 - 1|, of two rows each.
        assert metrics.ece(y, p, 2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.25)

    def test_low_rates_are_told_apart(self) -> None:
        # Half the rows twice too high, half of them at zero; the means agree.
        y = np.tile(np.r_[np.ones(10), np.zeros(990)], 2)
        p = np.repeat([0.02, 0.0001], 1000)
        assert metrics.ece(y, p) == pytest.approx(0.5 * 0.01 + 0.5 * 0.0099)

    def test_ties_share_a_bin_so_order_does_not_matter(self) -> None:
        y = np.array([1] * 30 + [0] * 70)
        p = np.full(100, 0.3)
        assert metrics.ece(y, p) == pytest.approx(0.0, abs=1e-12)

    @given(ranked())
    @settings(max_examples=40, deadline=None)
    def test_bounds_and_order(self, data) -> None:
        y, s, g = data
        p = 1 / (1 + np.exp(-s))
        value = metrics.ece(y, p)
        # No bin can be closer than the whole, by the triangle inequality.
        assert abs(p.mean() - y.mean()) - 1e-12 <= value <= 1
        order = np.argsort(g, kind="stable")
        assert metrics.ece(y[order], p[order]) == pytest.approx(value)

    def test_edges(self) -> None:
        assert math.isnan(metrics.ece([], []))
        assert metrics.ece([1], [0.25]) == 0.75
        assert metrics.ece([1, 0], [1.0, 0.0]) == 0.0
        with pytest.raises(ValueError, match="bins"):
            metrics.ece([1], [0.5], bins=0)


class TestTaskMetrics:
    def test_gathers_all(self) -> None:
        y, p, g = [1.0, 0.0, NAN, 1.0], [0.8, 0.3, 0.9, 0.2], [1, 1, 1, 1]
        out = metrics.task_metrics(y, p, g)
        assert list(out) == [
            "auc",
            "gauc",
            "log_loss",
            "normalized_entropy",
            "ece",
            "positives",
            "rows",
        ]
        assert (out["auc"], out["gauc"], out["positives"], out["rows"]) == (0.5, 0.5, 2, 3)
        assert metrics.task_metrics(y, p)["gauc"] is None

    @pytest.mark.parametrize("labels", [[], [NAN, NAN], [0, 0, 0], [1]])
    def test_undefined_is_null_in_json(self, labels) -> None:
        n = len(labels)
        out = metrics.task_metrics(labels, np.full(n, 0.5, np.float32), np.zeros(n))
        assert out["auc"] is None and out["normalized_entropy"] is None
        assert json.loads(json.dumps(out, allow_nan=False)) == out


class TestRegression:
    def test_equals_sklearn(self) -> None:
        rng = np.random.default_rng(0)
        y, p = rng.normal(size=50), rng.normal(size=50)
        out = metrics.regression_metrics(np.r_[y, NAN], np.r_[p, 1.0])
        assert out == pytest.approx(
            {
                "mae": sk.mean_absolute_error(y, p),
                "rmse": sk.root_mean_squared_error(y, p),
                "r2": sk.r2_score(y, p),
                "rows": 50,
            }
        )

    def test_undefined(self) -> None:
        nothing = {"mae": None, "rmse": None, "r2": None, "rows": 0}
        assert metrics.regression_metrics([NAN], [1.0]) == nothing
        assert metrics.regression_metrics([2.0, 2.0], [1.0, 3.0])["r2"] is None
        assert np.mean([0.1] * 3) != 0.1
        assert metrics.regression_metrics([0.1] * 3, [0.1] * 3)["r2"] is None
