"""Lists cut to what the transform graph reads of them, and counters that count by whole texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import tensorflow as tf

from beam_jobs.transform import _parts
from recsys.spec import Spec, loads
from serving.assemble import Assembler
from serving.columns import list_cuts
from serving.contract import Contract
from serving.store import LocalStore

LISTS = """
name: shop
data: {impressions: log.csv, keys: {user: user, item: item}, split: {test: 0.1},
       time: {column: time, unit: s}}
features:
  - {name: item, owner: item, encode: vocabulary}
  - {name: seen, owner: user, encode: {kind: history, of: item, action: click, max_length: 3}}
  - {name: tags, owner: item, separator: SEP, encode: {kind: vocabulary, max_length: 3}}
tasks: [{name: click, label: {column: click}}]
"""


@pytest.mark.parametrize("separator", ["|", ", ", " ", "- ", "\\", "ab", "\t"])
def test_a_cut_list_means_the_same_to_the_transform_graph(separator: str) -> None:
    spec = loads(LISTS.replace("SEP", orjson.dumps(separator).decode()))
    draw = random.Random(0)
    for name, own in (("tags", separator), ("seen", ",")):
        cut, alphabet = list_cuts(spec)[name], [own, own, *own, " ", "\t", "a", "b"]
        texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 20))) for _ in range(2000)]
        short = [cut(text) for text in texts]
        parts = _parts(tf.constant(texts), spec.feature(name)).numpy().tolist()
        assert _parts(tf.constant(short), spec.feature(name)).numpy().tolist() == parts
        assert all(text.count(own) < 3 for text in short if not set(own) & set(" \t"))
        assert short != texts


def test_lists_that_the_graph_may_split_otherwise_stay_whole() -> None:
    for separator in ("--", " - ", " -"):
        assert list_cuts(loads(LISTS.replace("SEP", f"'{separator}'"))).keys() == {"seen"}


def test_a_list_is_cut_to_the_longest_that_is_read_of_it() -> None:
    twice = """
  - {name: more, owner: item, column: tags, separator: "|", encode: {kind: hash, buckets: 9,
     max_length: 5}}
tasks:"""
    spec = loads(LISTS.replace("SEP", "'|'").replace("\ntasks:", twice))
    cuts = list_cuts(spec)
    assert {name: cut.length for name, cut in cuts.items()} == {"seen": 3, "tags": 5}
    # What has weights stays whole: the graph compares their number with its own.
    weighted = twice.replace("max_length: 5", "max_length: 5, weights: parts")
    text = LISTS.replace("SEP", "'|'").replace("\ntasks:", weighted)
    assert list_cuts(loads(text)).keys() == {"seen"}


def test_a_long_list_is_cut_behind_its_counters(
    tmp_path: Path, spec: Spec, write_features: Callable[..., Path]
) -> None:
    tags = "|".join(f"t{n}" for n in range(1000))
    encode = spec.feature("ctr").encode.model_copy(update={"by": ("tags",)})
    ctr = spec.feature("ctr").model_copy(update={"encode": encode})
    features = tuple(ctr if each.name == "ctr" else each for each in spec.features)
    spec = spec.model_copy(update={"features": features})
    items = {"key:owner": ["i1"], "item_id": ["i1"], "price": [1.0], "tags": [tags]}
    seen = ",".join(f"i{n}" for n in range(1000))
    users = {
        "key:owner": ["u1"],
        "user_id": ["u1"],
        "country": ["de"],
        "activity": [1.0],
        "seen": [seen],
    }
    counter = {"tags": [tags, "|".join(["x"] * 9)], "key:value": [5.0, 6.0]}
    folder = write_features(
        tmp_path / "features", spec, item=items, user=users, **{"counter-ctr": counter}
    )
    contract = Contract(spec)
    assemble = Assembler(contract, LocalStore(folder))
    inline = {"id": "i2", "features": {"tags": ["x"] * 9}}
    body = {"user": {"id": "u1"}, "candidates": ["i1", inline]}
    columns = assemble(contract.parse(orjson.dumps(body))).columns
    assert columns["tags"].tolist() == ["t0|t1|t2|t3", "x|x|x|x"]
    assert columns["ctr"].tolist() == [5.0, 6.0]
    length = spec.feature("seen").encode.max_length
    assert columns["seen"][1] == ",".join(seen.split(",")[:length])
    body = {"user": {"id": "u1", "features": {"seen": seen[::-1]}}, "candidates": ["i1"]}
    columns = assemble(contract.parse(orjson.dumps(body))).columns
    assert columns["seen"][0] == ",".join(seen[::-1].split(",")[:length])
