"""Ray workers: what they end with, one killed in mid-training, faults, and too few of them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from make_features import TABLES, make_features, small_spec

from recsys.artifacts import write_json
from recsys.errors import UserError
from recsys.model import build
from recsys.spec import Spec
from training.checkpoints import Store
from training.input import load_rows, open_split
from training.launch import _ray, _read_fault, _require, fit_on_ray, worker_pids
from training.loop import Job, fit
from training.progress import FOLDER, read_progress
from training.scoring import score_rows

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Ray on this machine, started once for the tests of this file."""
    with _ray(None, 2):
        yield


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough rows that a run lasts some seconds."""
    return make_features(tmp_path_factory.mktemp("larger") / "features", train=20_000, other=1000)


def test_a_run_survives_the_loss_of_a_worker(machine: None, larger: Path, tmp_path: Path) -> None:
    spec = small_spec(checkpoint_every=25, refit=True)
    run, alone = tmp_path / "run", tmp_path / "alone"
    run.mkdir()
    alone.mkdir()
    killed: list[int] = []
    told: list[tuple[str, int, int, str]] = []
    over = threading.Event()

    def kill() -> None:
        # As soon as there is a checkpoint to go on from.
        while not over.wait(0.01):
            if list((run / "checkpoints").glob("step-*")) and 1 in (pids := worker_pids(run)):
                os.kill(pids[1], signal.SIGKILL)
                killed.append(pids[1])
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        fit_on_ray(Job(spec, larger, run), 2, progress=lambda *what: told.append(what))
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1
    epochs = [what for what in told if what[0] == "epoch"]
    assert [(done, total) for _, done, total, _ in epochs][-2:] == [(1, 2), (2, 2)]
    assert all(words.startswith("AUC click 0.") for *_, words in epochs)
    last = read_progress(run, rank=1)
    assert last is not None and last["pid"] != killed[0]
    job = Job(spec, larger, alone)
    fit(job.again(fit(job)[1]))
    ours, theirs = (json.loads((f / "history.json").read_text()) for f in (run, alone))
    assert [record["step"] for record in ours] == [312, 624]
    for left, right in zip(ours, theirs, strict=True):
        assert left["score"] == pytest.approx(right["score"], abs=0.002)
    # Two starts wrote events, and the second did not begin at the first step.
    events = sorted((run / "logs" / "train").glob("events*"), key=lambda path: path.name)
    assert len(events) == 2
    assert _first_step(events[0]) <= 25 < _first_step(events[1])
    # Then both trained anew, on the validation rows too.
    refit, naive = (_answers(spec, larger, folder) for folder in (run, alone))
    np.testing.assert_allclose(refit, naive, rtol=1e-2, atol=1e-3)


def _answers(spec: Spec, features: Path, run: Path) -> np.ndarray:
    """Logits of the test rows, by the weights of a run's refit."""
    model = build(spec, TABLES)
    assert Store(run / "refit").restore_latest(model).ended
    return score_rows(model, load_rows(spec, open_split(spec, features, "test")))


def _first_step(path: Path) -> int:
    import tensorflow as tf

    events = tf.compat.v1.train.summary_iterator(str(path))
    return next(event.step for event in events if event.summary.value)


def test_a_fault_that_a_worker_finds_is_told_as_it_is(
    machine: None, features: Path, tmp_path: Path
) -> None:
    spec = small_spec(dense_learning_rate=1e38)
    with pytest.raises(UserError, match="loss is not finite") as error:
        fit_on_ray(Job(spec, features, tmp_path), 2, progress=lambda *_: None)
    assert error.value.where.startswith("epoch 1, batch 1, step 1, layer network_0/")
    assert "--eager" in error.value.fix


def test_of_several_faults_the_one_that_says_most_of_the_place_is_told(tmp_path: Path) -> None:
    assert _read_fault(tmp_path) is None
    (tmp_path / FOLDER).mkdir()
    for rank, where in enumerate(["step 7", "step 7, layer tower", "step 7, a"]):
        fault = UserError("Training stopped.", where=where, found=f"by {rank}")
        write_json(
            tmp_path / FOLDER / f"fault-{rank}.json", {"message": fault.message, **fault.fields()}
        )
    fault = _read_fault(tmp_path)
    assert fault is not None and fault.message == "Training stopped."
    assert fault.where == "step 7, layer tower" and fault.found == "by 1"


def test_more_workers_than_there_are_is_refused_with_both_numbers(
    machine: None, features: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not enough .PUs") as error:
        fit_on_ray(Job(small_spec(), features, tmp_path), 500, gpu=True, progress=lambda *_: None)
    assert error.value.expected.startswith("500 ")
    with pytest.raises(UserError, match="not enough GPUs") as error:
        _require(2, True, {"CPU": 4.0, "GPU": 1.0}, None)
    assert error.value.expected == "2 GPUs, one a worker" and error.value.found == "1 GPU"
    with pytest.raises(UserError, match="not enough CPUs") as error:
        _require(8, False, {"CPU": 4.0}, "ray://head:10001")
    assert error.value.where == "ray://head:10001"
    _require(4, False, {"CPU": 4.0}, None)
