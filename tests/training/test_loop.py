"""The loop: seeds, resuming, workers, early stopping, faults."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from make_features import TABLES, make_features, small_spec
from two_workers import fit_in_processes

import training
from recsys.errors import UserError
from recsys.model import build
from recsys.spec.change import change
from recsys.spec.records import Balancing
from training.checkpoints import Store
from training.input import chunks, load_rows, open_split
from training.loop import Job, fit
from training.order import make_plan

pytestmark = pytest.mark.long


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "history.json").read_text())


def weights(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.variables]


@pytest.fixture(scope="module")
def whole(features: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of two epochs, and its model."""
    run = tmp_path_factory.mktemp("whole")
    return run, fit(Job(small_spec(checkpoint_every=10), features, run))[0]


def test_it_learns_and_tells(whole: tuple[Path, Any]) -> None:
    run, _ = whole
    records = history(run)
    assert [record["step"] for record in records] == [31, 62]
    assert records[1]["train"]["loss"] < records[0]["train"]["loss"]
    assert records[1]["validation"]["click"]["auc"] > 0.75
    assert set(records[0]["validation"]) == {"click", "conversion", "conversion_given_click"}
    scalars = _scalars(run / "logs" / "validation")
    assert {"auc/click", "log_loss/conversion"} <= set(scalars)
    trained = _scalars(run / "logs" / "train")
    assert {"loss", "loss/click", "loss/conversion"} <= set(trained)
    # Looks are at checkpoints, every ten steps, and at the end of an epoch of 31: each tells the
    # mean of its steps, and an epoch's mean is over steps as well.
    first, second = np.split(np.array(trained["loss"]), 2)
    assert records[0]["train"]["loss"] == pytest.approx(np.average(first, weights=[10, 10, 10, 1]))
    assert records[1]["train"]["loss"] == pytest.approx(np.average(second, weights=[9, 10, 10, 2]))
    assert scalars["auc/click"] == pytest.approx(
        [record["validation"]["click"]["auc"] for record in records]
    )


def _scalars(folder: Path) -> dict[str, list[float]]:
    import tensorflow as tf

    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


def test_resumed_in_an_epoch_it_ends_like_one_that_was_not_stopped(
    features: Path, tmp_path: Path
) -> None:
    class InterruptionError(Exception):
        pass

    def stop(stage: str, done: int, total: int, text: str) -> None:
        if stage == "train" and done == 50:
            raise InterruptionError

    spec = small_spec(checkpoint_every=10)
    spec = change(spec, ["model.dropout=0.3"])
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole", fit(Job(spec, features, tmp_path / "whole"))[0]
    run = tmp_path / "run"
    run.mkdir()
    job = Job(spec, features, run)
    with pytest.raises(InterruptionError):
        fit(job, progress=stop)
    # The losses of step 50 were looked at, and its checkpoint was not yet written.
    assert Store(run / "checkpoints").names()[-1] == "step-00000040"
    model, _ = fit(job)
    for left, right in zip(weights(model), weights(whole[1]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
    for left, right in zip(history(run), history(whole[0]), strict=True):
        assert left["score"] == pytest.approx(right["score"], abs=1e-6)
        assert left["train"] == pytest.approx(right["train"], rel=1e-4)


def test_a_damaged_checkpoint_is_passed_over(
    features: Path, tmp_path: Path, whole: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    store = Store(tmp_path / "checkpoints")
    data = next((tmp_path / "checkpoints" / store.names()[-1]).glob("state.data*"))
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 0xFF
    data.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        model, _ = fit(Job(small_spec(checkpoint_every=10), features, tmp_path))
    assert "step-00000062 is damaged" in caplog.text
    # It went on from step 60, optimizer and all.
    for left, right in zip(weights(model), weights(whole[1]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
    data.write_bytes(content[:100])
    assert store.restore_latest(model).step == 60
    for name in store.names():
        (tmp_path / "checkpoints" / name / "position.json").write_text("{")
    with pytest.raises(UserError, match="Every checkpoint"):
        store.restore_latest(model)


def test_two_workers_end_like_one(features: Path, tmp_path: Path) -> None:
    # Thinned negatives weigh more, and workers have different numbers of them in a batch; so they
    # have of clicks, on which alone observed conversions are trained.
    changes = {"negative_sampling": 0.2, "space": "observed"}
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    fit(Job(small_spec(**changes), features, alone))
    fit_in_processes(features, both, 2, **changes)
    for left, right in zip(history(both), history(alone), strict=True):
        assert left["step"] == right["step"]
        assert left["score"] == pytest.approx(right["score"], abs=1e-4)
        assert left["train"]["loss"] == pytest.approx(right["train"]["loss"], rel=1e-4)


def test_rows_of_no_weight_teach_nothing(features: Path, tmp_path: Path) -> None:
    spec = change(small_spec(), ["data.weight=importance"])
    weighted = tmp_path / "features"
    shutil.copytree(features, weighted)
    rng = np.random.default_rng(0)
    for path in (weighted / "examples").rglob("*.parquet"):
        table = pq.read_table(path)
        weight = np.ones(len(table), np.float32)
        if "train" in path.parts:
            # Beside each row one that says the opposite, and counts for nothing.
            wrong = table
            for name in ("label:click", "label:conversion"):
                opposite = pa.array(1 - table[name].to_numpy())
                wrong = wrong.set_column(wrong.column_names.index(name), name, opposite)
            mixed = rng.permutation(2 * len(table))
            table = pa.concat_tables([table, wrong]).take(pa.array(mixed))
            weight = np.concatenate([weight, 0 * weight])[mixed]
        table = table.append_column("key:weight", pa.array(weight))
        pq.write_table(table, path, row_group_size=150)
    runs = {"weighted": spec, "unweighted": small_spec()}
    found = {}
    for name, each in runs.items():
        (tmp_path / name).mkdir()
        fit(Job(each, weighted, tmp_path / name))
        found[name] = history(tmp_path / name)[-1]["validation"]["click"]["auc"]
    assert found["weighted"] > 0.75
    assert abs(found["unweighted"] - 0.5) < 0.15


def test_a_profiled_run_is_the_same_and_says_what_bounds_it(
    features: Path, tmp_path: Path, whole: tuple[Path, Any]
) -> None:
    fit(Job(small_spec(), features, tmp_path, profile=True))
    for left, right in zip(history(tmp_path), history(whole[0]), strict=True):
        assert left["score"] == pytest.approx(right["score"], abs=1e-6)
        assert left["train"]["loss"] == pytest.approx(right["train"]["loss"], rel=1e-5)
    found = json.loads((tmp_path / "profile.json").read_text())
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=1e-6)
    assert all(found["shares"][part] > 0 for part in ("input", "embedding", "dense", "losses"))
    assert found["shares"]["collectives"] == 0
    # Of an epoch of 31 steps, 7 warm up, 12 are timed and 12 traced.
    assert found["steps"] == 12 and found["rows"] == 64
    assert found["rows_per_s"] == pytest.approx(64_000 / found["step_ms"])
    assert {"network_0/sharing", "Dense"} & set(found["costliest"])
    assert (tmp_path / found["trace"]).is_file()
    assert (tmp_path / "logs") in (tmp_path / found["trace"]).parents


def test_early_stopping_keeps_the_best_and_the_last_two(features: Path, tmp_path: Path) -> None:
    # So high a rate that the first epoch is the best, and later ones overfit.
    spec = small_spec(
        epochs=9, table_learning_rate=1.0, dense_learning_rate=0.03, checkpoint_every=10
    )
    spec = spec.model_copy(
        update={
            "train": spec.train.model_copy(
                update={
                    "early_stopping": spec.train.early_stopping.model_copy(update={"patience": 2})
                }
            )
        }
    )
    last = weights(fit(Job(spec, features, tmp_path))[0])
    scores = [record["score"] for record in history(tmp_path)]
    best = int(np.argmax(scores))
    assert len(scores) == best + 3 < 9
    model = build(spec, TABLES)
    store = Store(tmp_path / "checkpoints")
    position = store.restore_best(model)
    assert position.best is not None and position.ended
    # Epochs have 31 steps; the last checkpoints are of the last epoch's end and from within it.
    steps = 31 * len(scores)
    assert store.names() == [f"step-{at:08d}" for at in (31 * (best + 1), steps // 10 * 10, steps)]
    assert position.best["epoch"] == best and position.best["score"] == max(scores)
    differs = [not np.array_equal(a, b) for a, b in zip(weights(model), last, strict=True)]
    assert any(differs)
    # Without the best, the newest is better than none.
    told: list[str] = []
    next((store.folder / position.best["checkpoint"]).glob("state.data*")).write_bytes(b"")
    assert store.restore_best(model, told.append) == position
    [warning] = told
    assert warning.startswith("the best checkpoint is damaged, the last one is used")
    for left, right in zip(weights(model), last, strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_epoch_that_is_as_good_is_no_better(features: Path, tmp_path: Path) -> None:
    # Rates that move no weight, so that all epochs are alike.
    spec = small_spec(
        epochs=3, batch_size=512, table_learning_rate=1e-30, dense_learning_rate=1e-30
    )
    _, position = fit(Job(spec, features, tmp_path))
    scores = [record["score"] for record in history(tmp_path)]
    assert scores == [scores[0]] * 3
    assert position.best is not None and position.best["epoch"] == 0 and position.stale == 2


def test_most_steps(features: Path, tmp_path: Path) -> None:
    fit(Job(small_spec(max_steps=7), features, tmp_path))
    assert [record["step"] for record in history(tmp_path)] == [7]


def test_steps_that_the_loss_scale_skips_do_not_stop_the_run(
    features: Path, tmp_path: Path
) -> None:
    # So heavy a task overflows float16 until the scale has come down.
    spec = small_spec(precision="mixed_float16", balancing=Balancing(kind="gradnorm"), max_steps=25)
    click = spec.tasks[0].model_copy(update={"weight": 1e5})
    spec = spec.model_copy(update={"tasks": (click, *spec.tasks[1:])})
    model, position = fit(Job(spec, features, tmp_path))
    assert position.step == 25
    scale = next(v for v in model.variables if v.name.startswith("scale"))
    assert float(scale) < 2.0**12
    scalars = {name: value for name, (value,) in _scalars(tmp_path / "logs" / "train").items()}
    # What GradNorm makes of them sums to the number of tasks, and the spec's factors come on top.
    assert scalars["weight/click"] / 1e5 + scalars["weight/conversion"] == pytest.approx(2.0)
    assert scalars["weight/click"] != pytest.approx(1e5, rel=0.01)
    assert scalars["gradient_norm/click"] > 0 and scalars["gradient_norm/conversion"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(features: Path, tmp_path: Path) -> None:
    spec = small_spec(dense_learning_rate=1e38, checkpoint_every=1)
    with pytest.raises(UserError, match="loss is not finite") as error:
        fit(Job(spec, features, tmp_path))
    assert "layer network_0/" in error.value.where
    names = Store(tmp_path / "checkpoints").names()
    position = Store(tmp_path / "checkpoints").restore_latest(build(spec, TABLES))
    assert names[-1] == f"step-{position.step:08d}" and names[-1] in error.value.fix


def _with_price(features: Path, to: Path, row: int, price: float) -> Path:
    """The features with another price in one training row."""
    shutil.copytree(features, to)
    path = sorted((to / "examples" / "train").glob("*.parquet"))[0]
    table = pq.read_table(path)
    values = table["price"].to_numpy().copy()
    values[row] = price
    place = table.column_names.index("price")
    pq.write_table(table.set_column(place, "price", pa.array(values)), path, row_group_size=150)
    return to


def _batch_of(features: Path, spec: Any) -> tuple[int, int]:
    """The batch of the first epoch with a price that no other row has, and its row there."""
    rows = load_rows(spec, open_split(spec, features, "train"))
    plan = make_plan(len(rows), spec.train.batch_size, 1)
    for batch in range(plan.steps):
        [part] = chunks(rows, plan, 0, seed=spec.train.seed, epoch=0, start=batch, stop=batch + 1)
        found = np.flatnonzero(~(np.abs(part["numbers"][:, 0]) <= 1))
        if found.size:
            return batch, int(found[0])
    raise AssertionError


@pytest.mark.parametrize("eager", [False, True])
def test_a_value_that_is_no_number_is_named_by_row_and_feature(
    features: Path, tmp_path: Path, eager: bool
) -> None:
    spec, folder = small_spec(), _with_price(features, tmp_path / "features", 300, np.nan)
    batch, row = _batch_of(folder, spec)
    with pytest.raises(UserError, match="data hold what is no number") as error:
        fit(Job(spec, folder, tmp_path, eager=eager))
    at = f"epoch 1, batch {batch}, step {batch}, "
    assert error.value.where == f"{at}feature `price` is nan in row {row}"
    # Rates are none of its causes, and nothing was kept.
    assert "rate" not in error.value.fix and "checkpoint" not in error.value.fix


def test_the_layer_is_named_by_the_weights_before_the_step(features: Path, tmp_path: Path) -> None:
    # The look comes steps later, when all tables are spoiled.
    spec = small_spec(checkpoint_every=5)
    folder = _with_price(features, tmp_path / "features", 300, 3.4e38)
    found = {}
    for eager in (False, True):
        run = tmp_path / f"run-{eager}"
        run.mkdir()
        with pytest.raises(UserError, match="not finite") as error:
            fit(Job(spec, folder, run, eager=eager))
        assert "checkpoint" in error.value.fix
        found[eager] = error.value.where
    assert "layer network_0/sharing" in found[True]
    assert found[False].split(":")[0] == found[True].split(":")[0]
    assert "whose weights the update before spoiled (epoch 1, batch " in found[False]


def test_eager_names_the_layer_and_writes_shapes(features: Path, tmp_path: Path) -> None:
    spec = small_spec(dense_learning_rate=1e38, max_steps=20)
    with pytest.raises(UserError, match="Layer `.+` gave a value that is not finite") as error:
        fit(Job(spec, features, tmp_path, eager=True))
    assert "network_0/" in error.value.where and "float32[64, " in error.value.where
    assert error.value.where.startswith("epoch 1, batch 1, step 1, layer network_0/")
    assert "dense_learning_rate" in error.value.fix and "checkpoint" not in error.value.fix
    assert "float32[64, " in (tmp_path / "logs" / "shapes.txt").read_text()


@pytest.mark.parametrize("refit", [None, 1])
def test_weights_that_the_last_step_spoiled_are_not_kept(
    features: Path, tmp_path: Path, refit: int | None
) -> None:
    # The loss of a step is of before its update.
    spec = small_spec(dense_learning_rate=1e39, warmup_steps=0, max_steps=1)
    job = Job(spec, features, tmp_path, refit=refit)
    what = "predictions are" if refit is None else "a weight is"
    with pytest.raises(UserError, match=f"{what} not finite") as error:
        fit(job)
    assert "step 1, " in error.value.where and "network_0/" in error.value.where
    assert Store(tmp_path / job.checkpoints).names() == []


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Features of which one split has numbers that float16 does not hold."""

    def make(split: str) -> Path:
        folder = make_features(tmp_path_factory.mktemp("huge") / "features")
        for path in (folder / "examples" / split).glob("*.parquet"):
            table = pq.read_table(path)
            price = pc.multiply(table["price"], pa.scalar(1e6, pa.float32()))
            place = table.column_names.index("price")
            pq.write_table(table.set_column(place, "price", price), path, row_group_size=150)
        return folder

    return make


def test_predictions_that_are_not_finite_stop_the_run_and_name_the_layer(
    huge: Any, tmp_path: Path
) -> None:
    spec = small_spec(precision="mixed_float16", max_steps=3)
    with pytest.raises(UserError, match="predictions are not finite") as error:
        fit(Job(spec, huge("validation"), tmp_path))
    layer = "layer network_0/sharing/bottom/block_0: float16[1, 27] -> float16[1, 16]"
    assert error.value.where == f"epoch 1, step 3, validation rows, {layer}"


def test_answers_that_are_no_numbers_are_refused(huge: Any, tmp_path: Path) -> None:
    folder, run = huge("test"), tmp_path / "run"
    training.train(small_spec(precision="mixed_float16", max_steps=3), folder, run)
    with pytest.raises(UserError, match="what is no number") as error:
        training.evaluate(run)
    assert "`click` is NaN or infinite in" in error.value.found
    assert f"{run}/export" in error.value.where and "examples/test" in error.value.where
