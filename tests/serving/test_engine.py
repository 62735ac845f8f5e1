"""The service as a process of its own: ports, signals, limits, and both engines alike."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from recsys.errors import UserError
from recsys.spec import Spec
from serving.engine import listen, running, serve

pytestmark = pytest.mark.long

BODY = {
    "user": {"id": "u1"},
    "context": {"device": "tv"},
    "candidates": ["i1", "i2", "i3", "new", 40],
    "top_k": 4,
}

PROGRAM = """
import sys
from serving import serve
serve(sys.argv[1], sys.argv[2], port=0, engine=sys.argv[3], replicas=int(sys.argv[4]),
      ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@contextmanager
def process(
    models: Path, features: Path, engine: str, replicas: int = 1
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The service in a process, once it answers; its URL and the process."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(models), str(features), engine, str(replicas)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    lines: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None and child.stderr is not None

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line.strip() or " ")
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    try:
        # Ray may say something of its own before.
        while not (url := lines.get(timeout=240)).startswith("http"):
            assert url, child.stderr.read()
        yield url, child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            raise


def told(answer: httpx.Response) -> dict[str, object]:
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in answer.json().items() if name != "took_ms"}


def test_local_ends_well_on_sigterm(models: Path, features: Path) -> None:
    with process(models, features, "local") as (url, child):
        assert told(httpx.post(f"{url}/v1/rank", json=BODY, timeout=30))["model_version"] == 1
    assert child.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", timeout=30)


def test_both_engines_answer_the_same(models: Path, features: Path) -> None:
    with (
        running(models, features) as local,
        process(models, features, "ray", replicas=2) as (url, child),
    ):
        # A replica counts its own requests: once one has counted fewer than were answered, so
        # has the other. The newest may not be counted yet.
        for sent in range(1, 1000):
            assert told(httpx.post(f"{url}/v1/rank", json=BODY, timeout=30))["model_version"] == 1
            report = httpx.get(f"{url}/metrics", timeout=30).text
            counted = re.search(r'^recsys_requests_total{status="200"} (\S+)', report, re.M)
            if (float(counted[1]) if counted else 0.0) < sent - 1:
                break
        else:
            raise AssertionError("one replica has answered every request")
        ours = told(httpx.post(f"{local}/v1/rank", json=BODY, timeout=30))
        theirs = told(httpx.post(f"{url}/v1/rank", json=BODY, timeout=30))
        assert theirs == ours
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert httpx.get(url + path, timeout=30).status_code == 200
        for body, status in ((b"{", 400), (b'{"user": 1}', 422), (b" " * 100_001, 413)):
            ours_bad = httpx.post(f"{local}/v1/rank", content=body, timeout=30)
            theirs_bad = httpx.post(f"{url}/v1/rank", content=body, timeout=30)
            assert (theirs_bad.status_code, theirs_bad.json()) == (status, ours_bad.json())
    assert child.returncode == 0


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_cannot_start_says_why(
    tmp_path: Path, models: Path, features: Path, engine: str
) -> None:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match="in use") as caught:
        serve(models, features, port=port, engine=engine)  # type: ignore[arg-type]
    assert str(port) in caught.value.where
    listener.close()
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match="no model version"):
        serve(tmp_path / "models", features, port=0, engine=engine)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no features folder"):
        serve(models, tmp_path, port=0, engine=engine)  # type: ignore[arg-type]


def test_an_engine_that_is_none(models: Path, features: Path) -> None:
    with pytest.raises(UserError, match="no such engine"):
        serve(models, features, port=0, engine="cloud")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot listen"):
        serve(models, features, host="203.0.113.1", port=0)


def test_overload_is_turned_away_and_the_rest_is_answered(models: Path, features: Path) -> None:
    with (
        running(models, features, threads=1) as url,
        httpx.Client(limits=httpx.Limits(max_connections=100), timeout=60) as session,
    ):

        def ask(_: int) -> httpx.Response:
            return session.post(
                f"{url}/v1/rank",
                json={"user": {"id": "u1"}, "candidates": [f"i{n}" for n in range(300)]},
            )

        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(ask, range(300)))
        # On a busy machine, one that was let in may still pass its deadline, and is told so.
        assert {answer.status_code for answer in answers} <= {200, 503, 504}
        assert sum(answer.status_code == 200 for answer in answers) > 0
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
                assert "busy" in answer.json()["error"]["message"]
        assert session.post(f"{url}/v1/rank", json=BODY).status_code == 200


def test_a_deadline_that_cannot_be_met(
    tmp_path: Path, features: Path, spec: Spec, publish: Callable[..., Path]
) -> None:
    # Some hundred thousand long ids take more than the millisecond that this spec allows.
    hasty = spec.model_copy(
        update={
            "serve": spec.serve.model_copy(
                update={"deadline_ms": 1, "max_candidates": 50_000, "max_body_bytes": 10_000_000}
            )
        }
    )
    models = publish(tmp_path / "models", 1, by=hasty)
    with running(models, features) as url:
        answer = httpx.post(
            f"{url}/v1/rank",
            timeout=60,
            json={"user": {"id": "u1"}, "candidates": [f"item {n}" for n in range(50_000)]},
        )
        assert answer.status_code == 504
        assert answer.json()["error"]["expected"] == "1 ms (serve.deadline_ms)"
        # The late work ends and gives its place back.
        for _ in range(3000):
            if "recsys_running 0.0" in httpx.get(f"{url}/metrics", timeout=30).text:
                break
        else:
            raise AssertionError("the late request still holds its place")
