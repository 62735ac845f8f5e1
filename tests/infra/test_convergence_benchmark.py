"""The convergence benchmark: answers against a truth that a person can count, and a small world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infra.benchmarks.convergence import (
    COLUMNS,
    GIVEN,
    Rows,
    compare,
    ece_of_truth,
    expected_auc,
    table,
    truth_of,
)
from recsys.errors import UserError
from recsys.metrics import auc
from recsys.world import read_truth, simulate


def test_the_expected_auc_counts_every_pair_by_how_likely_it_is() -> None:
    scores, truth = np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.3, 0.1, 0.6, 0.5])
    weights = np.array([1.0, 2.0, 0.0, 1.0])
    won = total = 0.0
    for i in range(4):
        for j in range(4):
            pair = weights[i] * truth[i] * weights[j] * (1 - truth[j])
            total += pair
            won += pair * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    assert expected_auc(scores, truth, weights) == pytest.approx(won / total)


def test_the_expected_auc_is_the_mean_of_those_of_drawn_labels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 3000)
    scores = truth + rng.normal(0, 0.3, 3000)
    drawn = [auc((rng.uniform(size=3000) < truth).astype(float), scores) for _ in range(50)]
    error = np.std(drawn) / np.sqrt(50)
    assert abs(np.mean(drawn) - expected_auc(scores, truth, np.ones(3000))) < 4 * error


def test_the_error_against_the_truth_is_by_bins_of_equal_weight() -> None:
    scores, truth = np.array([0.4, 0.1, 0.2, 0.3]), np.array([0.5, 0.2, 0.2, 0.1])
    # Two bins: {0.1, 0.2} and {0.3, 0.4}, off by 0.1 and 0.1 in total; with weights, {0.1} of
    # weight 3 and the rest, off by 0.3 and 0.2 - 0.1.
    assert ece_of_truth(scores, truth, np.ones(4), 2) == pytest.approx((0.1 + 0.1) / 4)
    weights = np.array([1.0, 3.0, 1.0, 1.0])
    assert ece_of_truth(scores, truth, weights, 2) == pytest.approx((0.3 + 0.1) / 6)


def test_answers_are_compared_on_the_rows_that_they_are_about() -> None:
    rows = Rows(*np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0.9, 0.6, 0.5, 0.1], [0.8, 0.4, 0.9, 0]]))
    answers = {
        "click": np.array([0.9, 0.3, 0.5, 0.1]),
        "conversion": np.array([0.6, 0.7, 0.1, 0.1]),
        GIVEN: np.array([0.9, 0.1, 0.0, 1.0]),
    }
    found = compare(answers, rows)
    assert (found["click"].auc, found["click"].best) == (0.75, 1.0)
    # True products 0.72, 0.24, 0.45, 0; the last is as likely as an answer says it is.
    assert found["conversion"].auc == pytest.approx(2 / 3) and found["conversion"].best == 1.0
    given = found[GIVEN]
    assert (given.auc, given.best) == (1.0, 1.0)  # of the two clicked rows
    assert given.expected == pytest.approx(expected_auc(answers[GIVEN], rows[3], rows[2]))
    assert given.expected < given.expected_best < 1
    shown = table({3: found})[0]
    assert len(shown) == len(COLUMNS)
    assert shown[:5] == ["3", "click", "0.7500", "1.0000", "50.0%"]


def test_rows_find_their_own_truth(tmp_path: Path) -> None:
    world = tmp_path / "world"
    simulate(world, rows=600, days=3, dirt=0.2)
    shown = pa.concat_tables(
        pq.ParquetFile(path).read() for path in sorted((world / "impressions").rglob("*.parquet"))
    )
    some = shown.take(pa.array(np.random.default_rng(0).permutation(len(shown))[:50]))
    rows = truth_of(world, some["request_id"], some["item_id"])
    truth = read_truth(world)
    for at, impression in enumerate(some["impression_id"]):
        (one,) = truth.filter(pc.equal(truth["impression_id"], impression)).to_pylist()
        assert (rows.p_click[at], rows.click[at]) == (one["p_click"], one["click"])
        assert rows.p_given[at] == one["p_conversion_given_click"]
        assert rows.conversion[at] == one["conversion"]
    with pytest.raises(UserError, match="50 of 50"):
        truth_of(world, some["request_id"], pa.chunked_array([["none"] * 50]))
