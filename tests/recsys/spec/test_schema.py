"""What derives from a spec."""

import numpy as np
import pytest

from recsys.packing import Packing
from recsys.spec import dumps, loads
from recsys.spec.schema import (
    ModelInput,
    RawColumn,
    example_columns,
    feature_inputs,
    model_inputs,
    output_names,
    raw_columns,
    separators,
)

SPEC = loads("""
name: shop
data:
  impressions: log.csv
  keys: {user: u, item: i}
  time: {column: ts, unit: s}
  split: {test: 0.1}
features:
- {name: user, owner: user, column: u, encode: vocabulary}
- {name: item, owner: item, column: i, encode: {kind: hash, buckets: 9, hashes: 2}}
- {name: tags, owner: item, encode: {kind: vocabulary, max_length: 3}}
- {name: price, owner: item, encode: numeric}
- {name: price_bucket, owner: item, column: price, encode: {kind: quantiles, buckets: 4}}
- {name: curve, owner: item, column: price, encode: {kind: piecewise, bins: 5}}
- {name: past, owner: user, encode: {kind: history, of: item, action: click, max_length: 7}}
- {name: rate, owner: item, encode: {kind: counter, by: [i], task: click, as: numeric}}
tasks:
- {name: click, label: {column: c}}
- {name: cart, label: {column: a}, given: click}
- {name: buy, label: {column: b}, given: cart}
""")


def test_raw_columns_are_distinct_and_typed() -> None:
    assert raw_columns(SPEC) == (
        RawColumn("u", "string", "user"),
        RawColumn("i", "string", "item"),
        RawColumn("tags", "string", "item"),
        RawColumn("price", "float32", "item"),
        RawColumn("past", "string", "user", "history"),
        RawColumn("rate", "float32", "item", "counter"),
    )


def test_model_inputs_follow_the_encodings() -> None:
    inputs = {item.name: item for item in model_inputs(SPEC)}
    assert inputs["user"] == ModelInput("user", "id", 1, "user")
    assert inputs["item"] == ModelInput("item", "id", 1, "item", "mean", 9, 2)
    assert inputs["tags"] == ModelInput("tags", "ids", 3, "tags")
    assert inputs["price"] == ModelInput("price", "number", 1, None)
    assert inputs["price_bucket"] == ModelInput("price_bucket", "id", 1, "price_bucket")
    assert inputs["curve"] == ModelInput("curve", "numbers", 5, None)
    assert inputs["past"] == ModelInput("past", "ids", 7, "item", "history", 0, 2)
    assert inputs["rate"] == ModelInput("rate", "number", 1, None)


def test_weights_of_a_list_are_a_column_and_an_input_of_their_own() -> None:
    spec = loads(
        dumps(SPEC)
        .replace("max_length: 3", "max_length: 3\n    weights: shares")
        .replace("- name: tags\n", "- name: tags\n  separator: ';'\n")
    )
    assert raw_columns(spec)[2:4] == (
        RawColumn("tags", "string", "item"),
        RawColumn("shares", "string", "item"),
    )
    assert separators(spec) == {"tags": ";", "shares": ";", "past": ","}
    assert model_inputs(spec)[:-1] == model_inputs(SPEC) == feature_inputs(spec)
    assert model_inputs(spec)[-1] == ModelInput("tags_weights", "numbers", 3, None, weighs="tags")
    assert example_columns(spec)[8] == "tags_weights"


def test_outputs_name_the_product_and_the_conditional() -> None:
    assert output_names(SPEC) == (
        "click", "cart", "cart_given_click", "buy", "buy_given_cart",
    )  # fmt: skip
    assert [task.name for task in SPEC.chain("buy")] == ["click", "cart", "buy"]


def test_packing_puts_single_ids_first_and_loses_nothing() -> None:
    packing = Packing.of(SPEC)
    assert [(f.name, f.start, f.length) for f in packing.ids] == [
        ("user", 0, 1), ("item", 1, 1), ("price_bucket", 2, 1), ("tags", 3, 3), ("past", 6, 7),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    columns = {
        item.name: rng.integers(0, 9, (4, item.length)).astype(np.float32)
        for item in model_inputs(SPEC)
    }
    packed = packing.pack(columns)
    for matrix, fields in (("ids", packing.ids), ("numbers", packing.numbers)):
        for field in fields:
            part = packed[matrix][:, field.start : field.start + field.length]
            np.testing.assert_array_equal(part, columns[field.name])
    tensors = packing.pack_tensors(columns)
    np.testing.assert_array_equal(tensors["ids"], packed["ids"])
    np.testing.assert_array_equal(tensors["numbers"], packed["numbers"])


def test_packing_without_numbers_is_an_empty_matrix() -> None:
    spec = SPEC.model_copy(update={"features": SPEC.features[:1]})
    packed = Packing.of(spec).pack({"user": np.array([1, 2])})
    assert packed["numbers"].shape == (2, 0)
    assert Packing.of(spec).pack_tensors({"user": np.array([1, 2])})["numbers"].shape == (2, 0)


def test_blend_is_even_unless_the_spec_says() -> None:
    assert SPEC.blend() == pytest.approx({"click": 1 / 3, "cart": 1 / 3, "buy": 1 / 3})
