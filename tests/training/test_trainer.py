"""From features to a published version, through the real export."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import files_of_at_most
from make_features import make_columns, small_spec

import training
from recsys import metrics
from recsys.artifacts import read_manifest, versions
from recsys.errors import UserError
from recsys.locks import sole_publisher
from recsys.spec import Spec, change, dumps, load
from recsys.spec.records import Balancing, Gate, Ple, Ranking, Serve, Variant
from training.checkpoints import Store
from training.evaluation import MADE
from training.gate import Promote, Reject

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    stages: list[str] = []
    training.train(small_spec(), features, folder, progress=lambda stage, *_: stages.append(stage))
    assert [s for s in dict.fromkeys(stages)] == [
        "read", "build", "train", "validate", "epoch", "finish",
    ]  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tested(run: Path) -> dict[str, Any]:
    """Its test metrics."""
    return training.evaluate(run, "test")


def test_a_run_says_what_it_is(run: Path) -> None:
    manifest = read_manifest(run, "run")
    assert manifest["trained"]["steps"] == 62 and manifest["trained"]["workers"] == 0
    assert load(run / "spec.yaml") == small_spec()
    assert (run / "export" / "saved_model.pb").is_file()
    calibration = json.loads((run / "calibration.json").read_text())
    assert calibration["click"]["kind"] == "platt" and calibration["click"]["rows"] == 400
    clicks = int(np.sum(make_columns(400, seed=1)["label:click"].to_numpy()))
    assert calibration["conversion"]["rows"] == clicks
    assert {"ece_before", "ece_after"} <= set(calibration["conversion"])
    leftovers = [p.name for p in run.iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_metrics_are_those_of_what_is_served(run: Path, tested: dict[str, Any]) -> None:
    import tensorflow as tf

    columns = make_columns(400, seed=2)
    raw = {
        "user": columns["key:user"].to_pylist(),
        "item": [f"i{n}" for n in columns["item"].to_pylist()],
        "tags": [",".join(str(t) for t in row if t >= 0) for row in columns["tags"].to_pylist()],
        "device": [f"d{n}" for n in columns["device"].to_pylist()],
    }
    model = tf.saved_model.load(str(run / "export"))
    answers = model.signatures["serving_default"](
        **{name: tf.constant(values) for name, values in raw.items()},
        price=tf.constant(columns["price"].to_numpy()),
    )
    clicked, bought = (columns[f"label:{t}"].to_numpy() for t in ("click", "conversion"))
    assert tested["rows"] == 400
    expected = metrics.task_metrics(clicked, answers["click"].numpy(), columns["key:user"])
    # Rows of equal features tie or do not by the last bit of a float, hence the tolerance.
    assert tested["tasks"]["click"] == pytest.approx(expected, abs=1e-3)
    given = metrics.task_metrics(
        bought[clicked == 1], answers["conversion_given_click"].numpy()[clicked == 1]
    )
    found = tested["tasks"]["conversion_given_click"]
    assert found["auc"] == pytest.approx(given["auc"], abs=1e-3)
    assert found["rows"] == int(clicked.sum())
    phone = np.array(columns["slice:device"].to_pylist()) == "phone"
    cut = tested["slices"]["device"]["phone"]
    assert cut["rows"] == int(phone.sum())
    assert cut["tasks"]["conversion"]["auc"] == pytest.approx(
        metrics.auc(bought[phone], answers["conversion"].numpy()[phone]), abs=1e-3
    )
    assert json.loads((run / "metrics.json").read_text())["tasks"] == tested["tasks"]
    assert (run / "metrics-validation.json").is_file()
    assert (run / "plots" / "calibration-click-test.png").stat().st_size > 1000


def test_a_joint_task_is_calibrated_and_answered_as_both_at_once(
    features: Path, tmp_path: Path
) -> None:
    import tensorflow as tf

    spec = small_spec()
    click, conversion = spec.tasks
    joint = conversion.model_copy(update={"space": "joint"})
    spec = spec.model_copy(update={"tasks": (click, joint)})
    training.train(spec, features, tmp_path / "run")
    calibration = json.loads((tmp_path / "run" / "calibration.json").read_text())["conversion"]
    bought = make_columns(400, seed=1)["label:conversion"].to_numpy()
    assert (calibration["rows"], calibration["positives"]) == (400, int(bought.sum()))
    assert calibration["given"] is None
    tested = training.evaluate(tmp_path / "run", "test")["tasks"]
    assert tested["conversion"]["auc"] > 0.7 and tested["conversion_given_click"]["auc"] > 0.6
    numeric = tf.saved_model.load(str(tmp_path / "run" / "export")).signatures["numeric"]
    columns = make_columns(400, seed=2)
    inputs = {name: columns[name] for name in ("user", "item", "price", "device")}
    tags = columns["tags"].flatten().to_numpy().reshape(400, 3)
    answers = numeric(
        tags=tf.constant(tags), **{name: tf.constant(v.to_numpy()) for name, v in inputs.items()}
    )
    both, first = answers["conversion"].numpy(), answers["click"].numpy()
    assert (both <= first).all()
    np.testing.assert_allclose(answers["conversion_given_click"].numpy(), both / first, rtol=1e-5)


def test_what_is_exported_answers_as_the_model_with_its_switches_on(
    features: Path, tmp_path: Path
) -> None:
    import tensorflow as tf

    from recsys.export import export
    from recsys.outputs import Outputs
    from training.input import load_rows, open_split
    from training.loop import Job, fit

    spec = small_spec(
        "observed", precision="mixed_bfloat16", balancing=Balancing(kind="pcgrad"), max_steps=10
    )
    click, conversion = spec.tasks
    click = click.model_copy(update={"ranking": Ranking(kind="pairwise")})
    conversion = conversion.model_copy(update={"inverse_propensity": True})
    part = spec.model.model_copy(update={"sharing": Ple(), "recompute": True, "members": 2})
    spec = spec.model_copy(update={"tasks": (click, conversion), "model": part})
    model, _ = fit(Job(spec, features, tmp_path))
    export(model, spec, features / "transform", tmp_path / "export")

    rows = load_rows(spec, open_split(spec, features, "test")).arrays()
    batch = {name: tf.constant(rows[name]) for name in ("ids", "numbers")}
    expected = Outputs(spec)(model.predict_logits(batch))
    columns = make_columns(400, seed=2)
    inputs = {name: columns[name].to_numpy() for name in ("user", "item", "price", "device")}
    inputs["tags"] = columns["tags"].flatten().to_numpy().reshape(400, 3)
    numeric = tf.saved_model.load(str(tmp_path / "export")).signatures["numeric"]
    found = numeric(**{name: tf.constant(values) for name, values in inputs.items()})
    assert set(found) == set(expected) == {"click", "conversion", "conversion_given_click", "score"}
    for name, values in expected.items():
        assert np.std(values) > 1e-3
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_a_champion_is_compared_on_the_same_rows(run: Path, tested: dict[str, Any]) -> None:
    both = training.evaluate(run, "test", champion=run)
    assert both["champion"]["tasks"] == both["tasks"] == tested["tasks"]


def test_features_of_another_spec_are_refused(features: Path, tmp_path: Path) -> None:
    spec = small_spec()
    other = spec.model_copy(update={"features": spec.features[:-1]})
    with pytest.raises(UserError, match="another spec") as error:
        training.train(other, features, tmp_path / "run")
    assert "recsys features" in error.value.fix and not (tmp_path / "run").exists()
    gone = spec.features[-1].name
    assert f"features.{gone}.owner (none)" in error.value.expected
    assert f'features.{gone}.owner "{spec.features[-1].owner}"' in error.value.found
    # A --set that `recsys features` alone was given.
    changed = change(spec, ["features.user.encode.min_count=3"])
    with pytest.raises(UserError, match="another spec") as error:
        training.train(changed, features, tmp_path / "run")
    assert error.value.expected == "features.user.encode.min_count 3"
    assert error.value.found == "features.user.encode.min_count 1"
    assert "--set" in error.value.fix


def test_a_run_is_not_written_over(features: Path, run: Path, tmp_path: Path) -> None:
    spec = small_spec()
    with pytest.raises(UserError, match="finished run"):
        training.train(spec, features, run)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no run"):
        training.train(spec, features, tmp_path)
    # Resuming what is finished does nothing.
    assert training.train(spec, features, run, resume=True) == read_manifest(run, "run")


def test_an_unfinished_run_is_resumed_only_when_asked(features: Path, tmp_path: Path) -> None:
    class InterruptionError(Exception):
        pass

    def stop(stage: str, *_: object) -> None:
        if stage == "finish":
            raise InterruptionError

    spec = small_spec(max_steps=5)
    with pytest.raises(InterruptionError):
        training.train(spec, features, tmp_path / "run", progress=stop)
    with pytest.raises(UserError, match="unfinished") as error:
        training.train(spec, features, tmp_path / "run")
    assert "--resume" in error.value.fix and "another output folder" in error.value.fix
    with pytest.raises(UserError, match="begun with another spec"):
        training.train(small_spec(max_steps=6), features, tmp_path / "run", resume=True)
    for name in (".rows-a", ".export.a.partial", ".export.old-a", "refit/.step-00000005.a.partial"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / ".run.json.1.partial").write_text("{")
    (tmp_path / "run" / "checkpoints" / "step-00000005").rename(
        tmp_path / "run" / "checkpoints" / ".step-00000005.old-a"
    )
    manifest = training.train(spec, features, tmp_path / "run", resume=True)
    assert manifest["trained"]["steps"] == 5
    assert not [path for path in (tmp_path / "run").rglob(".*")]
    # What had been moved aside for another was the only one.
    assert Store(tmp_path / "run" / "checkpoints").names() == ["step-00000005"]


def test_a_run_has_one_trainer(features: Path, tmp_path: Path) -> None:
    run, refused = tmp_path / "run", []

    def another(stage: str, *_: object) -> None:
        if stage == "read" and not refused:
            before = sorted(run.rglob("*"))
            for resume in (True, False):
                with pytest.raises(UserError, match="being trained already") as error:
                    training.train(spec, features, run, resume=resume)
                refused.append(error.value.found)
            assert sorted(run.rglob("*")) == before

    spec = small_spec(max_steps=2)
    training.train(spec, features, run, progress=another)
    assert len(refused) == 2 and refused[0].startswith(f"process {os.getpid()} on ")


def test_a_run_that_was_killed_as_it_began_can_be_begun_again(
    features: Path, run: Path, tmp_path: Path
) -> None:
    spec, begun, mine = small_spec(max_steps=2), tmp_path / "begun", tmp_path / "mine"
    for folder in (begun, mine):
        folder.mkdir()
        (folder / ".spec.yaml.1.partial").write_text("na")
        (folder / "spec.yaml").write_text("name: mine")
    (begun / ".lock").touch()
    training.train(spec, features, begun, resume=True)
    assert load(begun / "spec.yaml") == spec and not list(begun.glob(".*"))
    with pytest.raises(UserError, match="is no run"):
        training.train(spec, features, mine)
    assert (mine / "spec.yaml").read_text() == "name: mine"
    (mine / "spec.yaml").write_text(dumps(spec))
    training.train(spec, features, mine)


@pytest.mark.parametrize("record", ["[]", "{}", "3"])
def test_a_damaged_record_is_refused_before_it_is_trained_on(
    features: Path, run: Path, tmp_path: Path, record: str
) -> None:
    unfinished = Path(shutil.copytree(run, tmp_path / "run"))
    (unfinished / "manifest.json").unlink()
    (unfinished / "run.json").write_text(record)
    with pytest.raises(UserError, match="record of a run is damaged") as error:
        training.train(small_spec(), features, unfinished, resume=True)
    assert error.value.where == str(unfinished / "run.json") and error.value.found


@pytest.mark.parametrize("dim", [4, 256])
def test_a_full_disk_is_said(features: Path, tmp_path: Path, dim: int) -> None:
    # With few weights the export is the first file that is too large, with many a checkpoint.
    done = subprocess.run(
        [sys.executable, "-B", "-m", "infra.cli", "train", features / "spec.yaml", "--features",
         features, "--output", tmp_path / "run", "--set", f"model.dim={dim}"],
        capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 1
    path = tmp_path / "run" / ("export" if dim == 4 else "checkpoints/step-00000031")
    assert f"File too large\n  where:    {path}\n" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not path.exists()
    assert not [path for path in (tmp_path / "run").rglob(".*")]


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_a_training_that_can_go_on(
    features: Path, tmp_path: Path, workers: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "train", features / "spec.yaml", "--features",
         features, "--output", run, "--workers", str(workers), "--set", "train.epochs=1000",
         "--set", "train.early_stopping.patience=1000"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("train:"):
            process.terminate()
    assert process.wait() == 143, "".join(lines)
    assert lines[-1] == "error: Interrupted. An unfinished training goes on with --resume.\n"
    assert not [path for path in run.iterdir() if path.name.startswith((".rows", ".lock"))]
    assert not [line for line in lines if "SIGTERM" in line]


def _with_manifest(folder: Path, **changes: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_features_with_other_ids_are_refused(features: Path, run: Path, tmp_path: Path) -> None:
    mine = _with_manifest(Path(shutil.copytree(run, tmp_path / "run")), learned="mine")
    other = _with_manifest(Path(shutil.copytree(features, tmp_path / "other")), learned="other")
    for ask in (
        lambda: training.evaluate(mine, features=other),
        lambda: training.train(small_spec(), other, mine, resume=True),
    ):
        with pytest.raises(UserError, match="built anew") as error:
            ask()
        assert error.value.expected == "learned mine" and error.value.found == "learned other"
    # A champion that knows other ids cannot read the examples either.
    same = _with_manifest(Path(shutil.copytree(features, tmp_path / "same")), learned="mine")
    champion = _twin(mine, tmp_path, "champion", learned="before")
    with pytest.raises(UserError, match="built anew"):
        training.evaluate(mine, features=same, champion=champion)

    class InterruptionError(Exception):
        pass

    def stop(stage: str, *_: object) -> None:
        if stage == "read":
            raise InterruptionError

    with pytest.raises(InterruptionError):
        training.train(small_spec(), other, tmp_path / "begun", progress=stop)
    again = _with_manifest(other, learned="third")
    with pytest.raises(UserError, match="built anew"):
        training.train(small_spec(), again, tmp_path / "begun", resume=True)


def test_a_champion_that_cannot_read_the_rows_counts_as_it_was_published(
    features: Path, run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    assert isinstance(training.publish(_twin(run, tmp_path, "old", learned="old"), models), Promote)
    _with_manifest(models / "1", metrics={**tested, "tasks": {"click": {"auc": 0.123}}})
    # Made by hand, these features have no raw columns beside the examples.
    anew = _with_manifest(Path(shutil.copytree(features, tmp_path / "anew")), learned="new")
    new = _twin(run, tmp_path, "new", learned="new", features_folder=str(anew))
    decision = training.publish(new, models)
    assert isinstance(decision, Promote)
    assert decision.notes[0].endswith("the champion's 0.1230")
    assert "own test rows" in decision.notes[1] and "built anew" in decision.notes[1]


def _twin(run: Path, to: Path, name: str, **changes: Any) -> Path:
    """A copy of a run as if it were another one."""
    shutil.copytree(run, to / name)
    path = to / name / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": name, **changes}))
    return to / name


def test_publishing(run: Path, tested: dict[str, Any], tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = training.publish(run, models)
    assert isinstance(first, Promote) and first.version == 1 and first.path == models / "1"
    manifest = read_manifest(models / "1", "model")
    assert set(manifest["fingerprints"]) == {"features", "model", "serve"}
    assert manifest["version"] == 1 and manifest["metrics"]["tasks"] == tested["tasks"]
    again = training.publish(run, models)
    assert again == Promote(1, models / "1", already=True)
    second = training.publish(_twin(run, tmp_path, "twin"), models)
    assert isinstance(second, Promote) and second.version == 2
    # A number is not used again, even where its version is gone.
    shutil.rmtree(models / "2")
    third = training.publish(_twin(run, tmp_path, "third"), models)
    assert isinstance(third, Promote) and third.version == 3
    assert versions(models) == [3, 1]
    forced = training.publish(run, models, force=True)
    assert isinstance(forced, Promote) and forced.version == 4 and not forced.already
    assert not [p for p in models.iterdir() if p.name.endswith(".partial")]


def _gated(spec: Spec, **gate: float) -> Spec:
    tasks = tuple(task.model_copy(update={"gate": Gate(**gate)}) for task in spec.tasks)
    return spec.model_copy(update={"tasks": tasks})


def test_a_gate_refuses_with_numbers_unless_forced(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    strict = _twin(run, tmp_path, "strict")
    (strict / "spec.yaml").write_text(dumps(_gated(small_spec(), min_auc=0.99)))
    decision = training.publish(strict, tmp_path / "models")
    assert isinstance(decision, Reject)
    auc = tested["tasks"]["click"]["auc"]
    assert decision.reasons[0] == f"click: AUC {auc:.4f} is below the gate of 0.9900"
    assert not (tmp_path / "models").exists()
    forced = training.publish(strict, tmp_path / "models", force=True)
    assert isinstance(forced, Promote) and forced.notes[0].startswith("waived: click: AUC")


def test_a_run_whose_spec_was_edited_in_what_it_was_trained_by_is_refused(
    features: Path, run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    blended = small_spec().model_copy(update={"serve": Serve(blend={"click": 3.0})})
    wider = change(small_spec(), ["model.dim=6"])
    sliced = change(small_spec(), ["evaluate.slices=[user]"])
    training.publish(run, tmp_path / "models")
    for name, spec, ours, theirs in (
        ("blended", blended, 'serve.blend {"click": 3.0}', 'serve.blend {"click": 0.5, '),
        ("wider", wider, "model.dim 6", "model.dim 4"),
        ("sliced", sliced, 'evaluate.slices ["user"]', 'evaluate.slices ["device"]'),
    ):
        edited = _twin(run, tmp_path, name)
        (edited / "spec.yaml").write_text(dumps(spec))
        for use in (
            lambda run: training.publish(run, tmp_path / "models", force=True),
            training.evaluate,
            lambda run: training.convert(run, tmp_path / "device"),
        ):
            with pytest.raises(UserError, match="built from another spec") as error:
                use(edited)
            assert error.value.expected.startswith(ours) and theirs in error.value.found
        assert versions(tmp_path / "models") == [1]
    # The gate and the serving limits are not what it was trained by.
    limited = small_spec().model_copy(update={"serve": Serve(max_candidates=7)})
    edited = _twin(run, tmp_path, "limited")
    (edited / "spec.yaml").write_text(dumps(_gated(limited, max_auc_drop=0.5)))
    assert isinstance(training.publish(edited, tmp_path / "models"), Promote)
    # A version of which the spec was edited says so by fingerprints.
    (tmp_path / "models" / "1" / "spec.yaml").write_text(dumps(wider))
    with pytest.raises(UserError, match="built from another spec"):
        training.convert(tmp_path / "models" / "1", tmp_path / "device", features)


def test_features_of_other_ids_are_not_converted_with(
    features: Path, run: Path, tmp_path: Path
) -> None:
    other = _with_manifest(Path(shutil.copytree(features, tmp_path / "other")), learned="other")
    with pytest.raises(UserError, match="built anew"):
        training.convert(_twin(run, tmp_path, "mine", learned="mine"), tmp_path / "device", other)


def test_an_output_that_is_taken_is_refused_before_the_model_is_read(
    features: Path, run: Path, tmp_path: Path
) -> None:
    twin = _twin(run, tmp_path, "twin")
    (twin / "export" / "saved_model.pb").write_bytes(b"half a graph")
    (tmp_path / "device" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="already exists"):
        training.convert(twin, tmp_path / "device")


def test_a_published_run_is_judged_again_by_another_gate(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models, auc = tmp_path / "models", tested["tasks"]["click"]["auc"]
    assert isinstance(training.publish(_twin(run, tmp_path, "old"), models), Promote)
    new = _twin(run, tmp_path, "new")
    assert isinstance(training.publish(new, models), Promote)
    loose = dumps(_gated(small_spec(), max_auc_drop=0.5))
    (new / "spec.yaml").write_text(loose)
    again = training.publish(new, models)
    # By the champion that it came after, of which it is a twin; not by itself.
    assert isinstance(again, Promote) and again.already and again.version == 2
    assert f"click: AUC {auc:.4f}, the champion's {auc:.4f}" in again.notes
    (new / "spec.yaml").write_text(dumps(_gated(small_spec(), min_auc=0.99)))
    refused = training.publish(new, models)
    assert isinstance(refused, Reject)
    assert refused.reasons[0].endswith("is below the gate of 0.9900")
    assert refused.reasons[-1].startswith("version 2 of this run stands")
    assert versions(models) == [2, 1]


def test_features_that_were_moved_are_found_by_name(
    features: Path, run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(features, tmp_path / "out" / "features"))
    gone = str(tmp_path / "gone")
    models = tmp_path / "models"
    assert isinstance(training.publish(run, models), Promote)
    _with_manifest(models / "1", metrics={**tested, "tasks": {"click": {"auc": 0.123}}})
    mine = _twin(run, tmp_path, "mine", features_folder=gone)
    with pytest.raises(UserError, match="no longer where they were") as error:
        training.evaluate(mine)
    assert error.value.where == gone and "--features" in error.value.fix
    assert training.evaluate(mine, features=moved) == tested
    # Without them the champion cannot be measured on these rows, and the decision says so.
    decision = training.publish(mine, models)
    assert isinstance(decision, Promote) and "champion's 0.1230" in decision.notes[0]
    assert "--features says where" in decision.notes[-1]
    shutil.rmtree(models / "2")
    auc = tested["tasks"]["click"]["auc"]
    decision = training.publish(mine, models, features=moved)
    assert isinstance(decision, Promote)
    assert not any("own test rows" in note for note in decision.notes)
    assert f"the champion's {auc:.4f}" in decision.notes[0]
    # One that was named and is another's is refused, not passed over.
    other = _with_manifest(Path(shutil.copytree(features, tmp_path / "other")), learned="other")
    mine = _twin(run, tmp_path, "third", features_folder=gone, learned="mine")
    with pytest.raises(UserError, match="built anew"):
        training.publish(mine, models, features=other, force=True)


def test_publishing_fails_whole(run: Path, tested: dict[str, Any], tmp_path: Path) -> None:
    with files_of_at_most(20_000), pytest.raises(OSError, match="File too large"):
        training.publish(run, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_version_whose_number_cannot_be_written_down_is_never_seen(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    (models / ".last_version" / "a folder").mkdir(parents=True)
    with pytest.raises(OSError, match="last_version"):
        training.publish(run, models)
    assert [path.name for path in models.iterdir()] == [".last_version"]


def test_a_publisher_waits_and_is_judged_by_what_came_before_it(
    run: Path, tested: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tmp_path / "first"
    training.publish(_twin(run, tmp_path, "a"), first)
    models, waits = tmp_path / "models", threading.Event()
    caplog.set_level("INFO", "recsys.locks")
    told = logging.Handler()
    told.emit = lambda _: waits.set()  # type: ignore[method-assign]
    logging.getLogger("recsys.locks").addHandler(told)
    with ThreadPoolExecutor(1) as pool:
        with sole_publisher(models):
            second = pool.submit(training.publish, _twin(run, tmp_path, "b"), models)
            assert waits.wait(60)
            shutil.copytree(first / "1", models / "1")
        decision = second.result()
    logging.getLogger("recsys.locks").removeHandler(told)
    assert isinstance(decision, Promote) and decision.version == 2
    assert "the champion's" in decision.notes[0]


def test_metrics_of_rows_that_are_gone_are_not_compared(
    features: Path, run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    training.publish(_twin(run, tmp_path, "champion"), models)
    # As the test day was when the challenger was evaluated: of a third of its rows.
    folder = Path(shutil.copytree(features, tmp_path / "features"))
    parts = sorted((folder / "examples" / "test").iterdir())
    for part in parts[1:]:
        part.rename(tmp_path / part.name)
    for name, made in (("marked", "then"), ("unmarked", None)):
        mine = _twin(run, tmp_path, name, features_folder=str(folder))
        before = training.evaluate(mine)
        assert before["rows"] < tested["rows"]
        if made:
            # A folder built anew tells by its manifest alone, without a champion too.
            (mine / "metrics.json").write_text(json.dumps({**before, MADE: made}))
    for part in parts[1:]:
        (tmp_path / part.name).rename(part)
    for name, place in (("marked", tmp_path / "others"), ("unmarked", models)):
        decision = training.publish(tmp_path / name, place)
        assert isinstance(decision, Promote) and decision.path is not None
        assert read_manifest(decision.path, "model")["metrics"]["tasks"] == tested["tasks"]
        assert json.loads((tmp_path / name / "metrics.json").read_text()) == tested


def test_a_damaged_champion_is_passed_over(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    (models / "4").mkdir(parents=True)
    decision = training.publish(run, models)
    assert isinstance(decision, Promote) and decision.version == 5


def test_a_damaged_version_is_published_again(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for version in (1, 2):
        assert training.publish(run, models) == Promote(version, models / str(version))
        next((models / str(version) / "variables").glob("*.data-*")).write_bytes(b"")
    # Damages that leave a file's size tell by its bytes.
    training.publish(run, models)
    shard = next((models / "3" / "variables").glob("*.data-*"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert training.publish(run, models).version == 4
    shutil.rmtree(models / "4")
    manifest = models / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("fingerprints", "prints"))
    twin = _twin(run, tmp_path, "twin")
    third = training.publish(twin, models)
    # None is a champion to compare with.
    assert third == Promote(5, models / "5")
    assert training.publish(twin, models) == replace(third, already=True)


def test_a_damaged_export_is_not_published(
    run: Path, tested: dict[str, Any], tmp_path: Path
) -> None:
    twin = _twin(run, tmp_path, "twin")
    next((twin / "export" / "variables").glob("*.data-*")).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        training.publish(twin, tmp_path / "models", force=True)
    assert caught.value.where == str(twin / "export")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["null", '"a"', "[1]", "{", ""])
def test_a_damaged_last_version_is_passed_over(
    run: Path, tested: dict[str, Any], tmp_path: Path, text: str
) -> None:
    models = tmp_path / "models"
    (models / "4").mkdir(parents=True)
    (models / ".last_version").write_text(text)
    killed = models / ".publish-a.partial"
    killed.mkdir()
    assert training.publish(run, models, force=True).version == 5
    assert (models / ".last_version").read_text() == "5\n" and not killed.exists()


def test_a_run_without_an_export_is_refused(run: Path, tmp_path: Path) -> None:
    twin = _twin(run, tmp_path, "twin")
    shutil.rmtree(twin / "export")
    with pytest.raises(UserError, match="no exported model") as caught:
        training.publish(twin, tmp_path / "models", force=True)
    assert caught.value.where == str(twin / "export") and "recsys train" in caught.value.fix


def test_kinds_of_networks_count_as_validation_says(features: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    from recsys.model import build
    from training.evaluation import load_numeric
    from training.input import load_rows, open_split
    from training.loop import CHECKPOINTS
    from training.scoring import score_kinds
    from training.weighing import stacked

    spec = small_spec()
    model_part = spec.model.model_copy(update={"variants": (Variant(embedding_dropout=0.95),)})
    train_part = spec.train.model_copy(update={"calibration": "none"})
    spec = spec.model_copy(update={"model": model_part, "train": train_part})
    run = tmp_path / "run"
    training.train(spec, features, run)
    weights = read_manifest(run, "run")["trained"]["weights_of_kinds"]

    model = build(spec, read_manifest(features, "features")["tables"])
    Store(run / CHECKPOINTS).restore_best(model)
    rows = load_rows(spec, open_split(spec, features, "validation"))
    kinds = score_kinds(model, rows)
    assert kinds.shape == (400, 2, 2)
    clicked = rows.labels[:, 0] == 1
    for task, index, observed in (("click", 0, slice(None)), ("conversion", 1, clicked)):
        found = stacked(rows.labels[observed, index], kinds[observed, :, index])
        np.testing.assert_allclose(weights[task], found, atol=1e-3)
        assert sum(weights[task]) == pytest.approx(1.0)
    assert weights["click"] != [0.5, 0.5]

    logit = kinds[:, :, 0] @ weights["click"]
    columns = make_columns(400, seed=1)
    inputs = {name: columns[name].to_numpy() for name in ("user", "item", "price", "device")}
    inputs["tags"] = columns["tags"].flatten().to_numpy().reshape(400, 3)
    served = load_numeric(run / "export")(**{n: tf.constant(v) for n, v in inputs.items()})
    np.testing.assert_allclose(served["click"], 1 / (1 + np.exp(-logit)), atol=1e-5)
