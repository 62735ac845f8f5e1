"""The service over real HTTP: rankings by hand, bad input, limits and reports."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from recsys.errors import UserError
from recsys.spec import Spec
from recsys.spec.change import change
from serving import client
from serving.engine import running
from serving.example import example_request


@pytest.fixture(scope="module")
def url(models: Path, features: Path) -> Iterator[str]:
    with running(models, features) as url:
        yield url


def post(url: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/v1/rank", content=content, timeout=30, **options)


def measured(url: str) -> dict[str, float]:
    """Samples of /metrics: name{label value} → value."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def check(item: dict[str, Any], expected: dict[str, float]) -> None:
    assert item["score"] == pytest.approx(expected["score"], rel=1e-5)
    assert item["probabilities"] == pytest.approx(
        {name: value for name, value in expected.items() if name != "score"}, rel=1e-5
    )


def test_a_known_user_and_known_items(url: str, by_hand: Callable[..., dict[str, float]]) -> None:
    answer = post(
        url,
        {
            "user": {"id": "u1"},
            "context": {"device": "tv"},
            "candidates": ["i1", "i2", "i3", 40],
        },
    ).json()
    user: dict[str, Any] = {"country": "de", "activity": 1.0, "seen": 2, "device": "tv"}
    expected = {
        "i1": by_hand(item="i1", price=5, tags=2, ctr=2, **user),
        "i2": by_hand(item="i2", price=1, tags=1, ctr=0, **user),
        "i3": by_hand(item="i3", price=3, tags=0, ctr=1, **user),
        40: by_hand(item="40", price=1, tags=1, ctr=1, **user),
    }
    # Sums of the click formula: 15, 8, 10 and 9.
    assert [item["id"] for item in answer["items"]] == ["i2", 40, "i3", "i1"]
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    for item in answer["items"]:
        check(item, expected[item["id"]])
        assert item["known"]
    assert answer["model_version"] == 1 and answer["user"] == {"known": True}
    assert answer["unknown_items"] == 0 and answer["duplicates"] == 0
    assert answer["took_ms"] > 0


def test_inline_features_stand_above_the_tables(
    url: str, by_hand: Callable[..., dict[str, float]]
) -> None:
    answer = post(
        url,
        {
            "user": {
                "id": "u1",
                "features": {"country": "norway", "seen": ["i1", "i2", "i3"], "activity": None},
            },
            "context": {"device": "tv", "shelf": "top"},
            "candidates": [
                {"id": "i2", "features": {"price": 2.5, "tags": ["x", "y", "z"]}},
                {"id": "i1", "features": {"ctr": 0.25}},
            ],
        },
    ).json()
    user: dict[str, Any] = {"country": "norway", "activity": 2, "seen": 3, "device": "tv"}
    by_id = {item["id"]: item for item in answer["items"]}
    # The counter of i2 on the top shelf is 7, by the context's column that no feature reads.
    check(by_id["i2"], by_hand(item="i2", price=2.5, tags=3, ctr=7, **user))
    check(by_id["i1"], by_hand(item="i1", price=5, tags=2, ctr=0.25, **user))


def test_unknown_ids_are_ranked_by_defaults_and_the_answer_says_so(
    url: str, by_hand: Callable[..., dict[str, float]]
) -> None:
    answer = post(url, {"user": {"id": "nobody"}, "candidates": ["i2", "new"]}).json()
    assert answer["user"] == {"known": False} and answer["unknown_items"] == 1
    by_id = {item["id"]: item for item in answer["items"]}
    assert by_id["i2"]["known"] and not by_id["new"]["known"]
    # The id itself still reaches the model: its length is in the sum.
    check(by_id["new"], by_hand(item="new"))
    check(by_id["i2"], by_hand(item="i2", price=1, tags=1))


def test_a_user_by_features_alone(url: str, by_hand: Callable[..., dict[str, float]]) -> None:
    answer = post(url, {"user": {"features": {"activity": 0.5}}, "candidates": ["i3"]}).json()
    assert answer["user"] == {"known": False}
    check(answer["items"][0], by_hand(item="i3", activity=0.5))


def test_nan_features_are_missing_ones(url: str, by_hand: Callable[..., dict[str, float]]) -> None:
    answer = post(
        url,
        b'{"user": {"features": {"activity": NaN}}, "candidates": '
        b'[{"id": "i1", "features": {"price": NaN, "tags": null}}]}',
    ).json()
    check(answer["items"][0], by_hand(item="i1"))


def test_top_k_ties_and_repeats(url: str) -> None:
    body = {"user": {"id": "u1"}, "candidates": ["bb", "aa", "i2", "aa", "cc"], "top_k": 3}
    answer = post(url, body).json()
    # aa, bb and cc are equal: they keep the order in which they were sent.
    assert [item["id"] for item in answer["items"]] == ["i2", "bb", "aa"]
    assert answer["duplicates"] == 1 and answer["unknown_items"] == 3
    assert len(post(url, {**body, "top_k": 99}).json()["items"]) == 4


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"", 400, "no JSON"),
        ({"user": {"id": 1}, "candidates": []}, 422, "no candidates"),
        ({"user": {"id": 1}, "candidates": list(range(10_000))}, 422, "too many candidates"),
        ({"user": {"id": 1}, "candidates": [1], "x": 1}, 422, "unknown here"),
        ({"user": {"id": 1}, "candidates": "i1"}, 422, "list is needed"),
        (b" " * 100_001, 413, "too long"),
    ],
)
def test_bad_requests_are_answered_in_words(url: str, body: Any, status: int, message: str) -> None:
    answer = post(url, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() >= {"message", "expected", "found", "where", "fix"}
    assert message in error["message"]


def test_a_body_without_a_length_is_cut_at_the_limit(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(110):
            yield b" " * 1000

    answer = httpx.post(f"{url}/v1/rank", content=chunks(), timeout=30)
    assert answer.status_code == 413 and "too long" in answer.json()["error"]["message"]
    fine = json.dumps({"user": {"id": "u1"}, "candidates": ["i1"]}).encode()
    assert (
        httpx.post(f"{url}/v1/rank", content=iter([fine[:9], fine[9:]]), timeout=30).status_code
        == 200
    )


def test_other_paths_and_methods_are_answered_in_the_same_form(url: str) -> None:
    for answer, status in (
        (httpx.get(f"{url}/nowhere", timeout=30), 404),
        (httpx.get(f"{url}/v1/rank", timeout=30), 405),
    ):
        assert answer.status_code == status
        assert "GET" in answer.json()["error"]["message"]


def test_reports(url: str, spec: Spec) -> None:
    assert httpx.get(f"{url}/healthz", timeout=30).json() == {"status": "alive"}
    assert httpx.get(f"{url}/readyz", timeout=30).json() == {"status": "ready", "model_version": 1}
    for path in ("/healthz", "/readyz"):
        assert httpx.head(url + path, timeout=30).status_code == 200
    report = httpx.get(f"{url}/v1/models", timeout=30).json()
    assert report["model_version"] == 1 and report["manifest"]["kind"] == "model"
    assert report["features"]["items"] == 4 and report["refused"] == {}
    document = httpx.get(f"{url}/openapi.json", timeout=30).json()
    schemas = document["components"]["schemas"]
    assert set(schemas["UserFeatures"]["properties"]) == {"user_id", "country", "activity", "seen"}
    assert set(schemas["Context"]["properties"]) == {"device", "shelf"}
    assert httpx.get(f"{url}/docs", timeout=30).status_code == 200
    # The example that the document shows is one that the service takes.
    assert post(url, schemas["RankRequest"]["example"]).status_code == 200


def test_metrics_count_what_happened(url: str) -> None:
    before = measured(url)
    post(url, {"user": {"id": "nobody"}, "candidates": ["i1", "new", "newer"]})
    post(url, b"{")
    after = measured(url)

    def rise(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert rise("recsys_requests_total 200") == 1
    assert rise("recsys_requests_total 400") == 1
    assert rise("recsys_candidates_sum") == 3
    assert rise("recsys_unknown_users_total") == 1
    assert rise("recsys_unknown_items_total") == 2
    assert rise("recsys_request_seconds_count") == 2
    assert after["recsys_model_version"] == 1


def test_the_client_and_the_example(url: str, spec: Spec, features: Path) -> None:
    request = example_request(spec, features, n=3)
    assert request == {
        "user": {"id": "u1"},
        "context": {"device": "tv", "shelf": None},
        "candidates": ["i1", "i2", "i3"],
        "top_k": None,
    }
    answer = client.rank(request, url)
    table = client.table(answer)
    assert table.row_count == 3
    assert [column.header for column in table.columns] == [
        "rank",
        "item",
        "score",
        "click",
        "conversion",
        "conversion_given_click",
    ]
    with pytest.raises(UserError, match="no candidates") as caught:
        client.rank({**request, "candidates": []}, url)
    assert caught.value.where == "candidates"


def test_ids_are_shown_as_they_are(url: str) -> None:
    ids = ["[bold]i1[/bold]", "[/]", "[red]"]
    table = client.table(client.rank({"user": {"id": "u1"}, "candidates": ids}, url))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    assert all(f"{identity} (unknown)" in shown.get() for identity in ids)


def test_the_client_before_another_service() -> None:
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    with pytest.raises(UserError, match="no rank service") as caught:
        client.rank({}, f"http://127.0.0.1:{other.server_port}")
    assert "HTTP 501" in caught.value.found
    other.shutdown()
    other.server_close()


def test_the_client_without_a_service() -> None:
    # Bound, so that nothing else is there, and not listened on.
    with socket.socket() as none, pytest.raises(UserError, match="cannot be reached") as caught:
        none.bind(("127.0.0.1", 0))
        client.rank({}, f"http://127.0.0.1:{none.getsockname()[1]}")
    assert "recsys serve" in caught.value.fix
    with pytest.raises(UserError, match="no URL"):
        client.rank({}, "localhost:8501")


def test_numbers_of_a_regression_are_no_probabilities(
    tmp_path: Path,
    spec: Spec,
    publish: Callable[..., Path],
    write_features: Callable[..., Path],
    by_hand: Callable[..., dict[str, float]],
) -> None:
    spent = change(spec, ["tasks.conversion.loss={kind: huber}"])
    models = publish(tmp_path / "models", 1, by=spent)
    with running(models, write_features(tmp_path / "features", spent)) as url:
        answer = post(url, {"user": {"id": "u1"}, "candidates": ["i1", "i2"]}).json()
        schemas = httpx.get(f"{url}/openapi.json", timeout=30).json()["components"]["schemas"]
    expected = by_hand(item="i1", country="de", activity=1.0, price=5, tags=2, seen=2)
    item = next(item for item in answer["items"] if item["id"] == "i1")
    assert item["probabilities"] == pytest.approx({"click": expected["click"]}, rel=1e-5)
    names = ("conversion", "conversion_given_click")
    assert item["values"] == pytest.approx({name: expected[name] for name in names}, rel=1e-5)
    jsonschema.validate(answer, schemas["RankAnswer"])
    assert [column.header for column in client.table(answer).columns][3:] == ["click", *names]
