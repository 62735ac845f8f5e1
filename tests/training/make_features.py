"""A small features folder in the contract's form, drawn from a seeded, learnable process."""

from __future__ import annotations

import tempfile
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

VOCABULARIES = {
    "user": [f"u{n}" for n in range(1, USERS + 1)],
    "item": [f"i{n}" for n in range(1, ITEMS + 1)],
    "tags": [f"{n}" for n in range(1, TAGS + 1)],
    "device": ["d1", "d2"],
}


def table_sizes(vocabularies: dict[str, list[str]]) -> dict[str, int]:
    """Rows of the tables: one for missing values, the tokens, one out of vocabulary."""
    return {name: 1 + len(tokens) + 1 for name, tokens in vocabularies.items()}


TABLES = table_sizes(VOCABULARIES)


def small_spec(space: str = "entire", **train: Any) -> Spec:
    """The spec, with the space of its conversions and some settings of `train` changed."""
    spec = loads(TEXT)
    click, conversion = spec.tasks
    spec = spec.model_copy(
        update={"tasks": (click, conversion.model_copy(update={"space": space}))}
    )
    return spec.model_copy(update={"train": spec.train.model_copy(update=train)})


def make_columns(
    rows: int, seed: int, vocabularies: dict[str, list[str]] = VOCABULARIES
) -> dict[str, pa.Array]:
    """Columns of an examples file: clicks follow user and item tastes, purchases the price.

    The rows are those of `VOCABULARIES`; others give the same tokens other ids.
    """
    rng, world = np.random.default_rng(seed), np.random.default_rng(99)
    taste, appeal = world.normal(0, 1.5, USERS), world.normal(0, 1.5, ITEMS)
    user, item = rng.integers(0, USERS, rows), rng.integers(0, ITEMS, rows)
    price = (item / ITEMS * 2 - 1).astype(np.float32)
    device = rng.integers(0, 2, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(taste[user] + appeal[item] - 0.5)))
    buy = click & (rng.random(rows) < 1 / (1 + np.exp(2 * price - 0.5)))
    tags = np.stack([item % TAGS + 1, np.where(item % 2, item % 3 + 1, -1), np.full(rows, -1)], 1)

    def ids(name: str, numbers: np.ndarray) -> pa.Array:
        tokens = vocabularies[name]
        row = {token: at for at, token in enumerate(tokens, 1)}
        moved = [row.get(token, 1 + len(tokens)) for token in VOCABULARIES[name]]
        return pa.array(np.where(numbers < 0, numbers, np.array(moved)[numbers - 1]), pa.int32())

    return {
        "user": ids("user", user + 1),
        "item": ids("item", item + 1),
        "price": pa.array(price, pa.float32()),
        "tags": pa.FixedSizeListArray.from_arrays(ids("tags", tags.reshape(-1)), 3),
        "device": ids("device", device + 1),
        "label:click": pa.array(click.astype(np.float32)),
        "label:conversion": pa.array(buy.astype(np.float32)),
        "key:user": pa.array([f"u{u + 1}" for u in user]),
        "key:request": pa.array([f"r{n // 4}" for n in range(rows)]),
        "slice:device": pa.array(np.array(["phone", "desk"])[device]),
    }


def make_features(
    folder: Path,
    spec: Spec | None = None,
    *,
    train: int = 2000,
    other: int = 400,
    files: int = 3,
    vocabularies: dict[str, list[str]] = VOCABULARIES,
) -> Path:
    """Write the folder: `train` rows in several files of small row groups, `other` the rest."""
    spec = spec or small_spec()
    counts = {"train": train, "validation": other, "test": other}
    for seed, (split, rows) in enumerate(counts.items()):
        place = folder / "examples" / split
        place.mkdir(parents=True)
        table = pa.table(make_columns(rows, seed, vocabularies))
        cuts = np.linspace(0, rows, files + 1).astype(int)
        for n, (low, high) in enumerate(pairwise(cuts)):
            part = table.slice(low, high - low)
            pq.write_table(part, place / f"part-{n:05d}.parquet", row_group_size=150)
    make_transform(folder / "transform" / "transform_fn", vocabularies)
    (folder / "spec.yaml").write_text(dumps(spec))
    write_manifest(
        folder,
        "features",
        {"features": fingerprints(spec)["features"]},
        {"spec": spec.name, "rows": counts, "tables": table_sizes(vocabularies)},
    )
    return folder


def make_transform(folder: Path, vocabularies: dict[str, list[str]] = VOCABULARIES) -> None:
    """A transform graph of the same columns, with a file for each vocabulary."""
    import tensorflow as tf

    class Transform(tf.Module):
        def __init__(self, files: Path) -> None:
            super().__init__()
            self.tables = {}
            for name, tokens in vocabularies.items():
                path = files / f"vocabulary_{name}"
                path.write_text("".join(f"{token}\n" for token in tokens))
                lines = tf.lookup.TextFileInitializer(
                    str(path),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                )
                self.tables[name] = tf.lookup.StaticHashTable(lines, len(tokens))

        def ids(self, name: str, text: tf.Tensor, missing: int = 0) -> tf.Tensor:
            found = self.tables[name].lookup(text) + 1
            return tf.where(text == "", tf.constant(missing, tf.int64), found)

        @tf.function
        def transform_fn(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            parts = tf.strings.split(raw["tags"], ",").to_tensor("", shape=[None, 3])
            return {
                "user": self.ids("user", raw["user"]),
                "item": self.ids("item", raw["item"]),
                "price": raw["price"],
                "tags": self.ids("tags", parts, missing=-1),
                "device": self.ids("device", raw["device"]),
            }

    with tempfile.TemporaryDirectory() as files:
        module = Transform(Path(files))
        text = {n: tf.TensorSpec([None], tf.string) for n in ("user", "item", "tags", "device")}
        numbers = {"price": tf.TensorSpec([None], tf.float32)}
        module.transform_fn.get_concrete_function({**text, **numbers})
        tf.saved_model.save(module, str(folder))
