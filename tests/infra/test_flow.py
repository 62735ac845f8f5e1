"""The whole flow through the command line, once, on a small world; then what it left behind.

One flow serves every test here, since each start of Beam, Ray and TensorFlow costs seconds.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from infra.demo import running_service
from recsys.raw import canonical
from recsys.spec import Spec, load
from recsys.spec.schema import output_names, raw_columns

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
WORLD_SPEC = ROOT / "infra" / "specs" / "world.yaml"


def recsys(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """World, features, run and models, made by `recsys simulate` and `recsys run`."""
    folder = tmp_path_factory.mktemp("flow")
    recsys("simulate", folder / "world", "--rows", 12000, "--json")
    # Answers here are for what they say; a busy machine may take its time.
    patient = folder / "world.yaml"
    patient.write_text(WORLD_SPEC.read_text() + "\nserve: {deadline_ms: 30000}\n")
    done = recsys("run", patient, "--input", folder / "world", "--output", folder / "out",
                  "--json")  # fmt: skip
    result = json.loads(done.stdout)
    return {"folder": folder, "spec": patient, "result": result, "log": done.stderr}


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load(WORLD_SPEC)


def test_run_publishes_and_says_where_everything_lies(flow: dict[str, Any], spec: Spec) -> None:
    result = flow["result"]
    assert result["decision"]["published"] and result["decision"]["version"] == 1
    assert result["skipped"] == []
    metrics = json.loads((Path(result["run"]) / "metrics.json").read_text())
    assert set(metrics["tasks"]) == set(output_names(spec))
    assert metrics["tasks"]["click"]["auc"] > 0.6
    for stage in ("features", "train", "evaluate", "publish"):
        assert stage in flow["log"]
    assert "Traceback" not in flow["log"]
    assert re.search(r"^epoch 1/3: AUC click 0\.\d{4}, conversion 0\.\d{4}", flow["log"], re.M)
    assert re.search(r"^best epoch: \d of 3, validation score 0\.\d{4}$", flow["log"], re.M)


def test_training_ends_with_what_validation_says(flow: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(flow["result"]["run"], run)
    shown = recsys("train", flow["spec"], "--features", flow["result"]["features"],
                   "--output", run, "--resume").stdout  # fmt: skip
    validation = json.loads((run / "metrics-validation.json").read_text())
    row = next(line.split() for line in shown.splitlines() if line.startswith("  click   "))
    assert row[3] == f"{validation['tasks']['click']['auc']:.4f}"
    calibration = json.loads((run / "calibration.json").read_text())["click"]
    assert f"{calibration['ece_before']:.4f}" in shown and "best epoch: " in shown
    assert "trained anew for" in shown


def test_a_second_run_skips_every_stage(flow: dict[str, Any]) -> None:
    folder = flow["folder"]
    done = recsys("run", flow["spec"], "--input", folder / "world", "--output", folder / "out",
                  "--json")  # fmt: skip
    again = json.loads(done.stdout)
    assert again["skipped"] == ["features", "train", "evaluate", "publish"]
    assert again["decision"] == flow["result"]["decision"]
    versions = [p.name for p in (folder / "out" / "models").iterdir() if p.name.isdigit()]
    assert versions == ["1"]


def test_a_published_version_is_told_where_it_is_or_published_again(
    flow: dict[str, Any], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(flow["folder"] / "out", moved)

    def run(*options: str) -> dict[str, Any]:
        done = recsys("run", flow["spec"], "--input", flow["folder"] / "world", "--output", moved,
                      "--json", *options)  # fmt: skip
        return json.loads(done.stdout)

    again = run()
    assert again["skipped"] == ["features", "train", "evaluate", "publish"]
    assert again["decision"]["path"] == str(moved / "models" / "1")
    shutil.rmtree(moved / "models" / "1")
    again = run()
    assert again["skipped"] == ["features", "train", "evaluate"]
    assert again["decision"]["version"] == 2
    assert (moved / "models" / "2" / "saved_model.pb").is_file()
    again = run("--force")
    assert again["skipped"] == ["features", "train", "evaluate"]
    assert again["decision"]["version"] == 3
    again = run("--set", "serve.max_candidates=1000")
    assert again["skipped"] == ["features", "train", "evaluate"]
    assert again["decision"]["version"] == 4


def moved_out(flow: dict[str, Any], to: Path) -> Path:
    """What `recsys run` has made, as if it were moved: the old place is no more."""
    shutil.copytree(flow["folder"] / "out", to)
    for path in to.glob("runs/*/manifest.json"):
        path.write_text(path.read_text().replace(str(flow["folder"]), str(to / "gone")))
    return to


def test_a_changed_gate_is_judged_and_nothing_is_trained(
    flow: dict[str, Any], tmp_path: Path
) -> None:
    out = moved_out(flow, tmp_path / "out")
    runs = [path.name for path in (out / "runs").iterdir()]

    def run(*settings: str, code: int = 0) -> dict[str, Any]:
        options = [part for setting in settings for part in ("--set", setting)]
        done = recsys("run", flow["spec"], "--input", flow["folder"] / "world", "--output", out,
                      "--json", *options, code=code)  # fmt: skip
        return json.loads(done.stdout)

    earlier = ["features", "train", "evaluate"]
    strict = run("tasks.click.gate.min_auc=0.999", code=3)
    assert strict["skipped"] == earlier
    # Of this command, not of the spec that the run was trained by.
    assert strict["decision"]["reasons"][0].endswith("is below the gate of 0.9990")
    assert [path.name for path in (out / "runs").iterdir()] == runs
    # Another limit for bad records changes nothing, but a lower one is to be kept.
    assert run("data.bad_records=0.5")["skipped"] == [*earlier, "publish"]
    assert run("data.bad_records=0.001")["skipped"] == ["train", "evaluate", "publish"]


def test_stages_go_on_in_a_folder_that_was_moved(flow: dict[str, Any], tmp_path: Path) -> None:
    out = moved_out(flow, tmp_path / "out")
    done = recsys("run", flow["spec"], "--input", flow["folder"] / "world", "--output", out,
                  "--json", "--set", "evaluate.largest=1")  # fmt: skip
    again = json.loads(done.stdout)
    assert again["skipped"] == ["features", "train"]
    assert len(again["metrics"]["slices"]["device"]) == 1


@pytest.fixture(scope="module")
def service(flow: dict[str, Any]) -> Iterator[str]:
    """Address of a service of what was published."""
    models, features = (Path(flow["result"][name]) for name in ("models", "features"))
    with running_service(models, features, flow["folder"] / "service.log") as url:
        yield url


def joined_rows(world: Path, spec: Spec, rows: int) -> pa.Table:
    """Raw test rows joined to their user and item by plain means, apart from the job."""
    impressions = pq.read_table(world / "impressions" / "day=2026-01-10").slice(0, rows)
    frame = impressions.to_pandas()
    users = pq.read_table(world / "users").to_pandas()
    items = pq.read_table(world / "items").to_pandas()
    frame = frame.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    columns = {
        column.name: canonical(pa.array(frame[column.name], from_pandas=True), column)[0]
        for column in raw_columns(spec)
    }
    return pa.table(columns), frame


def test_the_same_rows_get_the_same_probabilities_everywhere(
    flow: dict[str, Any], spec: Spec, service: str
) -> None:
    """Beam examples through the numeric signature, raw and tf.Example signatures, and HTTP."""
    folder, result = flow["folder"], flow["result"]
    model = tf.saved_model.load(str(folder / "out" / "models" / "1"))
    assert sorted(model.signatures) == ["numeric", "serving_default", "tf_example"]
    table, frame = joined_rows(folder / "world", spec, 40)
    raw = {name: table[name].to_numpy() for name in table.column_names}
    by_raw = model.signatures["serving_default"](
        **{name: tf.constant(values) for name, values in raw.items()}
    )
    assert set(by_raw) == {*output_names(spec), "score"}

    examples = []
    for row in range(len(frame)):
        feature = {}
        for column in raw_columns(spec):
            value = raw[column.name][row]
            if column.dtype == "string":
                feature[column.name] = tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[value.encode()])
                )
            elif not np.isnan(value):  # an absent feature is a missing one
                feature[column.name] = tf.train.Feature(
                    float_list=tf.train.FloatList(value=[value])
                )
        examples.append(
            tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
        )
    by_example = model.signatures["tf_example"](examples=tf.constant(examples))

    # The job's own rows of the same requests. Rows of a request share user and time, and
    # examples carry no item id, so predictions are compared request by request, sorted.
    written = pq.read_table(Path(result["features"]) / "examples" / "test").to_pandas()
    keys = frame["user_id"] + "|" + frame["time"].astype(str)
    written["key"] = written["key:user"] + "|" + written["key:time"].astype(str)
    matched = written[written["key"].isin(set(keys))]
    assert sorted(matched["key"]) == sorted(keys)
    by_job = model.signatures["numeric"](
        **{
            feature.name: tf.constant(np.stack(matched[feature.name].to_numpy()))
            for feature in spec.features
        }
    )
    for name in output_names(spec):
        np.testing.assert_allclose(by_example[name], by_raw[name], atol=1e-6)
        for key in set(keys):
            np.testing.assert_allclose(
                np.sort(by_job[name].numpy()[matched["key"] == key]),
                np.sort(by_raw[name].numpy()[keys == key]),
                atol=1e-5,
            )

    contexts = [c.name for c in raw_columns(spec) if c.owner == "context"]
    version = httpx.get(f"{service}/v1/models", timeout=30).json()
    for row in range(10):
        body = {
            "user": {"id": frame["user_id"][row]},
            "context": {name: raw[name][row] for name in contexts},
            "candidates": [frame["item_id"][row]],
        }
        answer = httpx.post(f"{service}/v1/rank", json=body, timeout=30).json()
        item = answer["items"][0]
        assert item["id"] == frame["item_id"][row], version
        for name in output_names(spec):
            assert item["probabilities"][name] == pytest.approx(float(by_raw[name][row]), abs=1e-5)


def test_a_gate_refuses_with_reasons_and_exit_code_3(flow: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(flow["result"]["run"], run)
    text, task = (run / "spec.yaml").read_text(), "- name: click\n"
    assert text.count(task) == 1
    (run / "spec.yaml").write_text(text.replace(task, f"{task}  gate: {{min_auc: 0.999}}\n"))
    done = recsys("publish", run, "--models", tmp_path / "models", "--json", code=3)
    decision = json.loads(done.stdout)
    assert not decision["published"]
    assert any("0.999" in reason and "click" in reason for reason in decision["reasons"])
    assert not (tmp_path / "models").exists()


def test_the_client_sends_a_request_and_prints_a_table(flow: dict[str, Any], service: str) -> None:
    from serving.example import example_request

    features = Path(flow["result"]["features"])
    request = flow["folder"] / "request.json"
    request.write_text(json.dumps(example_request(load(features / "spec.yaml"), features)))
    shown = recsys("rank", request, "--url", service)
    answer = json.loads(recsys("rank", request, "--url", service, "--json").stdout)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["items"][0]["id"] in shown.stdout
    nobody = "http://127.0.0.1:1"
    refused = recsys("rank", request, "--url", nobody, code=1)
    assert "Traceback" not in refused.stderr and nobody in refused.stderr
