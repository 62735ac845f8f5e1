"""`train.refit`: what validation settled, trained anew with validation rows among the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from make_features import TABLES, make_columns, make_features, small_spec

import training
from recsys.artifacts import read_json, read_manifest
from recsys.errors import UserError
from recsys.model import build
from recsys.spec import Spec
from recsys.spec.records import EarlyStopping, Trees
from training.boosting import fit_trees, refit_trees
from training.checkpoints import Store
from training.evaluation import load_numeric
from training.input import load_rows, open_split
from training.loop import Job, fit
from training.order import make_plan
from training.warm_start import start_from

pytestmark = pytest.mark.long

ROWS = {"train": 2000, "validation": 400}


def refit(**train: Any) -> Spec:
    return small_spec(refit=True, **train)


def with_trees(spec: Spec) -> Spec:
    part = spec.model.model_copy(update={"trees": Trees(leaf_rows=10)})
    return spec.model_copy(update={"model": part})


def answers(run: Path) -> dict[str, np.ndarray]:
    columns = make_columns(300, seed=9)
    inputs = {name: columns[name].to_numpy() for name in ("user", "item", "price", "device")}
    inputs["tags"] = columns["tags"].flatten().to_numpy().reshape(300, 3)
    found = load_numeric(run / "export")(**{n: tf.constant(v) for n, v in inputs.items()})
    return {name: value.numpy() for name, value in found.items()}


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refit") / "run"
    training.train(refit(), features, folder)
    return folder


def test_it_is_a_training_on_both_splits(features: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    shutil.copytree(features, joined)
    for n, path in enumerate(sorted((joined / "examples" / "validation").glob("*.parquet"))):
        shutil.copy(path, joined / "examples" / "train" / f"part-9{n}.parquet")
    for name in ("run", "plain"):
        (tmp_path / name).mkdir()
    spec = small_spec(max_steps=50)
    anew, _ = fit(Job(spec, features, tmp_path / "run", refit=2))
    naive, _ = fit(Job(spec, joined, tmp_path / "plain"))
    for left, right in zip(anew.trainable_variables, naive.trainable_variables, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    # 2,400 rows in batches of 64 are 37 steps an epoch; the limit ends it in the second.
    assert Store(tmp_path / "run" / "refit").names() == ["step-00000037", "step-00000050"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert {p.name for p in (tmp_path / "run" / "logs").iterdir()} == {"refit"}


def test_what_validation_told_is_told_by_rows_that_training_lacked(
    features: Path, run: Path, tmp_path: Path
) -> None:
    training.train(small_spec(), features, tmp_path / "plain")
    told, plainly = (
        read_json(folder / "metrics-validation.json") for folder in (run, tmp_path / "plain")
    )
    assert told["rows"] == plainly["rows"] == 400
    for task, metrics in plainly["tasks"].items():
        assert told["tasks"][task] == pytest.approx(metrics, abs=1e-4)
    assert len(read_json(run / "history.json")) == 2
    moved = shutil.copytree(features, tmp_path / "moved")
    with pytest.raises(UserError, match="trained anew on the validation rows"):
        training.evaluate(run, "validation", features=moved)
    with pytest.raises(UserError, match="trained anew on the validation rows"):
        training.evaluate(run, "validation")
    # Nor may it be a champion there.
    with pytest.raises(UserError, match="trained anew on the validation rows"):
        training.evaluate(tmp_path / "plain", "validation", champion=run)
    assert read_json(run / "metrics-validation.json") == told
    trained = read_manifest(run, "run")["trained"]
    assert trained["refit_epochs"] == 1 + trained["best_epoch"]
    assert "refit_epochs" not in read_manifest(tmp_path / "plain", "run")["trained"]
    ours, plain = answers(run), answers(tmp_path / "plain")
    assert np.abs(ours["click"] - plain["click"]).max() > 1e-3
    assert training.evaluate(run)["tasks"]["click"]["auc"] > 0.7


def test_as_many_epochs_as_were_best(features: Path, tmp_path: Path) -> None:
    # Rates at which further epochs only make it surer of what it has seen.
    stop = EarlyStopping(metric="log_loss", patience=5)
    spec = refit(epochs=4, dense_learning_rate=0.05, table_learning_rate=1.0, early_stopping=stop)
    trained = training.train(spec, features, tmp_path / "run")["trained"]
    assert trained["epochs"] == 4 and trained["best_epoch"] < 3
    epochs = trained["refit_epochs"]
    assert epochs == trained["best_epoch"] + 1
    assert Store(tmp_path / "run" / "refit").names()[-1] == f"step-{37 * epochs:08d}"


def test_it_goes_on_where_it_was_stopped(features: Path, run: Path, tmp_path: Path) -> None:
    class InterruptionError(Exception):
        pass

    def stop(stage: str, done: int, total: int, text: str) -> None:
        if stage == "refit" and done == 50:
            raise InterruptionError

    spec = refit(checkpoint_every=10)
    with pytest.raises(InterruptionError):
        training.train(spec, features, tmp_path / "run", progress=stop)
    assert Store(tmp_path / "run" / "refit").names()[-1] == "step-00000040"
    with pytest.raises(UserError, match="no run folder"):
        training.evaluate(tmp_path / "run")
    training.train(spec, features, tmp_path / "run", resume=True)
    expected, found = answers(run), answers(tmp_path / "run")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)


def test_on_other_workers_it_has_as_many_epochs(tmp_path: Path) -> None:
    # Batches of 100 rows are 23 an epoch, the 99 of three workers 24.
    spec = small_spec(batch_size=100, epochs=3, checkpoint_every=7)
    features = make_features(tmp_path / "features", spec, train=1976, other=400)
    assert [make_plan(2376, 100, workers).steps for workers in (1, 3)] == [23, 24]

    class InterruptionError(Exception):
        pass

    def stop(stage: str, done: int, *_: object) -> None:
        if stage == "refit" and done == 35:
            raise InterruptionError

    job = Job(spec, features, tmp_path, refit=2)
    with pytest.raises(InterruptionError):
        fit(job, progress=stop)
    assert Store(tmp_path / "refit").names()[-1] == "step-00000028"
    # The first of the three, alone: it takes the steps that they take together.
    _, position = fit(job, worker=0, workers=3)
    assert position.ended and (position.epoch, position.step) == (2, 28 + 24 - 5)


def test_trees_are_as_many_and_learn_from_both(features: Path, tmp_path: Path) -> None:
    spec = with_trees(refit())
    validation = load_rows(spec, open_split(spec, features, "validation"))
    trained = training.train(spec, features, tmp_path / "run")["trained"]
    counts = list(trained["trees"].values())
    forests = refit_trees(spec, features, counts)
    assert [forest.trees for forest in forests] == counts and min(counts) > 5
    # Where boosting starts is the logit of the share of clicks, on the rows it is told of.
    clicks = {
        split: load_rows(spec, open_split(spec, features, split)).labels[:, 0] for split in ROWS
    }
    assert {split: len(labels) for split, labels in clicks.items()} == ROWS
    share = np.concatenate(list(clicks.values())).mean()
    assert forests[0].base == pytest.approx(np.log(share / (1 - share)), abs=1e-5)
    share = clicks["train"].mean()
    [before, _] = fit_trees(spec, features, validation)
    assert before.base == pytest.approx(np.log(share / (1 - share)), abs=1e-5)


def test_another_run_starts_from_what_is_served(features: Path, run: Path) -> None:
    served = build(small_spec(), TABLES)
    Store(run / "refit").restore_latest(served)
    model, _, steps = start_from(small_spec(), features, TABLES, run)
    assert steps == int(served.optimizer.iterations) > 0
    for left, right in zip(model.trainable_variables, served.trainable_variables, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_refit_starts_where_its_training_did(features: Path, run: Path, tmp_path: Path) -> None:
    # Steps too small to move anything: what is served is what was started from.
    still = refit(dense_learning_rate=1e-12, table_learning_rate=1e-12, epochs=1)
    training.train(still, features, tmp_path / "run", warm_start=run)
    model, first = build(still, TABLES), build(still, TABLES)
    Store(tmp_path / "run" / "refit").restore_latest(model)
    Store(run / "refit").restore_latest(first)
    for left, right in zip(model.trainable_variables, first.trainable_variables, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
