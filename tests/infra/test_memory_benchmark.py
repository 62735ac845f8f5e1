"""Memory over the length of a history: shown on the graph of a training step, without a clock."""

from __future__ import annotations

import pytest
import tensorflow as tf

from infra.benchmarks.memory import CASES, FULL, LOCAL, TARGET, make_step, markdown

BATCH, DIM, LENGTH = 2, 8, 256


def elements(name: str, recompute: bool, length: int) -> tuple[int, int]:
    """Elements of the largest tensor of a step's forward and backward pass, and of all."""
    step = make_step(name, recompute, DIM, layers=2)
    graph = step.get_concrete_function(tf.TensorSpec([BATCH, length, DIM])).graph
    shapes = [output.shape for op in graph.get_operations() for output in op.outputs]
    assert all(shape.is_fully_defined() for shape in shapes), "a size would be overlooked"
    sizes = [shape.num_elements() for shape in shapes]
    return max(sizes), sum(sizes)


@pytest.mark.parametrize(("name", "recompute"), CASES)
def test_twice_the_length_takes_twice_the_memory_and_not_four_times(
    name: str, recompute: bool
) -> None:
    largest, total = elements(name, recompute, LENGTH)
    twice_largest, twice_total = elements(name, recompute, 2 * LENGTH)
    # Per event: local scores over two windows of 64 by 2 heads; hidden units of the target's.
    expected = {
        LOCAL: BATCH * LENGTH * 2 * 128,
        TARGET: BATCH * LENGTH * 64,
        FULL: BATCH * LENGTH * LENGTH * 2,
    }
    assert largest == expected[name]
    if name == FULL:
        assert twice_largest == 4 * largest and twice_total > 3.5 * total
    else:
        assert twice_largest == 2 * largest and total < twice_total <= 2 * total


def test_the_table_shows_each_growth() -> None:
    points = [{"mib": 10.0, "ms": 1.0}, {"mib": 20.4, "ms": 2.5}, {"mib": 81.6, "ms": 1200.0}]
    lines = markdown([512, 1024, 2048], {(LOCAL, True): points}).splitlines()
    assert lines[0] == "| layer | recompute | 512 | 1,024 | 2,048 | growth |"
    assert lines[2] == (
        f"| {LOCAL} | yes | 10 MiB, 1 ms | 20 MiB, 2 ms | 82 MiB, 1,200 ms | ×2.04, ×4.00 |"
    )
