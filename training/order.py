"""Which rows are in which batch: the same whatever the number of workers.

A split's rows are cut into virtual shards, contiguous and equally long. Every batch takes
equally many rows of every shard, and a worker reads a whole number of shards. Hence batch
`i` of epoch `e` holds the same rows with one worker, two, four or eight, a run may be
resumed on another number of workers, and any batch can be reached without those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.splitmix import mixed

BLOCK = 8192
"""Rows that stay together on their way into a window (they lie together on disk)."""

WINDOW = 8
"""Blocks that are mixed row by row."""

_SHARDS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Plan:
    """How an epoch's rows fall into shards and batches.

    Attributes:
        rows: Rows of the split.
        shards: Virtual shards, a multiple of `workers`.
        take: Rows of each shard in a batch.
        workers: How many read, at least 1.
    """

    rows: int
    shards: int
    take: int
    workers: int

    @property
    def batch(self) -> int:
        """Rows of a batch, over all workers."""
        return self.shards * self.take

    @property
    def worker_batch(self) -> int:
        """Rows of a worker's part of a batch."""
        return self.batch // self.workers

    @property
    def steps(self) -> int:
        """Batches of an epoch. Fewer than a batch of rows is left out, others each epoch."""
        return self.rows // self.shards // self.take

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the first after it."""
        return self.rows * shard // self.shards, self.rows * (shard + 1) // self.shards

    def shards_of(self, worker: int) -> range:
        """The shards that a worker reads."""
        each = self.shards // self.workers
        return range(worker * each, (worker + 1) * each)

    def share(self, worker: int) -> tuple[int, int]:
        """First row that a worker reads, and the first after its last."""
        shards = self.shards_of(worker)
        return self.bounds(shards[0])[0], self.bounds(shards[-1])[1]


def make_plan(rows: int, batch_size: int, workers: int) -> Plan:
    """The plan of an epoch.

    The batch is `batch_size` rows wherever the workers divide it, else the nearest multiple;
    a split of fewer rows than that is one batch.

    Raises:
        UserError: There are fewer rows than workers.

    >>> plan = make_plan(rows=1000, batch_size=64, workers=2)
    >>> plan.shards, plan.take, plan.steps, plan.share(1)
    (8, 8, 15, (500, 1000))
    """
    workers = max(workers, 1)
    if rows < workers:
        raise UserError(
            "There are fewer training rows than workers.",
            expected=f"at least {workers} rows",
            found=str(rows),
            fix="Use fewer workers, or build features from more data.",
        )
    shards = next(n for n in _SHARDS if batch_size % n == 0)
    if shards % workers or rows < shards:
        shards = workers
    take = max(1, round(batch_size / shards))
    return Plan(rows, shards, min(take, rows // shards), workers)


class ShardOrder:
    """The seeded order of one shard's rows in one epoch.

    Blocks of consecutive rows are permuted, then the rows of `WINDOW` blocks at a time. With
    `groups`, rows of one group (a request) that fall in one window stay next to one another,
    as losses over a request's impressions need it.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        epoch: int,
        shard: int,
        groups: NDArray[np.int64] | None = None,
        block: int = BLOCK,
    ) -> None:
        self._size, self._block, self._groups = size, block, groups
        self._key = (seed & 0xFFFFFFFF, epoch, shard)
        blocks = -(-size // block)
        self._blocks = np.random.default_rng(self._key).permutation(blocks)
        sizes = np.minimum(block, size - self._blocks * block)
        firsts = np.arange(0, blocks, WINDOW)
        self._ends = np.cumsum(np.add.reduceat(sizes, firsts)) if blocks else np.zeros(0, int)
        self._cached = (-1, np.zeros(0, np.int64))

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows of the shard at places `start` to `stop` of the order, [stop - start].

        Raises:
            ValueError: The shard has no such places.
        """
        if not 0 <= start <= stop <= self._size:
            raise ValueError(f"places {start} to {stop} of a shard of {self._size} rows")
        parts, first = [], int(np.searchsorted(self._ends, start, side="right"))
        for window in range(first, len(self._ends)):
            begin = 0 if window == 0 else int(self._ends[window - 1])
            if begin >= stop:
                break
            rows = self._window(window)
            parts.append(rows[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _window(self, window: int) -> NDArray[np.int64]:
        if self._cached[0] != window:
            blocks = self._blocks[window * WINDOW : (window + 1) * WINDOW]
            rows = np.concatenate(
                [np.arange(b * self._block, min((b + 1) * self._block, self._size)) for b in blocks]
            )
            rng = np.random.default_rng((*self._key, window))
            if self._groups is None:
                rng.shuffle(rows)
            else:
                salt = rng.integers(0, 2**63, dtype=np.int64)
                rows = rows[np.argsort(mixed(self._groups[rows] ^ salt), kind="stable")]
            self._cached = (window, rows)
        return self._cached[1]


def thin_negatives(positive: NDArray[np.bool_], rate: float, seed: int) -> NDArray[np.int64]:
    """Rows that are kept: all with a positive label, and a seeded share `rate` of the others.

    >>> thin_negatives(np.array([True, False, True]), rate=1e-9, seed=0).tolist()
    [0, 2]
    """
    rows = np.arange(positive.size, dtype=np.int64)
    salt = np.int64((seed + 1) * 0x9E3779B9 & 0x7FFFFFFFFFFFFFFF)
    chance = mixed(rows ^ salt) / np.float64(2**64)
    return rows[positive | (chance < rate)]
