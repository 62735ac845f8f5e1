"""A small features folder in the contract's form, drawn from a seeded, learnable process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import recsys  # noqa: F401  (Keras switch first)
from recsys.artifacts import write_manifest
from recsys.spec import Spec, dumps, fingerprints, loads

USERS, ITEMS, TAGS = 40, 30, 8

TEXT = """
name: small
data:
  impressions: log.csv
  keys: {user: user, item: item, request: request}
  split: {kind: fraction, validation: 0.2, test: 0.2}
features:
- {name: user, owner: user, encode: vocabulary}
- {name: item, owner: item, encode: vocabulary}
- {name: price, owner: item, encode: numeric}
- {name: tags, owner: item, encode: {kind: vocabulary, max_length: 3}, separator: ","}
- {name: device, owner: context, encode: vocabulary}
tasks:
- {name: click, label: {column: clicked}}
- {name: conversion, label: {column: bought}, given: click}
model: {dim: 4, shared: [16], towers: [8]}
train: {batch_size: 64, epochs: 2, early_stopping: {patience: 5}}
evaluate: {slices: [device]}
"""

TABLES = {"user": USERS + 2, "item": ITEMS + 2, "tags": TAGS + 2, "device": 4}


def small_spec(**train: Any) -> Spec:
    """The spec, with some settings of `train` changed."""
    spec = loads(TEXT)
    return spec.model_copy(update={"train": spec.train.model_copy(update=train)})


def make_columns(rows: int, seed: int) -> dict[str, pa.Array]:
    """Columns of an examples file: clicks follow user and item tastes, purchases the price."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(99)
    taste, appeal = world.normal(0, 1.5, USERS), world.normal(0, 1.5, ITEMS)
    user, item = rng.integers(0, USERS, rows), rng.integers(0, ITEMS, rows)
    price = (item / ITEMS * 2 - 1).astype(np.float32)
    device = rng.integers(0, 2, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(taste[user] + appeal[item] - 0.5)))
    buy = click & (rng.random(rows) < 1 / (1 + np.exp(2 * price - 0.5)))
    tags = np.stack([item % TAGS + 1, np.where(item % 2, item % 3 + 1, -1), np.full(rows, -1)], 1)
    return {
        "user": pa.array(user + 1, pa.int32()),
        "item": pa.array(item + 1, pa.int32()),
        "price": pa.array(price, pa.float32()),
        "tags": pa.FixedSizeListArray.from_arrays(pa.array(tags.reshape(-1), pa.int32()), 3),
        "device": pa.array(device + 1, pa.int32()),
        "label:click": pa.array(click.astype(np.float32)),
        "label:conversion": pa.array(buy.astype(np.float32)),
        "key:user": pa.array([f"u{u + 1}" for u in user]),
        "key:request": pa.array([f"r{n // 4}" for n in range(rows)]),
        "slice:device": pa.array(np.array(["phone", "desk"])[device]),
    }


def make_features(
    folder: Path, spec: Spec | None = None, *, train: int = 2000, other: int = 400, files: int = 3
) -> Path:
    """Write the folder: `train` rows in several files of small row groups, `other` the rest."""
    spec = spec or small_spec()
    counts = {"train": train, "validation": other, "test": other}
    for seed, (split, rows) in enumerate(counts.items()):
        place = folder / "examples" / split
        place.mkdir(parents=True)
        table = pa.table(make_columns(rows, seed))
        cuts = np.linspace(0, rows, files + 1).astype(int)
        for n, (low, high) in enumerate(pairwise(cuts)):
            part = table.slice(low, high - low)
            pq.write_table(part, place / f"part-{n:05d}.parquet", row_group_size=150)
    make_transform(folder / "transform" / "transform_fn")
    (folder / "spec.yaml").write_text(dumps(spec))
    write_manifest(
        folder,
        "features",
        {"features": fingerprints(spec)["features"]},
        {"spec": spec.name, "rows": counts, "tables": TABLES},
    )
    return folder


def make_transform(folder: Path) -> None:
    """A transform graph of the same columns: `u7` is row 7, as in the examples."""
    import tensorflow as tf

    def number(text: tf.Tensor) -> tf.Tensor:
        digits = tf.strings.regex_replace(text, "^[a-z]+", "")
        return tf.strings.to_number(tf.where(digits == "", "0", digits), tf.int64)

    class Transform(tf.Module):
        @tf.function
        def transform_fn(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            parts = tf.strings.split(raw["tags"], ",").to_tensor("-1", shape=[None, 3])
            return {
                "user": number(raw["user"]),
                "item": number(raw["item"]),
                "price": raw["price"],
                "tags": tf.strings.to_number(parts, tf.int64),
                "device": number(raw["device"]),
            }

    module = Transform()
    text = {name: tf.TensorSpec([None], tf.string) for name in ("user", "item", "tags", "device")}
    module.transform_fn.get_concrete_function({**text, "price": tf.TensorSpec([None], tf.float32)})
    tf.saved_model.save(module, str(folder))
