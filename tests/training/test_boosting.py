"""Boosted trees beside the networks: as scikit-learn fits them, and as they are served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from make_features import make_columns, make_features, small_spec

import training
from recsys.artifacts import read_manifest
from recsys.layers import TreeEnsemble
from recsys.spec import Spec
from recsys.spec.change import change
from recsys.spec.records import Huber, SquaredError, Trees
from training import boosting
from training.boosting import fit_trees
from training.evaluation import load_numeric
from training.input import load_rows, open_split

pytestmark = pytest.mark.long


def with_trees(spec: Spec | None = None, **trees: Any) -> Spec:
    spec = spec or small_spec(calibration="none")
    part = spec.model.model_copy(update={"trees": Trees(**{"leaf_rows": 10, **trees})})
    return spec.model_copy(update={"model": part})


def validation_of(spec: Spec, features: Path) -> Any:
    return load_rows(spec, open_split(spec, features, "validation"))


@pytest.mark.parametrize("regression", [False, True])
def test_all_answers_are_those_of_scikit_learn(regression: bool) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(3000, 4)), 1).astype(np.float32)
    x[:, 3] = rng.random(3000)  # more values than bins: thresholds are percentiles
    signal = np.where(x[:, 0] > 0.2, 2.0, -1.0) * (x[:, 1] > 0) + x[:, 3]
    y = (
        signal + rng.normal(size=3000)
        if regression
        else (rng.random(3000) < 1 / (1 + np.exp(-signal))).astype(float)
    )
    weights = np.where(np.arange(2000) % 2, 1.0, 3.0)
    train, held = (x[:2000], y[:2000], weights), (x[2000:2500], y[2000:2500])
    trees = Trees(count=200, leaves=8, learning_rate=0.2, leaf_rows=30)
    forest = boosting._boost(trees, 0, regression, train, held)
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    booster = kind(
        max_iter=200,
        max_leaf_nodes=8,
        learning_rate=0.2,
        min_samples_leaf=30,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(*train[:2], sample_weight=weights)
    staged = (
        booster.staged_predict(x)
        if regression
        else (part[:, 0] for part in booster._staged_raw_predict(x))
    )
    stages = [np.ravel(stage) for stage in staged]
    losses = []
    for z in (stage[2000:2500] for stage in stages):
        each = (held[1] - z) ** 2 if regression else np.logaddexp(0, z) - held[1] * z
        losses.append(np.mean(each))
    # As many trees as give the least loss on validation, and no more.
    assert forest.trees == 1 + int(np.argmin(losses)) < 200
    layer = TreeEnsemble([forest.trees], 8)
    layer.assign([forest])
    np.testing.assert_allclose(layer(x)[:, 0], stages[forest.trees - 1], atol=1e-5)


def test_a_run_answers_by_the_weights_of_networks_and_trees(features: Path, tmp_path: Path) -> None:
    spec = with_trees()
    run = tmp_path / "run"
    manifest = training.train(spec, features, run)
    trained = manifest["trained"]
    assert manifest == read_manifest(run, "run")
    # The price tells conversions; of a click it tells something by the item.
    assert trained["trees"]["click"] > 5 and trained["trees"]["conversion"] > 5
    for weights in trained["weights_of_kinds"].values():
        assert len(weights) == 2 and sum(weights) == pytest.approx(1.0) and min(weights) >= 0
    assert trained["weights_of_kinds"]["conversion"][1] > 0.1

    forests = fit_trees(spec, features, validation_of(spec, features))
    assert [f.trees for f in forests] == list(trained["trees"].values())
    layer = TreeEnsemble([f.trees for f in forests], forests[0].value.shape[1])
    layer.assign(forests)
    columns = make_columns(400, seed=1)
    price, device = (columns[name].to_numpy().astype(np.float32) for name in ("price", "device"))
    by_trees = layer(np.stack([device, price], axis=1)).numpy()

    plain = spec.model_copy(update={"model": spec.model.model_copy(update={"trees": None})})
    training.train(plain, features, tmp_path / "plain")
    inputs = {name: columns[name].to_numpy() for name in ("user", "item", "price", "device")}
    inputs["tags"] = columns["tags"].flatten().to_numpy().reshape(400, 3)
    inputs = {name: tf.constant(value) for name, value in inputs.items()}

    def logit(probability: Any) -> np.ndarray:
        return np.log(probability) - np.log1p(-np.asarray(probability))

    served, networks = (load_numeric(tmp_path / n / "export")(**inputs) for n in ("run", "plain"))
    for at, (task, name) in enumerate(
        [("click", "click"), ("conversion", "conversion_given_click")]
    ):
        own, trees = trained["weights_of_kinds"][task]
        expected = own * logit(networks[name]) + trees * by_trees[:, at]
        np.testing.assert_allclose(logit(served[name]), expected, atol=1e-3)


def test_no_trees_where_all_labels_are_alike(tmp_path: Path) -> None:
    spec = with_trees()
    features = make_features(tmp_path / "features", spec)
    for path in (features / "examples").rglob("*.parquet"):
        table = pq.read_table(path)
        never = pa.array(np.zeros(len(table), np.float32))
        at = table.column_names.index("label:conversion")
        pq.write_table(table.set_column(at, "label:conversion", never), path)
    trained = training.train(spec, features, tmp_path / "run")["trained"]
    assert trained["trees"]["conversion"] == 0 < trained["trees"]["click"]
    assert trained["weights_of_kinds"]["conversion"] == [1.0, 0.0]


def test_a_head_after_a_click_learns_from_clicks_alone() -> None:
    labels = np.array([[0, 0], [1, 0], [1, 1], [1, np.nan], [np.nan, 1]])
    spec = small_spec()
    assert boosting.told(spec, 0, labels).tolist() == [True, True, True, True, False]
    assert boosting.told(spec, 1, labels).tolist() == [False, True, True, False, False]
    # A joint head answers for all rows, also for those that nobody clicked.
    click, conversion = spec.tasks
    joint = (click, conversion.model_copy(update={"space": "joint"}))
    spec = spec.model_copy(update={"tasks": joint})
    assert boosting.told(spec, 1, labels).tolist() == [True, True, True, False, True]


def test_unclicked_rows_tell_trees_of_a_conversion_nothing(tmp_path: Path) -> None:
    spec = with_trees()
    features = make_features(tmp_path / "features", spec)
    before = fit_trees(spec, features, validation_of(spec, features))
    for path in (features / "examples").rglob("*.parquet"):
        table = pq.read_table(path)
        click, bought = (table[f"label:{n}"].to_numpy() for n in ("click", "conversion"))
        noise = np.where(click == 1, bought, np.arange(len(table)) % 2).astype(np.float32)
        at = table.column_names.index("label:conversion")
        pq.write_table(table.set_column(at, "label:conversion", pa.array(noise)), path)
    after = fit_trees(spec, features, validation_of(spec, features))
    assert before[1].trees > 0
    for name, value in vars(before[1]).items():
        np.testing.assert_array_equal(value, getattr(after[1], name))


def test_rows_of_no_weight_tell_trees_nothing(tmp_path: Path) -> None:
    spec = change(with_trees(), ["data.weight=importance"])
    features = make_features(tmp_path / "features", spec)
    for weight in (0.0, 0.5):
        for path in (features / "examples").rglob("*.parquet"):
            table = pq.read_table(path)
            if weight:
                table = table.drop_columns("key:weight")
            weights = pa.array(np.full(len(table), weight, np.float32))
            pq.write_table(table.append_column("key:weight", weights), path)
        forests = fit_trees(spec, features, validation_of(spec, features))
        assert all((forest.trees > 0) == (weight > 0) for forest in forests)


def test_no_more_rows_than_the_spec_allows(features: Path) -> None:
    few = with_trees(rows=300)
    first, again = (boosting._training(few, features, refit=False) for _ in range(2))
    assert len(first.rows) == len(first.x) == 300
    np.testing.assert_array_equal(first.x, again.x)


def test_no_more_rows_of_validation_than_the_spec_allows(features: Path) -> None:
    few = with_trees(rows=100)
    rows = validation_of(few, features)
    assert len(rows) == 400
    # Labels of rows that are not drawn are not looked at.
    drawn = boosting._some(400, 100, few.train.seed)
    assert drawn is not None
    labels = np.full_like(rows.labels, np.nan)
    labels[drawn] = rows.labels[drawn]
    forests = fit_trees(few, features, rows)
    again = fit_trees(few, features, replace(rows, labels=labels))
    for one, other in zip(forests, again, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))


def test_negatives_that_stand_for_others_weigh_as_much(features: Path) -> None:
    spec = with_trees(small_spec(negative_sampling=0.5))
    _, labels, weights = boosting._training(spec, features, refit=False).of_task(spec, 0)
    assert set(weights[labels == 0]) == {2.0} and set(weights[labels == 1]) == {1.0}


@pytest.mark.parametrize("loss", [SquaredError(), Huber(log=True)], ids=repr)
def test_a_regression_is_told_in_its_own_unit(loss: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from test_regression import regression, with_times

    spec = with_trees(regression(loss))
    features = with_times(tmp_path / "features", spec)
    for path in (features / "examples").glob("[tv][ra]*/*.parquet"):
        # Training and validation have a time from before the click, which no logarithm is told.
        table = pq.read_table(path)
        times = table["label:conversion"].to_numpy().copy()
        times[np.argmax(times > 0)] = -5.0
        at = table.column_names.index("label:conversion")
        pq.write_table(table.set_column(at, "label:conversion", pa.array(times)), path)
    forests = fit_trees(spec, features, validation_of(spec, features))
    # Times lie around 20,000 and follow the price.
    middle = np.expm1(forests[1].base) if loss.log else forests[1].base
    assert 15_000 < middle < 25_000
    trained = training.train(spec, features, tmp_path / "run")["trained"]
    own, trees = trained["weights_of_kinds"]["conversion"]
    assert own + trees == pytest.approx(1.0) and own != trees
    tested = training.evaluate(tmp_path / "run", "test")["tasks"]["conversion_given_click"]
    assert tested["r2"] > 0.9
