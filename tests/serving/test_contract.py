"""Request bodies in: canonical values out, or faults with their places."""

from __future__ import annotations

import json
import math
import tracemalloc

import jsonschema
import orjson
import pyarrow as pa
import pytest

from recsys.spec import Spec, loads
from serving.body import parse_json
from serving.columns import MAX_TEXT
from serving.contract import Contract
from serving.faults import SHOWN_FAULTS, RequestError


@pytest.fixture(scope="module")
def contract(spec: Spec) -> Contract:
    return Contract(spec)


def refusal(contract: Contract, body: object) -> RequestError:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as caught:
        contract.parse(text)
    return caught.value


def test_a_full_request(contract: Contract) -> None:
    request = contract.parse(
        json.dumps(
            {
                "user": {"id": 7, "features": {"country": "fr", "seen": ["i1", 2], "activity": 3}},
                "context": {"device": "tv", "shelf": "top"},
                "candidates": [
                    40,
                    {"id": "i1", "features": {"price": 2, "tags": ["a", "b"]}},
                    "i2",
                ],
                "top_k": 2,
            }
        ).encode()
    )
    assert request.user_key == "7"
    assert request.user == {"country": "fr", "activity": 3.0, "seen": "i1,2"}
    assert request.context == {"device": "tv", "shelf": "top"}
    assert request.ids == [40, "i1", "i2"]
    assert request.keys == ["40", "i1", "i2"]
    assert {
        name: (at.tolist(), values.tolist()) for name, (at, values) in request.items.items()
    } == {"price": ([1], [2.0]), "tags": ([1], ["a|b"])}
    assert request.top_k == 2


def test_a_candidate_that_comes_twice_is_ranked_once_with_its_first_features(
    contract: Contract,
) -> None:
    request = contract.parse(
        json.dumps(
            {
                "user": {"id": "u1"},
                "candidates": [
                    {"id": 40, "features": {"price": 1}},
                    "i1",
                    "40",
                    {"id": 40, "features": {"price": 9}},
                ],
            }
        ).encode()
    )
    assert request.ids == [40, "i1"]
    assert request.duplicates == 2
    assert request.items["price"][1].tolist() == [1.0]


def test_an_id_is_looked_up_alike_however_it_is_written(contract: Contract) -> None:
    for identity in (b"124", b"124.0", b'"124"', b'"124.0"', b"1.24e2"):
        body = b'{"user": {"id": %s}, "candidates": [7.0, {"id": "8.0"}, "9.0", "7", "a.0"]}'
        request = contract.parse(body % identity)
        assert request.user_key == "124"
        assert request.keys == ["7", "8", "9", "a.0"] and request.duplicates == 1
        assert request.ids == [7.0, "8.0", "9.0", "a.0"]  # the answer's, as the caller wrote them
    request = contract.parse(b'{"user": {"id": "u"}, "candidates": ["True", 7.0, "9.0"]}')
    assert request.keys == ["1", "7", "9"] and request.ids == ["True", 7.0, "9.0"]


def test_numbers_of_any_size_are_taken(contract: Contract) -> None:
    values = {"price": 2**53 + 1}, {"price": 2**64 - 1}, {"price": "NA"}, {"price": "?"}
    candidates = [{"id": place, "features": given} for place, given in enumerate(values)]
    request = contract.parse(orjson.dumps({**GOOD, "candidates": candidates}))
    found = request.items["price"][1].tolist()
    assert found[:2] == [2.0**53, 2.0**64] and all(map(math.isnan, found[2:]))


def test_null_and_nan_are_missing(contract: Contract) -> None:
    request = contract.parse(
        b'{"user": {"features": {"activity": NaN, "country": null}}, "candidates": '
        b'[{"id": "i1", "features": {"price": null, "tags": NaN}}], "top_k": null}'
    )
    assert request.user_key is None
    assert math.isnan(request.user["activity"]) and request.user["country"] == ""
    assert math.isnan(request.items["price"][1][0]) and request.items["tags"][1][0] == ""


GOOD = {"user": {"id": "u1"}, "candidates": ["i1"]}


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"candidates": []}, "candidates", "no candidates"),
        ({"candidates": ["i1"] * 301}, "candidates", "too many candidates"),
        ({"candidates": None}, "candidates", "list is needed"),
        ({"candidates": {"id": 1}}, "candidates", "list is needed"),
        ({"candidates": [None]}, "candidates[0].id", "id does not fit"),
        ({"candidates": ["i1", ""]}, "candidates[1].id", "id does not fit"),
        ({"candidates": [True]}, "candidates[0].id", "id does not fit"),
        ({"candidates": [1.5]}, "candidates[0].id", "id does not fit"),
        ({"candidates": [["i1"]]}, "candidates[0].id", "id does not fit"),
        ({"candidates": ["i1", 2**64]}, "candidates[1].id", "beyond what a number holds"),
        ({"candidates": [-1e300]}, "candidates[0].id", "beyond what a number holds"),
        ({"user": {"id": -(2**63) - 1}}, "user.id", "beyond what a number holds"),
        ({"user": {"id": float(2**53)}}, "user.id", "beyond what a number holds"),
        ({"candidates": [{}]}, "candidates[0].id", "is missing"),
        ({"candidates": [{"id": 1, "price": 2}]}, "candidates[0].price", "unknown here"),
        (
            {"candidates": ["i1", {"id": 2, "features": {"price": "dear"}}]},
            "candidates[1].features.price",
            "`price` does not fit",
        ),
        (
            {"candidates": [{"id": 1, "features": {"price": [1]}}]},
            "candidates[0].features.price",
            "`price` does not fit",
        ),
        (
            {"candidates": [{"id": 1, "features": {"price": {"eur": 1}}}]},
            "candidates[0].features.price",
            "`price` does not fit",
        ),
        (
            {"candidates": [{"id": 1, "features": {"tags": [["a"]]}}]},
            "candidates[0].features.tags",
            "`tags` does not fit",
        ),
        ({"candidates": [{"id": 1, "features": 3}]}, "candidates[0].features", "no JSON object"),
        ({"user": None}, "user", "no JSON object"),
        ({"user": {}}, "user", "not given"),
        ({"user": {"id": {}}}, "user.id", "id does not fit"),
        (
            {"user": {"id": "u1", "features": {"contry": "de"}}},
            "user.features.contry",
            "unknown here",
        ),
        (
            {"user": {"id": "u1", "features": {"country": ["de"]}}},
            "user.features.country",
            "`country` does not fit",
        ),
        (
            {"user": {"id": "u1", "features": {"activity": math.inf}}},
            "user.features.activity",
            "`activity` does not fit",
        ),
        ({"context": {"device": {"os": "x"}}}, "context.device", "`device` does not fit"),
        ({"context": []}, "context", "no JSON object"),
        ({"top_k": 0}, "top_k", "too small"),
        ({"top_k": "3"}, "top_k", "whole number"),
        ({"top_k": True}, "top_k", "whole number"),
        ({"topk": 3}, "topk", "unknown here"),
    ],
)
def test_each_fault_is_named_with_its_place(
    contract: Contract, change: dict[str, object], where: str, message: str
) -> None:
    error = refusal(contract, {**GOOD, **change})
    assert error.status == 422
    assert error.where == where
    assert message in error.message


def test_what_is_left_out_is_named(contract: Contract) -> None:
    assert refusal(contract, {"candidates": ["i1"]}).where == "user"
    assert refusal(contract, {"user": {"id": 1}}).where == "candidates"
    assert refusal(contract, [1]).found == "[1]"


def test_all_faults_come_at_once(contract: Contract) -> None:
    body = refusal(contract, {"user": {"id": []}, "candidates": [None], "top_k": -1}).body()
    assert body["error"]["message"].startswith("The request has 3 faults; the first: ")
    assert [fault["where"] for fault in body["error"]["faults"]] == [
        "user.id",
        "candidates[0].id",
        "top_k",
    ]


def test_a_key_in_the_wrong_place_is_told_its_home(contract: Contract) -> None:
    error = refusal(contract, {**GOOD, "user": {"id": 1, "features": {"price": 3}}})
    assert error.fix == "`price` belongs into candidates[].features."
    error = refusal(contract, {**GOOD, "context": {"devise": "tv"}})
    assert error.fix == "Did you mean `device`?"


def test_ids_of_64_bits_are_exact(contract: Contract) -> None:
    ids = [2**64 - 1, 2**64 - 2, -(2**63), 2.0**53 - 1]
    request = contract.parse(orjson.dumps({"user": {"id": 2**63}, "candidates": ids}))
    assert request.ids == ids and request.duplicates == 0 and request.user_key == str(2**63)
    # As it is beside a NaN, which another parser reads.
    for beside in (b"1.0", b"NaN"):
        body = b'{"user": {"features": {"activity": %s}}, "candidates": [%d]}' % (beside, 2**64)
        assert refusal(contract, body).fix == "Send it as text."


def test_all_faults_are_counted_and_few_are_shown(contract: Contract) -> None:
    misspelt = {f"price{n}": 1 for n in range(20)}
    unfit = {"price": "dear", "tags": {}}
    for features, count in ((misspelt, 6000), (unfit, 600)):
        candidates = [{"id": n, "features": features} for n in range(300)]
        error = refusal(contract, {**GOOD, "candidates": candidates})
        assert error.message.startswith(f"The request has {count} faults; the first: ")
        assert len(error.faults) == SHOWN_FAULTS


def test_unknown_keys_beyond_those_shown_are_counted_without_a_record_each(
    contract: Contract,
) -> None:
    many = {f"k{n}": 0 for n in range(30_000)}
    bodies = (
        {**GOOD, "context": many},
        {**GOOD, **many},
        {**GOOD, "user": {"id": None, "features": many}},
        {**GOOD, "candidates": [{"id": "i1", "features": many}, {"id": "i2", **many}]},
    )
    for body in bodies:
        text = json.dumps(body).encode()
        parse_json(text)
        tracemalloc.start()
        error = refusal(contract, text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        count = 60_000 if len(body["candidates"]) == 2 else 30_000
        assert error.message.startswith(f"The request has {count} faults; the first: `k0`")
        assert len(error.faults) == SHOWN_FAULTS
        # The body itself takes 5 MB, and a record of each fault would take 20 MB more.
        assert peak < 12_000_000 * count / 30_000
    # Faults of other kinds are told as before, in their places.
    error = refusal(contract, {"user": {"id": "u1", **many}, "candidates": [None], "top_k": 0})
    assert error.message.startswith("The request has 30002 faults; the first: `k0`")


def test_objects_where_a_value_belongs_take_no_memory_of_arrow(contract: Contract) -> None:
    """Arrow would make one struct of all their keys: rows times keys."""
    objects = [{f"k{n}": 0} for n in range(3000)]
    candidates = [{"id": n, "features": {"price": objects[n]}} for n in range(300)]
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        listed = {"id": 1, "features": {"tags": objects}}
        assert refusal(contract, {**GOOD, "candidates": [listed]}).where.endswith("tags")
        error = refusal(contract, {**GOOD, "candidates": candidates})
    finally:
        pa.set_memory_pool(before)
    assert error.message.startswith("The request has 300 faults; the first: The value of `price`")
    assert pool.max_memory() < 1_000_000


def test_texts_that_the_graph_would_read_for_seconds_are_refused(contract: Contract) -> None:
    fits, long = "x" * MAX_TEXT, "x" * (MAX_TEXT + 1)

    def body(text: str) -> list[tuple[str, object]]:
        parts = {"tags": ["a", text]}, {"tags": f"a|{text}|b"}
        return [
            ("user.id", {**GOOD, "user": {"id": text}}),
            ("user.features.country", {**GOOD, "user": {"features": {"country": text}}}),
            ("context.shelf", {**GOOD, "context": {"shelf": text}}),
            ("candidates[0].id", {**GOOD, "candidates": [text]}),
            *(
                ("candidates[0].features.tags", {**GOOD, "candidates": [{"id": 1, "features": f}]})
                for f in parts
            ),
        ]

    for _, good in body(fits):
        contract.parse(json.dumps(good).encode())
    for where, bad in body(long):
        error = refusal(contract, bad)
        assert (error.status, error.where) == (422, where) and "too long" in error.message
        assert f"at most {MAX_TEXT} characters" in error.expected
    error = refusal(contract, {**GOOD, "context": {"device": "x" * 5000}})
    assert error.found == "5000 characters"
    # A list of short parts may be as long as the body.
    many = {"features": {"seen": ",".join(["i1"] * 5000)}}
    contract.parse(json.dumps({**GOOD, "user": many}).encode())


def test_what_is_long_or_deep_is_shown_short(contract: Contract) -> None:
    error = refusal(contract, {**GOOD, "user": {"id": 1, "features": {"k" * 50_000: 1}}})
    assert error.status == 422 and len(str(error)) < 1000
    deep = b"[" * 1000 + b"]" * 1000
    for body, where in (
        (b'{"user": {"id": %s}, "candidates": [1]}', "user.id"),
        (b'{"user": {"id": 1, "features": {"country": %s}}, "candidates": [1]}', "country"),
        (b'{"user": {"id": 1, "features": {"seen": %s}}, "candidates": [1]}', "seen"),
        (b'{"user": {"id": 1}, "candidates": [{"id": 1, "features": {"tags": %s}}]}', "tags"),
        (b'{"user": {"id": 1}, "candidates": [1], "top_k": %s}', "top_k"),
        (b'{"user": {"id": 1}, "candidates": [1], "more": %s}', "more"),
    ):
        error = refusal(contract, body % deep)
        assert error.status == 422 and where in error.where
        # Python 3.12 writes what 3.11 finds too deep.
        short = error.found.startswith("[[[") and len(error.found) <= 80
        assert short or error.found in ("a deeply nested value", "more")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "line 1 column 1 (character 0)"),
        (b'{"user": ', "line 1 column 10 (character 9)"),
        (b'{"user": 1,}', "line 1 column 11 (character 10)"),
        (b'{"a": NaN, ', "line 1 column 12 (character 11)"),
        (b'{"a": "\xff"}', None),
        (b'{"a": "\\ud800"}', None),
        (b'{"a": "\\ud800", "b": NaN}', None),
        (b"[" * 100_000, None),
        (b"not json", "line 1 column 1 (character 0)"),
    ],
)
def test_malformed_json_is_told_where(contract: Contract, body: bytes, place: str | None) -> None:
    error = refusal(contract, body)
    assert error.status == 400
    assert error.where.startswith("line ") and (place is None or place in error.where)


def test_json_constants() -> None:
    assert parse_json(b"[Infinity, -Infinity]") == [math.inf, -math.inf]
    assert math.isnan(parse_json(b"[NaN]")[0])


COMPUTED = """
name: shop
data:
  impressions: {path: rows.csv}
  keys: {user: user, item: item}
  time: {column: time, unit: s}
  split: {train_to: 2026-01-08, validation_to: 2026-01-09}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: item, owner: item, encode: vocabulary}
  - {name: device, owner: context, encode: vocabulary}
  - {name: past, owner: user, encode: {kind: history, of: item}}
  - {name: item_rate, owner: item, encode: {kind: counter, by: [item], task: click}}
  - {name: pair_rate, owner: context, encode: {kind: counter, by: [user, shelf], task: click}}
tasks:
  - {name: click, label: {column: click}}
"""


def test_what_the_feature_job_computes_is_not_asked_for() -> None:
    contract = Contract(loads(COMPUTED))
    # Sent, these placeholders would stand above what the tables hold.
    assert contract.example() == {
        "user": {"id": "u1"},
        "context": {"device": "a", "shelf": "a"},
        "candidates": ["i1", {"id": "i2", "features": {}}],
        "top_k": 2,
    }
    parsed = contract.parse(json.dumps(contract.example()).encode())
    assert not parsed.user and not parsed.items
    body = {"user": {"id": 1}, "context": {"plac": 1}, "candidates": [1]}
    (fault,) = refusal(contract, body).faults
    assert fault.expected == "one of device, shelf"
    body = {"user": {"id": 1, "features": {"x": 1}}, "candidates": [1]}
    assert refusal(contract, body).faults[0].expected == "one of user"


def test_what_the_feature_job_computes_may_be_sent_and_the_schema_says_so() -> None:
    contract = Contract(loads(COMPUTED))
    body = {"user": {"id": 1, "features": {"past": ["i1"]}}, "context": {"pair_rate": 0.5},
            "candidates": [{"id": 1, "features": {"item_rate": 2}}]}  # fmt: skip
    request = contract.parse(json.dumps(body).encode())
    assert request.context == {"pair_rate": 0.5} and request.user == {"past": "i1"}
    jsonschema.validate(body, contract.request_schema())
    told = {
        name: column.get("description", "")
        for record in contract.request_schema()["$defs"].values()
        for name, column in record["properties"].items()
    }
    for name, column in told.items():
        computed = name in ("past", "item_rate", "pair_rate")
        assert ("send only to override" in column) == computed, name


def test_the_schema_takes_what_the_parser_takes(contract: Contract) -> None:
    schema = contract.request_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for body in (contract.example(), GOOD, {**GOOD, "context": None, "top_k": 4}):
        jsonschema.validate(body, schema)
        contract.parse(orjson.dumps(body))
    for body in (
        {**GOOD, "candidates": []},
        {**GOOD, "x": 1},
        {**GOOD, "candidates": [1.5]},
        {**GOOD, "top_k": 0},
        {"user": {"id": 1, "features": {"price": 1}}, "candidates": [1]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body, schema)
        refusal(contract, body)
