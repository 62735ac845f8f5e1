"""Starting from another run: rows by token, optimizer state with them, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_features import VOCABULARIES, make_features, small_spec, table_sizes
from two_workers import fit_in_processes

import training
from recsys.artifacts import read_json, read_manifest, write_manifest
from recsys.errors import UserError
from recsys.model import build
from recsys.optimizers import create_slots, parts
from recsys.spec import Spec, dumps
from recsys.spec.records import SquaredError
from training.checkpoints import Position, Store
from training.input import load_rows, open_split
from training.scoring import score_rows, validate
from training.warm_start import check_source, seen_validation, start_from

pytestmark = pytest.mark.long

# Users reordered, two of them gone and two new; one item appended; tags as they were.
GROWN = {
    **VOCABULARIES,
    "user": ["u41", *reversed(VOCABULARIES["user"][2:]), "sep\u2028arator"],
    "item": [*VOCABULARIES["item"], "i31"],
    "device": ["d2", "new", "d1"],
}


def spec_with(spec: Spec, **model: Any) -> Spec:
    return spec.model_copy(update={"model": spec.model.model_copy(update=model)})


def wide_spec() -> Spec:
    """Two widths of tables (so with projections), a tower of positions, and a regression."""
    spec = small_spec()
    features = (spec.features[0].model_copy(update={"dim": 6}), *spec.features[1:])
    tasks = (spec.tasks[0], spec.tasks[1].model_copy(update={"loss": SquaredError()}))
    changes = {"features": features, "tasks": tasks}
    return spec_with(spec.model_copy(update=changes), position="device")


def own_name(variable: Any) -> str:
    """A variable's name without the model's, which counts models and not all have."""
    return str(variable.name).split("/", 1)[-1]


def state(model: Any) -> dict[str, np.ndarray]:
    """Every weight by its name, and every slot by its own and its weight's."""
    found = {own_name(variable): variable.numpy() for variable in model.variables}
    for part, variables in parts(model.optimizer):
        for variable in variables:
            for slot in part.get_slot_names():
                found[f"{own_name(variable)}/{slot}"] = part.get_slot(variable, slot).numpy()
    assert len({own_name(v) for v in model.variables}) == len(model.variables)
    return found


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of known values, and the model that starts from it on other features."""
    folder, spec = tmp_path_factory.mktemp("moved"), wide_spec()
    old = build(spec, table_sizes(VOCABULARIES))
    create_slots(old.optimizer)
    # Each value says where it stands: no two are alike.
    rng = np.random.default_rng(0)
    for variable in old.variables:
        variable.assign(rng.random(variable.shape))
    for steps, (part, variables) in enumerate(parts(old.optimizer), 70):
        part.iterations.assign(steps)
        for variable in variables:
            for slot in part.get_slot_names():
                part.get_slot(variable, slot).assign(
                    rng.random(part.get_slot(variable, slot).shape)
                )
    Store(folder / "run" / "checkpoints").save(old, Position(step=9))
    (folder / "run" / "spec.yaml").write_text(dumps(spec))
    assets = folder / "run" / "export" / "assets"
    assets.mkdir(parents=True)
    for name, tokens in VOCABULARIES.items():
        (assets / f"vocabulary_{name}").write_text("".join(f"{t}\n" for t in tokens))
    features = make_features(
        folder / "features", spec, train=30, other=30, files=1, vocabularies=GROWN
    )
    changed = spec.model_copy(
        update={"train": spec.train.model_copy(update={"dense_learning_rate": 0.125})}
    )
    tables = read_manifest(features, "features")["tables"]
    model, counts, steps = start_from(changed, features, tables, folder / "run")
    assert steps == 70
    fresh = build(changed, tables)
    create_slots(fresh.optimizer)
    return {"old": old, "model": model, "fresh": fresh, "counts": counts}


def tables_in(model: Any) -> list[tuple[str, str, int]]:
    """Name of the variable, table, and its first row, of each table in each variable."""
    network = model.networks[0]
    layers = [*network.groups.values(), network.first_order]
    found = [(own_name(la.table), table, la.offset(table)) for la in layers for table in la.tables]
    return [*found, (own_name(network.position_tower.logits), "device", 0)]


def test_rows_and_slots_follow_their_tokens(moved: dict[str, Any]) -> None:
    old, new, fresh = (state(moved[name]) for name in ("old", "model", "fresh"))
    ours, theirs = tables_in(moved["model"]), tables_in(moved["old"])
    assert len(ours) == 7  # three tables, each with first-order rows, and one of positions
    for (name, table, at), (_, _, before) in zip(ours, theirs, strict=True):
        tokens, known = GROWN[table], VOCABULARIES[table]
        slots = [key for key in new if key.startswith(name + "/")]
        assert len(slots) == (2 if "position" in name else 1)
        for key in (name, *slots):
            # Row 0 of a table is for missing values, the last for unknown ones.
            assert (new[key][at] == old[key][before]).all()
            last, was = 1 + len(tokens), 1 + len(known)
            assert (new[key][at + last] == old[key][before + was]).all()
            for row, token in enumerate(tokens, 1):
                expected = (
                    old[key][before + 1 + known.index(token)]
                    if token in known
                    else fresh[key][at + row]
                )
                assert (new[key][at + row] == expected).all(), (key, token)
        if table == "user":
            # A new row has no gradients behind it: the spec's start, for a batch of that size.
            train = small_spec().train
            start = train.table_initial_accumulator / train.batch_size**2
            start *= 100 if "first_order" in name else 1
            assert (new[slots[0]][at + 1] == np.float32(start)).all()


def test_dense_weights_and_moments_are_copied(moved: dict[str, Any]) -> None:
    old, new = state(moved["old"]), state(moved["model"])
    rows = {name for name, *_ in tables_in(moved["model"])}
    dense = [key for key in new if not any(key == r or key.startswith(r + "/") for r in rows)]
    assert any(key.endswith("/m") for key in dense) and any("projection" in k for k in dense)
    # Weights of a regression are meant in the unit of the labels that they were learned from.
    assert any("label_units" in key for key in dense)
    for key in dense:
        assert (new[key] == old[key]).all(), key
    steps = [int(part.iterations) for part, _ in parts(moved["model"].optimizer)]
    assert steps == [0, 0, 0]  # the schedule of the learning rates starts anew
    # Settings of training are the new run's own.
    assert moved["model"].optimizer.optimizers[0].learning_rate.peak == 0.125


def test_rows_are_counted(moved: dict[str, Any]) -> None:
    assert moved["counts"] == {
        # 38 users, the missing and the unknown; u41 and another are new; u1 and u2 are gone.
        "user": {"kept": 40, "new": 2, "dropped": 2},
        "item": {"kept": 32, "new": 1, "dropped": 0},
        "tags": {"kept": 10, "new": 0, "dropped": 0},
        "device": {"kept": 4, "new": 1, "dropped": 0},
    }


class InterruptionError(Exception):
    pass


def stop_at(stage: str) -> Any:
    def stop(name: str, *_: object) -> None:
        if name == stage:
            raise InterruptionError

    return stop


@pytest.fixture(scope="module")
def old_run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "run"
    training.train(small_spec(max_steps=20), features, folder)
    return folder


def test_it_starts_where_the_other_run_ended_and_resumes(
    features: Path, old_run: Path, tmp_path: Path
) -> None:
    spec, run = small_spec(max_steps=5, table_learning_rate=0.01), tmp_path / "run"
    source = tmp_path / "source"
    shutil.copytree(old_run, source)
    old = read_manifest(source, "run")
    # Interrupted before anything was taken over, then before the first step.
    with pytest.raises(InterruptionError):
        training.train(spec, features, run, warm_start=source, progress=stop_at("warm start"))
    assert Store(run / "checkpoints").names() == []
    (source / "manifest.json").write_text(json.dumps({**old, "run": "another"}))
    with pytest.raises(UserError, match="another run now") as error:
        training.train(spec, features, run, resume=True)
    assert old["run"] in error.value.expected and "another" in error.value.found
    (source / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(InterruptionError):
        training.train(spec, features, run, resume=True, progress=stop_at("build"))
    assert Store(run / "checkpoints").names() == ["step-00000000"]
    model = build(spec, read_manifest(features, "features")["tables"])
    assert Store(run / "checkpoints").restore_latest(model) == Position()
    rows = load_rows(spec, open_split(spec, features, "validation"))
    score, _ = validate(spec, rows.labels, score_rows(model, rows))
    assert score == pytest.approx(old["trained"]["score"], abs=1e-6)

    shutil.copytree(run, tmp_path / "together")
    (source / "manifest.json").write_text(json.dumps({**old, "run": "another"}))
    with pytest.raises(UserError, match="did not start from") as error:
        training.train(spec, features, run, resume=True, warm_start=source)
    assert old["run"] in error.value.expected and "another" in error.value.found
    shutil.rmtree(source)

    # The other run is not needed any more.
    manifest = training.train(spec, features, run, resume=True)
    assert manifest["trained"]["steps"] == 5 and manifest["trained"]["epochs"] == 1
    assert manifest["warm_start"]["run"] == old["run"]
    assert manifest["warm_start"]["tables"]["user"] == {"kept": 42, "new": 0, "dropped": 0}
    assert manifest["warm_start"]["steps"] == 20
    again = training.train(spec, features, tmp_path / "again", warm_start=run)
    assert again["warm_start"]["steps"] == 20 + 5

    fit_in_processes(
        features, tmp_path / "together", 2, past_steps=20, max_steps=5, table_learning_rate=0.01
    )
    one, two = (read_json(folder / "history.json") for folder in (run, tmp_path / "together"))
    assert [record["step"] for record in two] == [5]
    assert two[0]["score"] == pytest.approx(one[0]["score"], abs=1e-4)
    assert two[0]["train"]["loss"] == pytest.approx(one[0]["train"]["loss"], rel=1e-4)


DAY = 86_400_000


@pytest.mark.parametrize(
    ("refit", "validation", "seen"),
    [
        (False, [3 * DAY, 4 * DAY], None),
        (False, [2 * DAY, 3 * DAY], "1970-01-03 00:00:00"),
        (True, [3 * DAY, 4 * DAY], "1970-01-04 12:00:00"),
        (True, [4 * DAY, 5 * DAY], None),
        (True, None, None),
    ],
)
def test_validation_rows_that_the_other_run_has_seen_are_told(
    tmp_path: Path, refit: bool, validation: list[int] | None, seen: str | None
) -> None:
    # It was trained to the start of the third day, and validated to noon of the fourth.
    ranges = {"train": [0, 2 * DAY], "validation": [3 * DAY, 3 * DAY + DAY // 2]}
    write_manifest(tmp_path, "run", {}, {"trained": {"time_range": ranges}})
    (tmp_path / "spec.yaml").write_text(dumps(small_spec(refit=refit)))
    warning = seen_validation(tmp_path, {"time_range": {"validation": validation}})
    if seen is None:
        assert warning is None
    else:
        assert warning is not None and f"trained on rows to {seen}" in warning
        assert f"begins at 1970-01-0{1 + validation[0] // DAY} 00:00:00" in warning


def test_a_run_warns_of_validation_rows_that_were_seen(
    features: Path, old_run: Path, tmp_path: Path
) -> None:
    source, later = tmp_path / "source", tmp_path / "features"
    shutil.copytree(old_run, source)
    shutil.copytree(features, later)
    for folder, place in ((source, "trained"), (later, None)):
        manifest = json.loads((folder / "manifest.json").read_text())
        (manifest[place] if place else manifest)["time_range"] = {
            "train": [0, 2 * DAY],
            "validation": [2 * DAY, 3 * DAY],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    told: list[tuple[str, str]] = []
    training.train(
        small_spec(max_steps=1),
        later,
        tmp_path / "run",
        warm_start=source,
        progress=lambda stage, done, total, words: told.append((stage, words)),
    )
    [warning] = [words for stage, words in told if stage == "warning"]
    assert "flatters validation" in warning


def test_runs_of_another_shape_are_refused_by_name(
    features: Path, old_run: Path, tmp_path: Path
) -> None:
    spec = small_spec()
    with pytest.raises(UserError, match="another shape") as error:
        training.train(spec_with(spec, dim=8), features, tmp_path / "run", warm_start=old_run)
    assert error.value.expected == "model.dim 8" and error.value.found == "model.dim 4"
    assert not (tmp_path / "run").exists()
    fewer = spec.model_copy(update={"features": spec.features[:-1]})
    with pytest.raises(UserError) as error:
        check_source(fewer, old_run)
    assert "features.device.encode.kind (none)" in error.value.expected
    more_unknown = spec.features[0].model_copy(
        update={"encode": spec.features[0].encode.model_copy(update={"oov_buckets": 2})}
    )
    with pytest.raises(UserError) as error:
        check_source(
            spec.model_copy(update={"features": (more_unknown, *spec.features[1:])}), old_run
        )
    assert error.value.found == "features.user.encode.oov_buckets 1"
    others = tuple(f.model_copy(update={"name": f"{f.name}_"}) for f in spec.features)
    with pytest.raises(UserError) as error:
        check_source(spec.model_copy(update={"features": others}), old_run)
    assert error.value.expected.count(";") == 5 and len(error.value.expected) < 500
    assert error.value.expected.endswith("more that differ")
    alone = spec.model_copy(
        update={"tasks": (spec.tasks[0], spec.tasks[1].model_copy(update={"given": None}))}
    )
    with pytest.raises(UserError) as error:
        check_source(alone, old_run)
    assert error.value.expected == "tasks.conversion.given null"
    with pytest.raises(UserError, match="no run folder"):
        check_source(spec, tmp_path / "nowhere")


def test_a_number_and_its_logarithm_are_of_another_shape(old_run: Path, tmp_path: Path) -> None:
    spec = small_spec()
    copy = tmp_path / "run"
    shutil.copytree(old_run, copy)

    def watched(log: bool) -> Spec:
        task = spec.tasks[1].model_copy(update={"given": None, "loss": SquaredError(log=log)})
        return spec.model_copy(update={"tasks": (spec.tasks[0], task)})

    (copy / "spec.yaml").write_text(dumps(watched(False)))
    with pytest.raises(UserError, match="another shape") as error:
        check_source(watched(True), copy)
    assert error.value.expected == "tasks.conversion.loss.log true"


def test_settings_of_training_and_of_vocabularies_may_differ(old_run: Path) -> None:
    spec = spec_with(small_spec(epochs=9, batch_size=7), dropout=0.5, recompute=True)
    rarer = spec.features[0].encode.model_copy(update={"min_count": 3, "top_k": 9})
    first = spec.features[0].model_copy(update={"encode": rarer})
    spec = spec.model_copy(update={"features": (first, *spec.features[1:])})
    assert check_source(spec, old_run)["run"] == read_manifest(old_run, "run")["run"]


def test_a_run_without_checkpoints_is_refused(old_run: Path, tmp_path: Path) -> None:
    shutil.copytree(old_run, tmp_path / "run", ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(UserError, match="no checkpoints"):
        check_source(small_spec(), tmp_path / "run")
