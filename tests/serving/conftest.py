"""A small FEATURES folder and SavedModels in the contract's form, with answers by hand.

The model is plain TensorFlow with the raw signature of the spec below:

    click                  = scale / (1 + price + activity + ctr + len(country) + len(item_id)
                                      + number of tags)      missing price 3, activity 2
    conversion_given_click = 1 / (2 + len(device) + length of the history)
    conversion             = click * conversion_given_click
    score                  = (click + conversion) / 2
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.artifacts import write_folder, write_manifest
from recsys.spec import Spec, dumps, fingerprints, loads

SPEC = """
name: shop
data:
  impressions: {path: impressions}
  tables:
    user: {path: users, key: user_id}
    item: {path: items, key: item_id}
  keys: {user: user_id, item: item_id}
  time: {column: time, unit: ms}
  split: {train_to: 2026-01-08, validation_to: 2026-01-09}
features:
  - {name: user_id, owner: user, encode: vocabulary}
  - {name: item_id, owner: item, encode: vocabulary}
  - {name: country, owner: user, encode: vocabulary}
  - {name: activity, owner: user, encode: numeric}
  - {name: seen, owner: user, encode: {kind: history, of: item_id, action: click}}
  - {name: price, owner: item, encode: numeric}
  - {name: tags, owner: item, encode: {kind: vocabulary, max_length: 4}, separator: "|"}
  - {name: ctr, owner: item, encode: {kind: counter, by: [item_id, device, shelf], task: click}}
  - {name: device, owner: context, encode: vocabulary}
tasks:
  - {name: click, label: {column: click}}
  - {name: conversion, label: {column: conversion}, given: click}
serve: {max_candidates: 300, max_body_bytes: 100000, deadline_ms: 30000}
"""

USERS = {
    "key:owner": ["u1", "u2"],
    "user_id": ["u1", "u2"],
    "country": ["de", "usa"],
    "activity": [1.0, None],
    "seen": ["i1,i2", ""],
}
ITEMS = {
    "key:owner": ["i1", "i2", "i3", "40"],
    "item_id": ["i1", "i2", "i3", "40"],
    "price": [5.0, 1.0, None, 1.0],
    "tags": ["a|b", "a", "", "a"],
}
COUNTER = {
    "item_id": ["i1", "i2", "i2"],
    "device": ["tv", "tv", "tv"],
    "shelf": ["", "", "top"],
    "key:value": [2.0, 0.0, 7.0],
}
COUNTER_DEFAULT = 1.0


def hand_score(
    *,
    item: str,
    country: str = "",
    activity: float = 2.0,
    price: float = 3.0,
    tags: int = 0,
    ctr: float = COUNTER_DEFAULT,
    device: str = "",
    seen: int = 0,
    scale: float = 1.0,
) -> dict[str, float]:
    """What the model answers, from the formulas above; defaults are those of missing values."""
    click = scale / (1 + price + activity + ctr + len(country) + len(item) + tags)
    given = 1 / (2 + len(device) + seen)
    return {
        "click": click,
        "conversion": click * given,
        "conversion_given_click": given,
        "score": (click + click * given) / 2,
    }


def make_features(folder: Path, spec: Spec, **changed: dict[str, list[object]]) -> Path:
    """A FEATURES folder; replaces one that stands there."""
    with write_folder(folder, replace=True) as aside:
        (aside / "tables").mkdir()
        for name, columns in (("user", USERS), ("item", ITEMS), ("counter-ctr", COUNTER)):
            table = pa.table(changed.get(name, columns))
            pq.write_table(table, aside / "tables" / f"{name}.parquet")
        (aside / "spec.yaml").write_text(dumps(spec))
        (aside / "statistics.json").write_text(
            '{"train": {"device": {"kind": "string", "top": {"tv": 7, "phone": 2}}}}'
        )
        write_manifest(
            aside,
            "features",
            {"features": fingerprints(spec)["features"]},
            {"counters": {"ctr": {"default": COUNTER_DEFAULT}}},
        )
    return folder


def _save(folder: Path, scale: float) -> None:
    import recsys  # noqa: F401, I001
    import tensorflow as tf

    words = folder.with_suffix(".words") / "words"
    words.parent.mkdir()
    words.write_text("u1\nu2\n")

    def length(text: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.strings.length(text), tf.float32)

    def count(text: tf.Tensor, separator: str) -> tf.Tensor:
        return tf.cast(tf.strings.split(text, separator).row_lengths(), tf.float32)

    def filled(number: tf.Tensor, default: float) -> tf.Tensor:
        return tf.where(tf.math.is_nan(number), default, number)

    class Ranker(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(scale)
            self.users = tf.lookup.StaticVocabularyTable(
                tf.lookup.TextFileInitializer(
                    str(words),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                1,
            )

        @tf.function(
            input_signature=[
                tf.TensorSpec(
                    [None], tf.float32 if name in ("activity", "price", "ctr") else tf.string, name
                )
                for name in (
                    "user_id",
                    "item_id",
                    "country",
                    "activity",
                    "seen",
                    "price",
                    "tags",
                    "ctr",
                    "device",
                )
            ]
        )
        def raw(
            self,
            user_id,
            item_id,
            country,
            activity,
            seen,
            price,
            tags,
            ctr,  # type: ignore[no-untyped-def]
            device,
        ):
            # Splitting "" gives one empty part for a separator that is not "".
            tag_count = tf.where(tags == "", 0.0, count(tags, "|"))
            seen_count = tf.where(seen == "", 0.0, count(seen, ","))
            click = self.scale / (
                1.0
                + filled(price, 3.0)
                + filled(activity, 2.0)
                + filled(ctr, 90.0)
                + length(country)
                + length(item_id)
                + tag_count
                + 0.0 * tf.cast(self.users.lookup(user_id), tf.float32)
            )
            # A request with this device is never done.
            endless = tf.reduce_any(device == "endless")
            turns = tf.while_loop(lambda _: endless, lambda n: [n + 1], [0])[0]
            given = 1.0 / (2.0 + length(device) + seen_count + 0.0 * tf.cast(turns, tf.float32))
            return {
                "click": click,
                "conversion": click * given,
                "conversion_given_click": given,
                "score": (click + click * given) / 2.0,
            }

    model = Ranker()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.raw})


@pytest.fixture(scope="session")
def spec() -> Spec:
    return loads(SPEC)


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> Path:
    return make_features(tmp_path_factory.mktemp("serving") / "features", spec)


@pytest.fixture(scope="session")
def write_features() -> Callable[..., Path]:
    """Writes a FEATURES folder; replaces one that stands there."""
    return make_features


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., dict[str, float]]:
    """What the model answers for values of its columns, from the formulas above."""
    return hand_score


Publish = Callable[..., Path]


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> Publish:
    """Publishes a version by an atomic rename; the graph of a scale is traced once."""
    saved = tmp_path_factory.mktemp("saved")

    def put(models: Path, version: int, scale: float = 1.0, by: Spec = spec) -> Path:
        source = saved / str(scale)
        if not source.exists():
            _save(source, scale)
        with write_folder(models / str(version), replace=True) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
            (aside / "spec.yaml").write_text(dumps(by))
            wanted = {name: fingerprints(by)[name] for name in ("features", "model", "serve")}
            write_manifest(aside, "model", wanted, {"version": version, "metrics": {}})
        return models

    return put


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, publish: Publish) -> Path:
    return publish(tmp_path_factory.mktemp("published") / "models", 1)
