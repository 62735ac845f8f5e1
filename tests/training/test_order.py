"""Plans and orders: every row once, whatever the number of workers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import UserError
from training.order import ShardOrder, make_plan, thin_negatives


@given(
    rows=st.integers(16, 5000),
    batch=st.sampled_from([4, 10, 64, 100, 1024]),
    workers=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_shares_cover_all_rows_once_and_steps_agree(rows: int, batch: int, workers: int) -> None:
    plan = make_plan(rows, batch, workers)
    shares = [plan.share(worker) for worker in range(workers)]
    assert shares[0][0] == 0 and shares[-1][1] == rows
    assert all(before[1] == after[0] for before, after in pairwise(shares))
    # Every shard has rows enough for every step, so that no worker waits for another forever.
    for shard in range(plan.shards):
        low, high = plan.bounds(shard)
        assert high - low >= plan.steps * plan.take
    assert plan.steps >= 1
    assert rows - plan.steps * plan.batch < plan.batch + plan.shards
    if rows >= batch and batch % workers == 0 and workers in (1, 2, 4, 8) and batch % 8 == 0:
        assert plan.batch == batch and rows - plan.steps * batch < batch


def test_plan_is_the_same_for_one_two_four_and_eight_workers() -> None:
    plans = [make_plan(10_000, 256, workers) for workers in (1, 2, 4, 8)]
    assert {(plan.shards, plan.take, plan.steps) for plan in plans} == {(8, 32, 39)}


def test_fewer_rows_than_workers_is_refused() -> None:
    with pytest.raises(UserError, match="fewer training rows") as error:
        make_plan(3, 64, 4)
    assert error.value.found == "3"


@given(size=st.integers(1, 400), block=st.integers(1, 40), cut=st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_an_order_is_a_permutation_that_can_be_entered_anywhere(
    size: int, block: int, cut: int
) -> None:
    def order() -> ShardOrder:
        return ShardOrder(size, seed=3, epoch=1, shard=2, block=block)

    whole = order().rows(0, size)
    assert sorted(whole.tolist()) == list(range(size))
    cut = min(cut, size)
    np.testing.assert_array_equal(order().rows(cut, size), whole[cut:])
    np.testing.assert_array_equal(order().rows(0, cut), whole[:cut])


def test_epochs_and_seeds_differ() -> None:
    orders = [
        ShardOrder(100, seed=seed, epoch=epoch, shard=0).rows(0, 100).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_groups_stay_together() -> None:
    groups = np.random.default_rng(0).integers(0, 50, 400)
    rows = ShardOrder(400, seed=0, epoch=0, shard=0, groups=groups).rows(0, 400)
    assert sorted(rows.tolist()) == list(range(400))
    changes = int((np.diff(groups[rows]) != 0).sum())
    assert changes == len(np.unique(groups)) - 1


def test_orders_and_thinning_stay_from_version_to_version() -> None:
    groups = np.array([4, 4, 9, 9, 1, 1, 7, 7, 2, 2, 5, 5])
    order = ShardOrder(12, seed=3, epoch=1, shard=0, groups=groups, block=4)
    assert order.rows(0, 12).tolist() == [6, 7, 10, 11, 4, 5, 8, 9, 0, 1, 2, 3]
    kept = thin_negatives(np.arange(40) % 7 == 0, 0.3, seed=5)
    assert kept.tolist() == [0, 2, 3, 7, 10, 14, 18, 19, 21, 28, 35, 38]


def test_thinning_keeps_positives_and_a_share_of_the_rest() -> None:
    positive = np.arange(20_000) % 10 == 0
    kept = thin_negatives(positive, 0.25, seed=1)
    assert set(np.flatnonzero(positive)) <= set(kept.tolist())
    # 18,000 negatives at 0.25: mean 4,500, standard deviation sqrt(18000 * 3/16) = 58.
    assert abs(len(kept) - 2000 - 4500) < 5 * 58
    assert not np.array_equal(kept, thin_negatives(positive, 0.25, seed=2))
