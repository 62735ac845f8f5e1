"""New versions and tables while requests run, and damaged ones that change nothing."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from recsys.errors import UserError
from recsys.spec import Spec, change, fingerprints
from serving.engine import running
from serving.live import Live, frequent_switches
from serving.metrics import Metrics

BODY = {"user": {"id": "u1"}, "context": {"device": "tv"}, "candidates": ["i1", "i2"]}
Publish = Callable[..., Path]


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_new_version_is_taken_up_without_a_failed_request(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    answers: list[tuple[int, float]] = []
    failures: list[object] = []
    stop = threading.Event()

    with running(models, features, poll_seconds=0.05) as url:

        def ask() -> None:
            with httpx.Client(timeout=30) as session:
                while not stop.is_set():
                    try:
                        answer = session.post(f"{url}/v1/rank", json=BODY, timeout=30)
                    except httpx.HTTPError as error:
                        failures.append(error)
                        continue
                    if answer.status_code != 200:
                        failures.append(answer.text)
                        continue
                    first = answer.json()["items"][0]
                    answers.append(
                        (answer.json()["model_version"], first["probabilities"]["click"])
                    )

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) > 20)
        publish(models, 2, scale=0.5)
        eventually(lambda: answers[-1][0] == 2)
        more = len(answers) + 20
        eventually(lambda: len(answers) > more)
        stop.set()
        for thread in threads:
            thread.join()
        report = httpx.get(f"{url}/metrics", timeout=30).text
    assert failures == []
    assert {version for version, _ in answers} == {1, 2}
    # i2 has the sum 8: each answer is wholly of the version that it names.
    assert all(
        click == pytest.approx({1: 1 / 8, 2: 0.5 / 8}[version], rel=1e-5)
        for version, click in answers
    )
    assert "recsys_model_version 2.0" in report and "recsys_model_swaps_total 2.0" in report


def test_a_damaged_newest_version_changes_nothing(
    tmp_path: Path, features: Path, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, metrics := Metrics())
    publish(models, 2)
    (models / "2" / "saved_model.pb").write_bytes(b"half a graph")
    publish(models, 3)
    (models / "3" / "manifest.json").unlink()
    publish(models, 4)
    shard = next((models / "4" / "variables").glob("*.data-*"))
    shard.write_bytes(b"")
    with caplog.at_level("WARNING", "recsys.serving"):
        for _ in range(3):
            live.poll()
    assert live.current.version == 1
    assert live.refused.keys() == {2, 3, 4}
    # Said once each, with the reason.
    assert len(caplog.records) == 3
    assert all("; version 1 serves" in record.getMessage() for record in caplog.records)
    assert b"recsys_model_refused_total 3.0" in metrics.text()
    publish(models, 2)
    live.poll()
    assert live.current.version == 2 and live.refused.keys() == {3, 4}


def test_a_refusal_names_the_file_that_is_missing(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    publish(models, 2)
    shutil.rmtree(models / "2" / "assets")
    live = Live(models, features, Metrics())
    assert live.current.version == 1
    assert f"{models / '2' / 'assets' / 'words'}; No such file" in live.refused[2].reason


def test_versions_that_cannot_be_listed_leave_what_serves_and_what_is_known(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    publish(models, 2)
    (models / "2" / "saved_model.pb").unlink()
    live = Live(models, features, Metrics())
    models.rename(tmp_path / "moved")
    models.symlink_to(models)
    with pytest.raises(OSError, match="models"):
        live.poll()
    assert live.current.version == 1 and live.refused.keys() == {2}


def test_a_refusal_names_what_serves_then(
    tmp_path: Path, features: Path, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, Metrics())
    for version in (2, 3):
        publish(models, version)
    (models / "3" / "saved_model.pb").unlink()
    with caplog.at_level("WARNING", "recsys.serving"):
        live.poll()
    said = [record.getMessage() for record in caplog.records if record.name == "recsys.serving"]
    assert said == ["version 3 is refused: saved_model.pb is missing; version 2 serves"]


def test_a_version_without_fingerprints_does_not_end_the_looking(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, Metrics())
    for version in (2, 3):
        publish(models, version)
    manifest = models / "3" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("fingerprints", "prints"))
    live.poll()
    assert live.current.version == 2 and "lacks 'fingerprints'" in live.refused[3].reason


def test_tables_built_anew_refuse_nothing_again_and_what_is_gone_is_forgotten(
    tmp_path: Path, write_features: Callable[..., Path], spec: Spec, publish: Publish
) -> None:
    features = write_features(tmp_path / "features", spec)
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, metrics := Metrics())
    publish(models, 2)
    (models / "2" / "saved_model.pb").write_bytes(b"half a graph")
    publish(models, 3, by=changed(spec))
    live.poll()
    assert live.refused.keys() == {2, 3}
    before = live.current.store
    write_features(features, spec)
    live.poll()
    assert live.current.store is not before
    assert live.refused.keys() == {2, 3}
    assert b"recsys_model_refused_total 2.0" in metrics.text()
    shutil.rmtree(models / "2")
    live.poll()
    assert live.refused.keys() == {3}


@pytest.mark.parametrize("change", [{"counters": "none"}, {"fingerprints": {}}])
def test_tables_that_are_damaged_do_not_end_the_looking(
    change: dict[str, object],
    tmp_path: Path,
    write_features: Callable[..., Path],
    spec: Spec,
    publish: Publish,
) -> None:
    features = write_features(tmp_path / "features", spec)
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, Metrics())
    write_features(features, spec)
    manifest = features / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    publish(models, 2)
    live.poll()
    assert live.current.version == 2


def test_a_version_that_answers_no_numbers_is_refused(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    publish(models, 2, scale=float("nan"))
    live = Live(models, features, Metrics())
    assert live.current.version == 1 and "nan" in live.refused[2][1]


def test_a_version_of_another_signature_is_refused(
    tmp_path: Path, write_features: Callable[..., Path], spec: Spec, publish: Publish
) -> None:
    other = spec.model_copy(update={"tasks": spec.tasks[:1]})
    features = write_features(tmp_path / "features", other)
    models = publish(tmp_path / "models", 1, by=other)
    Live(models, features, Metrics())  # more outputs than the spec has are no fault
    renamed = spec.model_copy(
        update={"tasks": (spec.tasks[0], spec.tasks[1].model_copy(update={"name": "sale"}))}
    )
    features = write_features(tmp_path / "features2", renamed)
    models = publish(tmp_path / "models2", 1, by=renamed)
    with pytest.raises(UserError, match="no output sale, sale_given_click in"):
        Live(models, features, Metrics())


def test_removing_what_serves_goes_back_to_the_one_before(
    tmp_path: Path, features: Path, publish: Publish
) -> None:
    models = publish(tmp_path / "models", 1)
    publish(models, 2)
    live = Live(models, features, Metrics())
    assert live.current.version == 2
    (models / "2").rename(models / ".2.withdrawn")
    live.poll()
    assert live.current.version == 1
    (models / "1").rename(models / ".1.withdrawn")
    live.poll()
    assert live.current.version == 1


def test_no_version_to_start_with(tmp_path: Path, features: Path, publish: Publish) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Live(tmp_path / "nowhere", features, Metrics())
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match="no model version") as caught:
        Live(tmp_path / "models", features, Metrics())
    assert "no version in it" in caught.value.found and "recsys publish" in caught.value.fix
    publish(tmp_path / "models", 1)
    (tmp_path / "models" / "1" / "saved_model.pb").unlink()
    with pytest.raises(UserError, match=r"version 1, refused: saved_model.pb is missing"):
        Live(tmp_path / "models", features, Metrics())


def test_tables_of_other_features_are_refused_with_both_named(
    tmp_path: Path, models: Path, write_features: Callable[..., Path], spec: Spec
) -> None:
    other = changed(spec)
    features = write_features(tmp_path / "features", other)
    with pytest.raises(UserError) as caught:
        Live(models, features, Metrics())
    text = str(caught.value)
    assert fingerprints(other)["features"] in text and fingerprints(spec)["features"] in text
    assert "recsys features SPEC" in caught.value.fix


def changed(spec: Spec) -> Spec:
    """The spec with a feature encoded otherwise: other features, the same raw columns."""
    return change(spec, ["features.user_id.encode.min_count=2"])


def test_tables_built_anew_are_taken_up(
    tmp_path: Path, models: Path, write_features: Callable[..., Path], spec: Spec
) -> None:
    features = write_features(tmp_path / "features", spec)
    live = Live(models, features, Metrics())
    assert live.current.store.size("user") == 2
    user = {
        "key:owner": ["u3"],
        "user_id": ["u3"],
        "country": ["fr"],
        "activity": [0.0],
        "seen": [""],
    }
    write_features(features, spec, user=user)
    live.poll()
    assert live.current.store.lookup("user", ["u3"]).known.all()
    # Damaged ones are not, and the last good ones go on.
    write_features(features, spec, user={"key:owner": ["u4"]})
    live.poll()
    assert live.current.store.lookup("user", ["u3"]).known.all()


def test_tables_that_are_copied_behind_their_manifest_are_taken_up_once_they_are_there(
    tmp_path: Path, models: Path, write_features: Callable[..., Path], spec: Spec
) -> None:
    features = write_features(tmp_path / "features", spec)
    live = Live(models, features, Metrics())
    items = {"key:owner": ["i9"], "item_id": ["i9"], "price": [1.0], "tags": ["a"]}
    new = write_features(tmp_path / "new", spec, item=items)
    shutil.copy(new / "manifest.json", features / "manifest.json")
    live.poll()
    assert live.current.store.size("item") == 4
    table = (new / "tables" / "item.parquet").read_bytes()
    # Half of a table is refused, and what served goes on.
    (features / "tables" / "item.parquet").write_bytes(table[:100])
    live.poll()
    assert live.current.store.size("item") == 4
    (features / "tables" / "item.parquet").write_bytes(table)
    live.poll()
    assert live.current.store.keys("item", 2) == ["i9"]


def test_other_features_wait_for_their_model(
    tmp_path: Path, write_features: Callable[..., Path], spec: Spec, publish: Publish
) -> None:
    features = write_features(tmp_path / "features", spec)
    models = publish(tmp_path / "models", 1)
    live = Live(models, features, Metrics())
    other = changed(spec)
    # The model comes before its tables: refused, until they are there.
    publish(models, 2, by=other)
    live.poll()
    assert live.current.version == 1 and live.refused.keys() == {2}
    write_features(features, other)
    live.poll()
    assert live.current.version == 2
    assert live.current.store.fingerprint == fingerprints(other)["features"]
    # The tables come before their model: the old pair goes on until it is published.
    write_features(features, spec)
    live.poll()
    assert live.current.version == 2
    publish(models, 3)
    live.poll()
    assert live.current.version == 3
    assert live.current.store.fingerprint == fingerprints(spec)["features"]


def test_threads_switch_more_often_only_while_a_version_loads():
    before = sys.getswitchinterval()
    with pytest.raises(RuntimeError), frequent_switches(0.001):
        assert sys.getswitchinterval() == pytest.approx(0.001)
        raise RuntimeError
    assert sys.getswitchinterval() == before
