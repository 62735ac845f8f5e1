"""What a loaded version costs the process that serves it, and what of its graph it takes."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from recsys.errors import UserError
from recsys.spec import Spec
from recsys.spec.schema import raw_columns
from serving.graph import needed, read_graph
from serving.live import Live
from serving.metrics import Metrics
from serving.scorer import Scorer


def objects_of(make: Callable[[], object]) -> int:
    """How many more objects the garbage collector knows while the result lives."""
    gc.collect()
    before = len(gc.get_objects())
    result = make()
    gc.collect()
    after = len(gc.get_objects())
    del result
    return after - before


def test_scores_are_those_of_the_saved_model(models: Path, spec: Spec):
    scorer = Scorer(models / "1", spec)
    draw = np.random.default_rng(0)
    columns = {
        column.name: draw.uniform(0, 9, 50).astype(np.float32)
        if column.dtype == "float32"
        else draw.choice(np.array(["u1", "i1,i2", "a|b", "é", ""], object), 50)
        for column in raw_columns(spec)
    }
    for name, values in columns.items():
        if name in ("user_id", "country", "activity", "seen", "device"):  # one a request
            values[:] = values[0]
    found = scorer.score(columns)
    served = tf.saved_model.load(str(models / "1")).signatures["serving_default"]
    wanted = served(**{name: tf.constant(values) for name, values in columns.items()})
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_only_what_is_asked_for_is_taken_of_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def inner(x):
        return x + 1.0

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def outer(x):
        return tf.cond(x > 0.0, lambda: inner(x), lambda: x)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def other(x):
        return x * 2.0

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [], "x")
        first = tf.constant(1.0, name="first")
        with tf.control_dependencies([first]):
            tf.identity(outer(x), "asked")
        tf.identity(other(x), "spare")
    whole = graph.as_graph_def()
    part = needed(whole, ["asked:0"])

    def functions(graph_def):
        return {function.signature.name for function in graph_def.library.function}

    nodes = {node.name for node in part.node}
    assert {"x", "first", "asked"} <= nodes and "spare" not in nodes
    left_out = functions(whole) - functions(part)
    assert len(left_out) == 1 and "other" in left_out.pop()
    with tf.Graph().as_default() as again:
        tf.graph_util.import_graph_def(part, name="")
    with tf.compat.v1.Session(graph=again) as session:
        assert session.run("asked:0", {"x:0": 2.0}) == 3.0


def test_a_version_is_few_objects_to_python(models: Path, spec: Spec):
    # Collecting what tf.saved_model.load makes stops every request.
    ours = objects_of(lambda: Scorer(models / "1", spec))
    theirs = objects_of(lambda: tf.saved_model.load(str(models / "1")))
    assert ours < theirs / 3


def test_a_version_that_was_replaced_is_freed_at_once(
    tmp_path: Path, features: Path, publish: Callable[..., Path]
):
    def sessions() -> int:
        return sum(isinstance(each, tf.compat.v1.Session) for each in gc.get_objects())

    gc.collect()
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, Metrics())
    one = sessions()
    publish(models, 2, scale=0.5)
    gc.disable()  # What the garbage collector frees, it frees some hundred requests later.
    try:
        live.poll()
        assert live.current.version == 2
        assert sessions() == one
    finally:
        gc.enable()


def test_a_file_without_a_graph_to_serve(tmp_path: Path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="no graph of the tag serve"):
        read_graph(tmp_path)


def test_a_model_without_the_signature_says_which_it_has(tmp_path: Path, spec: Spec):
    model = tf.Module()
    model.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(model, str(tmp_path), signatures={"other": model.f})
    with pytest.raises(UserError, match="cannot serve") as caught:
        Scorer(tmp_path, spec)
    assert caught.value.found == "the signatures ['__saved_model_init_op', 'other']"


def test_what_a_service_starts_with_is_not_collected_again():
    code = (
        "import gc, sys; from serving.scorer import set_apart; set_apart()\n"
        "print('tensorflow' in sys.modules, gc.get_freeze_count(), len(gc.get_objects()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    there, frozen, left = run.stdout.split()
    assert there == "True" and int(frozen) > 100_000 and int(left) < 10_000
