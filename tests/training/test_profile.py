"""What bounds a step: shares of a small made-up trace, and the words that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_features import small_spec

import training
from recsys.errors import UserError
from training.loop import Job, fit
from training.profile import (
    ADVICE,
    COLLECTIVES,
    DENSE,
    EMBEDDING,
    HOST,
    INPUT,
    LOSSES,
    PARTS,
    Op,
    classify,
    inside,
    read_trace,
    shares_of,
    verdict,
)


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("network_0/embedding_16/Unique", "Unique", EMBEDDING),
        ("network_1/embedding_4/einsum/Einsum", "BatchMatMulV2", EMBEDDING),
        ("network_0/first_order/Gather", "ResourceGather", EMBEDDING),
        ("embedding_gradient/stack", "Pack", EMBEDDING),
        ("embedding_gradient_1/SparseTensorDenseMatMul", "SparseTensorDenseMatMul", EMBEDDING),
        ("Tables/Tables/update_1/Sqrt", "Sqrt", EMBEDDING),
        ("gradient_tape/network_0/Tile", "Tile", EMBEDDING),
        ("gradient_tape/network_0/tower_click/MatMul/MatMul_1", "MatMul", DENSE),
        ("network_0/local_attention_past/mul", "Mul", DENSE),
        ("network_0/piecewise_5/mul", "Mul", DENSE),
        ("Dense/Dense/update_3/ResourceApplyAdam", "ResourceApplyAdam", DENSE),
        ("network_0/PartitionedCall", "_XlaRun", DENSE),
        ("gradient_tape/ReduceLogSumExp/mul", "Mul", LOSSES),
        ("Softplus_4", "Softplus", LOSSES),
        ("losses/Unique", "Unique", LOSSES),
        ("gradient_tape/losses/UnsortedSegmentSum_1", "UnsortedSegmentSum", LOSSES),
        ("balancing/MatMul", "MatMul", LOSSES),
        ("balancing/CollectiveReduceV2", "CollectiveReduceV2", COLLECTIVES),
        ("Tables/CollectiveGatherV2", "CollectiveGatherV2", COLLECTIVES),
        ("IteratorGetNext", "IteratorGetNext", INPUT),
        ("PyFunc", "PyFunc", INPUT),
    ],
)
def test_an_op_is_told_by_its_type_and_its_layers_name(name: str, kind: str, part: str) -> None:
    assert classify(name, kind) == part


def test_every_instant_of_a_step_is_charged_once() -> None:
    matmul, table = ("network_0/sharing/bottom/MatMul", "MatMul"), ("Tables/mul", "Mul")
    ops = [
        Op(*matmul, thread=1, start=10, end=30),
        # Beside it from 20 on: the instants from 20 to 30 are halved, 30 to 40 are its own.
        Op(*table, thread=2, start=20, end=40),
        # Hidden behind the table's work until 40, then alone until 70.
        Op("Dense/CollectiveReduceV2", "CollectiveReduceV2", thread=3, start=25, end=70),
        # Nested in the exchange, on its thread: an op that its end set going.
        Op("mul_1", "Mul", thread=3, start=60, end=65),
        # In the background, and between the steps: nobody's.
        Op("PyFunc", "PyFunc", thread=4, start=0, end=100),
        Op(*matmul, thread=1, start=100, end=200),
        # Half in the second step, which ends at 220.
        Op(*matmul, thread=1, start=210, end=230),
    ]
    by_part, by_scope = inside(ops, [(0, 100), (200, 220)])
    assert by_part == {
        DENSE: 10 + 5 + 10,
        EMBEDDING: 5 + 10,
        COLLECTIVES: 20 + 5,
        LOSSES: 5,
        HOST: 10 + 30 + 10,
    }
    assert by_scope == {"network_0/sharing": 25, "Tables": 15, "Dense": 25}
    # A quarter of the time waits for input; of the rest, 25 of 120 ns are dense, and so on.
    shares = shares_of(1.0, 3.0, by_part, [(0, 100), (200, 220)])
    assert shares == pytest.approx(
        {
            INPUT: 0.25,
            DENSE: 0.75 * 25 / 120,
            EMBEDDING: 0.75 * 15 / 120,
            COLLECTIVES: 0.75 * 25 / 120,
            LOSSES: 0.75 * 5 / 120,
            HOST: 0.75 * 50 / 120,
        }
    )
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("part", list(PARTS))
def test_the_words_name_what_bounds_and_what_to_change(part: str) -> None:
    rest = 0.4 / (len(PARTS) - 1)
    bound, words = verdict({**dict.fromkeys(PARTS, rest), part: 0.6})
    assert bound == part
    assert words[0] == f"The run is bound by {PARTS[part]}: 60% of a step."
    assert len(words) == 2 and words[1].endswith(ADVICE[part])


def test_without_a_part_that_bounds_both_largest_are_named() -> None:
    shares = {INPUT: 0.05, EMBEDDING: 0.3, DENSE: 0.39, LOSSES: 0.1, COLLECTIVES: 0.0, HOST: 0.16}
    bound, words = verdict(shares)
    assert bound is None
    assert words[0].endswith("most of a step is dense work (39%) and embedding work (30%).")
    assert [line.split(",")[0] for line in words[1:]] == ["Dense work", "Embedding work"]


def test_a_gpus_kernels_count_and_not_what_launches_them(tmp_path: Path) -> None:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    host, gpu = space.planes.add(name="/host:CPU"), space.planes.add(name="/device:GPU:0 (x)")
    for number, label in enumerate(["train", "Tables/mul:Mul", "Dense/C:CollectiveReduceV2"]):
        host.event_metadata[number].name = label
    gpu.event_metadata[0].name = "sgemm_128"
    gpu.stat_metadata[5].name = "tf_op"
    python = host.lines.add(timestamp_ns=1000)
    for number, (start, length) in enumerate([(0, 100), (10, 5), (80, 15)]):
        python.events.add(metadata_id=number, offset_ps=start * 1000, duration_ps=length * 1000)
    kernel = gpu.lines.add(timestamp_ns=1000).events.add(offset_ps=20_000, duration_ps=40_000)
    kernel.stats.add(metadata_id=5, str_value="network_0/tower_click/MatMul:MatMul")
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(space.SerializeToString())
    ops, steps = read_trace(path)
    assert steps == [(1000, 1100)]
    assert sorted((op.kind, op.start, op.end) for op in ops) == [
        ("CollectiveReduceV2", 1080, 1095),
        ("MatMul", 1020, 1060),
    ]


def test_what_xla_compiled_is_dense_work(tmp_path: Path) -> None:
    """A real trace: a compiled call has no ops, and would else look like an idle host."""
    import tensorflow as tf

    compiled = tf.function(lambda x: tf.linalg.matmul(x, x), jit_compile=True)
    step = tf.function(lambda x: compiled(x))
    x = tf.random.normal([300, 300])
    step(x)
    tf.profiler.experimental.start(str(tmp_path))
    with tf.profiler.experimental.Trace("train", step_num=0, _r=1):
        step(x)
    tf.profiler.experimental.stop()
    ops, steps = read_trace(next(tmp_path.rglob("*.xplane.pb")))
    by_part, by_scope = inside(ops, steps)
    assert len(steps) == 1 and by_scope["xla"] == by_part[DENSE] > 0


def test_what_cannot_be_profiled_is_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profiled and eager"):
        training.train(small_spec(), features, tmp_path / "run", profile=True, eager=True)
    with pytest.raises(UserError, match="too few steps") as error:
        fit(Job(small_spec(max_steps=5), features, tmp_path, profile=True))
    assert error.value.found == "5"
