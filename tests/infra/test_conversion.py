"""LiteRT conversion: a plain reader of `lookup.json` feeds the device model as serving does."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import training
from beam_jobs import run_features
from beam_jobs.transform import _number, _weights
from infra.cli import app
from recsys.artifacts import read_json, write_manifest
from recsys.calibration import Calibration
from recsys.errors import UserError
from recsys.export import export
from recsys.model import build
from recsys.spec import Spec, dumps, fingerprints
from recsys.spec.names import argument_names
from recsys.spec.schema import output_names, raw_columns
from serving.scorer import Scorer
from serving.store import LocalStore
from training.conversion import compare
from training.evaluation import load_numeric

sys.path.insert(0, str(Path(__file__).parent))
from phone_world import make_log, phone_spec

pytestmark = pytest.mark.long

MASK = (1 << 64) - 1


class Device:
    """What someone would write on a device: no TensorFlow but the interpreter, no recsys.

    Knows `lookup.json` and the files that it names, as the folder's README explains them.
    """

    def __init__(self, folder: Path) -> None:
        lookup = json.loads((folder / "lookup.json").read_text())
        self.inputs, self.outputs = lookup["inputs"], lookup["outputs"]
        self.signature = lookup["signature"]
        self.rows = {}
        for record in self.inputs:
            if record["kind"] == "vocabulary":
                lines = (folder / record["vocabulary"]).read_bytes().decode().split("\n")[:-1]
                self.rows[record["vocabulary"]] = {
                    json.loads(line): n for n, line in enumerate(lines)
                }
        self.model = tf.lite.Interpreter(str(folder / "model.tflite"))

    def rank(self, raw: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        tensors = {
            record["name"]: np.array(
                [self.value(record, row[record["raw"]["column"]], row) for row in raw],
                record["dtype"],
            )
            for record in self.inputs
        }
        return self.model.get_signature_runner(self.signature)(**tensors)

    def value(self, record: dict[str, Any], raw: Any, row: dict[str, Any]) -> Any:
        if record["kind"] in ("vocabulary", "hash"):
            if "split" not in record:
                return self.row(record, raw)
            rule = record["split"]
            parts = [part.strip(rule["strip"]) for part in raw.split(rule["separator"])]
            ids = [self.row(record, part) for part in parts if part][: rule["max_length"]]
            return ids + [rule["padding"]] * (rule["max_length"] - len(ids))
        if record["kind"] == "weights":
            rule, number = record["split"], record["raw"]["number"]
            parts = [part.strip(rule["strip"]) for part in raw.split(rule["separator"])]
            keep = parts
            if record["list"] is not None:
                keep = row[record["list"]].split(rule["separator"])
                keep = [part.strip(rule["strip"]) for part in keep]
                keep = keep if len(keep) == len(parts) else [" "] * len(parts)
            weights = [
                max(float(part), 0.0) if re.fullmatch(number, part) else record["missing"]
                for part, kept in zip(parts, keep, strict=True)
                if kept
            ][: rule["max_length"]]
            return weights + [rule["padding"]] * (rule["max_length"] - len(weights))
        if record["raw"]["type"] == "text":
            raw = float(raw) if re.fullmatch(record["raw"]["number"], raw) else math.nan
        x, missing = np.float32(raw), record["missing"]
        if record["kind"] == "numeric":
            return missing if math.isnan(x) else self.scaled(record, x)
        if record["kind"] == "quantiles":
            below = sum(np.float32(b) <= x for b in record["boundaries"])
            return missing if math.isnan(x) else 1 + below
        assert record["kind"] == "piecewise"
        edges = [np.float32(float(edge)) for edge in record["edges"]]
        return [
            missing
            if math.isnan(x)
            else min(max((x - begin) / (end - begin), 0), 1)
            if end > begin
            else float(x >= begin)
            for begin, end in pairwise(edges)
        ]

    def row(self, record: dict[str, Any], text: str) -> int:
        if text == "":
            return record["missing"]
        if record["kind"] == "hash":
            return record["first_row"] + fingerprint64(text.encode()) % record["buckets"]
        known = self.rows[record["vocabulary"]]
        if text in known:
            return record["first_row"] + known[text]
        oov = record["oov"]
        return oov["first_row"] + fingerprint64(text.encode()) % oov["buckets"]

    def scaled(self, record: dict[str, Any], x: np.float32) -> float:
        if record["log"]:
            x = np.sign(x) * np.log1p(np.abs(x))
        if record["mean"] is None:
            return x
        return (float(x) - record["mean"]) / record["deviation"] if record["deviation"] else 0.0


def fingerprint64(s: bytes) -> int:
    """FarmHash Fingerprint64 of at most 64 bytes, from Google's description."""
    k0, k1, k2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
    n = len(s)
    mul = k2 + 2 * n

    def at(place: int, size: int = 8) -> int:
        return int.from_bytes(s[place : place + size], "little")

    def turn(value: int, bits: int) -> int:
        value &= MASK
        return (value >> bits | value << (64 - bits)) & MASK

    def mix(u: int, v: int) -> int:
        a = ((u ^ v) & MASK) * mul & MASK
        b = ((v & MASK) ^ a ^ (a >> 47)) * mul & MASK
        return (b ^ (b >> 47)) * mul & MASK

    if n == 0:
        return k2
    if n < 4:
        y, z = s[0] + (s[n >> 1] << 8), n + (s[-1] << 2)
        w = (y * k2 ^ z * k0) & MASK
        return (w ^ (w >> 47)) * k2 & MASK
    if n < 8:
        return mix(n + (at(0, 4) << 3), at(n - 4, 4))
    if n <= 16:
        a, b = at(0) + k2, at(n - 8)
        return mix(turn(b, 37) * mul + a, (turn(a, 25) + b) * mul)
    if n <= 32:
        a, b, c, d = at(0) * k1, at(8), at(n - 8) * mul, at(n - 16) * k2
        return mix(turn(a + b, 43) + turn(c, 30) + d, a + turn(b + k2, 18) + c)
    assert n <= 64, "longer texts are hashed in blocks"
    a, b, c, d = at(0) * k2, at(8), at(n - 8) * mul, at(n - 16) * k2
    y = turn(a + b, 43) + turn(c, 30) + d
    z = mix(y, a + turn(b + k2, 18) + c)
    e, f = at(16) * mul, at(24)
    g, h = (y + at(n - 32)) * mul, (z + at(n - 24)) * mul
    return mix(turn(e + f, 43) + turn(g, 30) + h, e + turn(f + a, 18) + g)


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 16, 17, 32, 33, 64])
def test_the_reader_has_the_hash_that_is_named(length: int) -> None:
    text = bytes(range(60, 60 + length))
    buckets = 2**63 - 1
    assert fingerprint64(text) % buckets == int(tf.strings.to_hash_bucket_fast(text, buckets))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Features, and a run of a network with trees beside it."""
    folder = tmp_path_factory.mktemp("device")
    log = make_log(folder / "world")
    spec = phone_spec("dim: 4, shared: [16], towers: [8], trees: {leaf_rows: 5}")
    run_features(spec, folder / "world", folder / "features")
    trained = training.train(spec, folder / "features", folder / "run")["trained"]
    assert max(weights[-1] for weights in trained["weights_of_kinds"].values()) > 0.2
    return {"folder": folder, "log": log, "spec": spec}


def make_version(made: dict[str, Any], folder: Path, spec: Spec | None = None) -> Spec:
    """A published version, its weights drawn at random; of a model with all the default lacks."""
    spec = spec or phone_spec(
        "dim: 4, shared: [8], towers: [4], sharing: {kind: mmoe, experts: 2}, "
        "history: {kind: local, window: 4}, interactions: [fm, cross, dot, match], position: place"
    )
    model = build(spec, read_json(made["folder"] / "features" / "manifest.json")["tables"])
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(0.0, 0.3, variable.shape))
    bent = Calibration("isotonic", {"x": (-2.0, 0.0, 0.3, 2.0), "y": (-3.0, -1.0, 0.0, 1.0)})
    straight = Calibration("platt", {"slope": 0.5, "intercept": -0.2})
    transform = made["folder"] / "features" / "transform"
    export(model, spec, transform, folder, {"click": bent, "buy": straight})
    (folder / "spec.yaml").write_text(dumps(spec))
    wanted = {name: fingerprints(spec)[name] for name in ("features", "model", "serve")}
    write_manifest(folder, "model", wanted, {"run": "r", "version": 1})
    return spec


def raw_rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Raw columns of rows of the log and of rows that it never saw."""
    columns = raw_columns(made["spec"])
    defaults = {column.name: column.default for column in columns}
    rows = []
    for index, logged in enumerate(made["log"].iloc[:40].to_dict("records")):
        logged["place"] = str(logged["place"])
        known = {name: logged[name] for name in defaults if name in logged}
        past = ",".join(f"item {(index + n) % 12}" for n in range(index % 7))
        rows.append({**defaults, **known, "seen": past, "rate": 0.35 + 0.005 * index})
    unseen = {
        "user": ["nobody", "A user of a longer name, unseen", " plain", "PLAIN"],
        "item": ["item 77", "unknown", "i", "an item whose name is rather long, and goes on"],
        "kind": ["boot", "x", "\u2028", "a kind of which the log has none at all"],
        "tags": ["||", "new|x|y", " y |", "|new"],
        "tag_weights": ["1|2", "3||.5", " 1e2 ", "-1|0.5"],
        "word_weights": ["", "1 2 3 4 5", "nan", "\t2\t0.5"],
        "words": ["  ", "a b c d e", "red", "\tred\tshoe  blue "],
        "price": [-3.5, 0.0, 1e6, 7.39],
        "Size (cm)": ["1.5e1", "-3", "huge", " .5 "],
        "place": ["1", "first", "", "5"],
        "none": [1.0, -1.0, 0.0, math.nan],
        "seen": ["unknown,item 1", ",,", "item 2, item 3 ,x,item 4", "i"],
        "rate": [math.nan, 0.0, 1.0, 0.5],
    }
    rows += [{name: unseen[name][n] for name in defaults} for n in range(4)]
    return [*rows, defaults]


def assert_alike(made: dict[str, Any], saved: Path, device: Path) -> None:
    """The device's answers are those of the SavedModel's raw signature, and of the service."""
    spec, rows = made["spec"], raw_rows(made)
    model, columns = tf.saved_model.load(str(saved)), raw_columns(spec)
    arguments = argument_names(column.name for column in columns)
    assert arguments["Size (cm)"] == "Size__cm_"
    served = model.signatures["serving_default"](
        **{
            arguments[column.name]: tf.constant([row[column.name] for row in rows], column.dtype)
            for column in columns
        }
    )
    scorer = Scorer(saved, spec)
    for at in range(0, len(rows), 10):
        raw = {
            column.name: np.array(
                [rows[at][column.name]], object if column.dtype == "string" else np.float32
            )
            for column in columns
        }
        for output, found in scorer.score(raw).items():
            np.testing.assert_allclose(found[0], served[output][at], atol=1e-6)
    answers = Device(device).rank(rows)
    assert set(answers) == {*output_names(spec), "score"}
    for output, found in answers.items():
        np.testing.assert_allclose(found, served[output], atol=1e-5, rtol=0)
    assert len(np.unique(served["click"].numpy().round(5))) > 20


def test_a_run_on_a_device_answers_as_it_serves(made: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "device"
    done = CliRunner().invoke(
        app, ["convert", str(made["folder"] / "run"), "--output", str(output), "--json"]
    )
    assert done.exit_code == 0, done.output
    check = json.loads(done.stdout)["check"]
    own = {"own", "own_given_click"}
    assert set(check["largest"]) == {"click", "buy", "buy_given_click", "score"} | own
    assert 0 <= max(check["largest"].values()) <= check["tolerance"] == 1e-5
    assert (
        check["rows"]
        == read_json(made["folder"] / "features" / "manifest.json")["rows"]["validation"]
    )
    names = sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())
    assert [name for name in names if "/" not in name] == [
        "README.md", "lookup.json", "manifest.json", "model.tflite",
    ]  # fmt: skip
    assert [name for name in names if "/" in name] == [
        f"vocabularies/{table}.jsonl" for table in ("item", "place", "size", "tag", "user")
    ]
    tokens = (output / "vocabularies" / "user.jsonl").read_text("utf-8").split("\n")
    assert {'"quo\\"te"', '"back\\\\slash"', '"sep\u2028arator"'} <= set(tokens)
    assert_alike(made, made["folder"] / "run" / "export", output)
    assert_counter_is_found(made, output)


def assert_counter_is_found(made: dict[str, Any], output: Path) -> None:
    """A counter looked up as the record and the README say is what the service looks up."""
    inputs = read_json(output / "lookup.json")["inputs"]
    raw = next(record["raw"] for record in inputs if record["name"] == "rate")
    table = pq.read_table(made["folder"] / "features" / "tables" / raw["table"])
    rows = {tuple(row[name] for name in raw["by"]): row[raw["value"]] for row in table.to_pylist()}
    assert raw["by"] == ["item"] and raw["default"] is not None
    items = [*made["log"]["item"].unique(), "never seen"]
    store = LocalStore(made["folder"] / "features")
    found = store.count("rate", [np.array(items, dtype=object)])
    assert [rows.get((item,), raw["default"]) for item in items] == pytest.approx(found.tolist())


@pytest.mark.parametrize(
    ("text", "weight", "number"),
    [("1e40", 1.0, math.nan), ("-1e40", 1.0, math.nan), ("1e-60", 0.0, 0.0), ("-2", 0.0, -2.0)],
)
def test_numbers_beyond_a_float_are_as_the_readme_says(
    text: str, weight: float, number: float
) -> None:
    feature = phone_spec().feature("tags")
    found = _weights(tf.constant([text]), tf.constant(["a"]), feature)
    assert found.numpy()[0, 0] == weight
    np.testing.assert_equal(_number(tf.constant([text]), log=False).numpy()[0], np.float32(number))


def test_a_published_version_of_a_richer_model(made: dict[str, Any], tmp_path: Path) -> None:
    """Experts, attention in windows, crosses, a tower of positions, isotonic calibration."""
    version = tmp_path / "1"
    spec = make_version(made, version)
    with pytest.raises(UserError, match="where its features lie") as error:
        training.convert(version, tmp_path / "device")
    assert "--features" in error.value.fix
    manifest = training.convert(version, tmp_path / "device", made["folder"] / "features")
    assert manifest["run"] == "r" and manifest["kind"] == "device"
    assert_alike(made, version, tmp_path / "device")

    # Another model's answers are not taken for its own, nor a file that is none.
    plain = load_numeric(made["folder"] / "run" / "export")
    rows = {
        name: np.zeros([3, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
        for name, spec in plain.structured_input_signature[1].items()
    }
    content = (tmp_path / "device" / "model.tflite").read_bytes()
    with pytest.raises(UserError, match="does not answer as") as error:
        compare(spec, plain, content, rows, tmp_path)
    assert "1e-05" in error.value.expected and float(error.value.found) > 1e-5
    with pytest.raises(UserError, match="built-in ops cannot express"):
        compare(spec, plain, content[:100], rows, tmp_path)


def test_the_score_of_a_heavy_blend_is_judged_by_its_weights(
    made: dict[str, Any], tmp_path: Path
) -> None:
    spec = made["spec"]
    blend = {"click": 1.0, "buy": 1e5}
    spec = spec.model_copy(update={"serve": spec.serve.model_copy(update={"blend": blend})})
    make_version(made, tmp_path / "1", spec)
    manifest = training.convert(tmp_path / "1", tmp_path / "device", made["folder"] / "features")
    assert 0 < manifest["check"]["largest"]["score"] < 1e-5
    # What is wrong in a task is as wrong in the score, for its part of the weights.
    signature = load_numeric(tmp_path / "1")
    rows = {
        name: np.zeros([3, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
        for name, spec in signature.structured_input_signature[1].items()
    }
    content = (tmp_path / "device" / "model.tflite").read_bytes()

    def shifted(**inputs: Any) -> dict[str, Any]:
        answers = signature(**inputs)
        return {**answers, "score": answers["score"] + 2.0}

    with pytest.raises(UserError, match="does not answer as") as error:
        compare(spec, shifted, content, rows, tmp_path)
    assert "`score`" in error.value.where and float(error.value.found) == pytest.approx(2e-5, 0.3)


def test_what_cannot_be_converted_is_named(made: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made["folder"] / "run", run, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.rmtree(run / "export")

    class Beta(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], name="price_plain")])
        def numeric(self, price_plain: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"click": tf.math.betainc(price_plain, price_plain, price_plain)}

    model = Beta()
    tf.saved_model.save(model, str(run / "export"), signatures={"numeric": model.numeric})
    with pytest.raises(UserError, match="built-in ops cannot express") as error:
        training.convert(run, tmp_path / "device")
    assert "Betainc" in error.value.found

    spec = made["spec"]
    twice = spec.feature("kind").encode.model_copy(update={"hashes": 2})
    features = tuple(
        f.model_copy(update={"encode": twice}) if f.name == "kind" else f for f in spec.features
    )
    (run / "spec.yaml").write_text(dumps(spec.model_copy(update={"features": features})))
    with pytest.raises(UserError, match="hash an id several times") as error:
        training.convert(run, tmp_path / "device")
    assert "`kind`" in error.value.where
    (run / "spec.yaml").write_text(dumps(phone_spec(train="precision: mixed_bfloat16")))
    with pytest.raises(UserError, match="half precision"):
        training.convert(run, tmp_path / "device")
    assert not (tmp_path / "device").exists()
