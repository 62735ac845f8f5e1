"""What validation says of logits."""

from __future__ import annotations

import numpy as np
import pytest
from make_features import small_spec

from recsys.metrics import auc
from recsys.spec.change import change
from recsys.spec.records import SquaredError
from training.evaluation import _by_slice
from training.scoring import answered, validate


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_a_task_without_weight_does_not_choose_the_epoch(metric: str) -> None:
    spec = small_spec()
    stopping = spec.train.early_stopping.model_copy(update={"metric": metric})
    train = spec.train.model_copy(update={"early_stopping": stopping})
    spec = spec.model_copy(update={"train": train})
    untrained = spec.tasks[1].model_copy(update={"weight": 0.0})
    without = spec.model_copy(update={"tasks": (spec.tasks[0], untrained)})
    rng = np.random.default_rng(0)
    click = (rng.random(200) < 0.5).astype(np.float32)
    labels = np.stack([click, click * (rng.random(200) < 0.5)], axis=1)
    logits = rng.normal(size=(200, 2)).astype(np.float32)
    other = np.stack([logits[:, 0], -logits[:, 1]], axis=1)
    assert validate(spec, labels, logits)[0] != validate(spec, labels, other)[0]
    score, found = validate(without, labels, logits)
    assert score == validate(without, labels, other)[0]
    assert "conversion" in found  # which is still shown
    if metric == "auc":
        assert score == pytest.approx(auc(click, logits[:, 0]))


@pytest.mark.parametrize(("space", "rows"), [("entire", [0, 1, 4]), ("joint", [0, 1, 2, 3, 4])])
def test_a_head_answers_for_the_rows_on_which_it_could_happen(space: str, rows: list[int]) -> None:
    spec = small_spec()
    bought = spec.tasks[1].model_copy(update={"space": space})
    spec = spec.model_copy(update={"tasks": (spec.tasks[0], bought)})
    labels = np.array([[1, 0], [1, 1], [0, 0], [np.nan, 0], [1, np.nan]], np.float32)
    assert answered(spec, "click", labels).all()
    assert np.flatnonzero(answered(spec, "conversion", labels)).tolist() == rows


def test_of_regressions_alone_the_nearer_predictions_score_higher() -> None:
    task = small_spec().tasks[0].model_copy(update={"loss": SquaredError()})
    spec = small_spec().model_copy(update={"tasks": (task,)})
    labels = np.array([[3.0], [-1.0]], np.float32)
    near, far = (validate(spec, labels, labels + error)[0] for error in (0.5, 2.0))
    assert near == pytest.approx(-0.5) and far == pytest.approx(-2.0)


def test_of_the_values_of_a_slice_the_largest_are_measured() -> None:
    spec = change(small_spec(), ["evaluate.largest=1"])
    labels = np.array([[1, 1], [0, 0], [1, 0]], np.float32)
    answers = {name: labels[:, 1] for name in ("click", "conversion", "conversion_given_click")}
    found = _by_slice(spec, np.array(["a", "b", "b"]), labels, answers, np.arange(3))
    assert list(found) == ["b"] and found["b"]["rows"] == 2
    assert found["b"]["tasks"]["click"]["positives"] == 1
