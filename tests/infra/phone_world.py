"""A small shop with a feature of every encoding and awkward tokens, for tests of conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from recsys.spec import Spec, loads

TEXT = """
name: phone
data:
  impressions: log.csv
  keys: {user: user, item: item}
  time: {column: at, unit: s}
  split: {train_to: 2026-03-03, validation_to: 2026-03-04}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: item, owner: item, encode: {kind: vocabulary, top_k: 8, oov_buckets: 3}}
  - {name: kind, owner: item, encode: {kind: hash, buckets: 7}}
  - {name: tags, owner: item, separator: "|", table: tag,
     encode: {kind: vocabulary, max_length: 2, weights: tag_weights}}
  - {name: words, owner: item, separator: " ",
     encode: {kind: hash, buckets: 20, max_length: 3, combiner: sum, weights: word_weights}}
  - {name: price, owner: item, encode: {kind: quantiles, buckets: 4}}
  - {name: price_scaled, owner: item, column: price, encode: numeric}
  - {name: price_log, owner: item, column: price, encode: {kind: numeric, scale: log_zscore}}
  - {name: price_plain, owner: item, column: price, encode: {kind: numeric, scale: none}}
  - {name: price_bins, owner: item, column: price, encode: {kind: piecewise, bins: 5}}
  - {name: size, owner: item, column: Size (cm), encode: vocabulary}
  - {name: size_number, owner: item, column: Size (cm), encode: numeric}
  - {name: none_scaled, owner: item, column: none, encode: numeric}
  - {name: none_buckets, owner: item, column: none, encode: {kind: quantiles, buckets: 3}}
  - {name: none_bins, owner: item, column: none, encode: {kind: piecewise, bins: 3}}
  - {name: place, owner: context, encode: {kind: vocabulary, top_k: 3}}
  - {name: seen, owner: user, encode: {kind: history, of: item, max_length: 6}}
  - {name: rate, owner: item, encode: {kind: counter, by: [item], task: click}}
tasks:
  - {name: click, label: {column: click}}
  - {name: buy, label: {column: buy}, given: click}
  - {name: own, label: {column: buy}, given: click, space: joint}
"""

USERS = ["ü ö", 'quo"te', "back\\slash", "sep\u2028arator", "a,b", " edge ", "plain", "7", "😀"]
TAGS = ["", "x", "x|y", "|z|| x ", "y|z|x", "w\t|w"]
TAG_WEIGHTS = ["", "0.5", "2|1e1", "x| -3|0", "1|", "0.25|0.75"]
WORD_WEIGHTS = ["", "1.5 0.5", "", "2", ".5 3 4"]
WORDS = ["", "red shoe", "a  very long name that has more parts", "blue", "schuhgröße 42"]


def phone_spec(model: str = "", train: str = "") -> Spec:
    """The spec with these sections, in YAML's flow form."""
    return loads(
        TEXT
        + f"model: {{{model or 'dim: 4, shared: [16], towers: [8]'}}}\n"
        + f"train: {{batch_size: 64, epochs: 1, {train or 'max_steps: 20'}}}\n"
    )


def make_log(folder: Path) -> pd.DataFrame:
    """Write `log.csv`: 800 impressions over five days, clicks by user, purchases by price."""
    rng = np.random.default_rng(3)
    n = 800
    user, item = rng.integers(0, len(USERS), n), rng.integers(0, 12, n)
    price = np.where(item % 5 == 0, np.nan, np.round(np.exp(item / 3), 2))
    click = rng.random(n) < np.where(user % 2, 0.7, 0.3)
    log = pd.DataFrame(
        {
            "user": np.array(USERS, object)[user],
            "item": [f"item {i}" for i in item],
            "kind": np.array(["", "shoe", "a kind with a name of many bytes, ÄÖÜ"], object)[
                item % 3
            ],
            "tags": np.array(TAGS, object)[item % len(TAGS)],
            "words": np.array(WORDS, object)[item % len(WORDS)],
            "tag_weights": np.array(TAG_WEIGHTS, object)[item % len(TAG_WEIGHTS)],
            "word_weights": np.array(WORD_WEIGHTS, object)[item % len(WORD_WEIGHTS)],
            "price": price,
            "Size (cm)": np.array(["L", "40", " 41.5", "", "1e2"], object)[item % 5],
            "none": np.nan,
            "place": 1 + np.arange(n) % 5,
            "at": 1772323200 + np.sort(rng.integers(0, 5 * 86400, n)),
            "click": click.astype(int),
            "buy": (click & (rng.random(n) < np.where(item > 6, 0.6, 0.2))).astype(int),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log.to_csv(folder / "log.csv", index=False)
    return log
