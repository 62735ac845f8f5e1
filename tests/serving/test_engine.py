"""The service as a process of its own: ports, signals, limits, and both engines alike."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.errors import UserError
from recsys.spec import Spec, change
from serving.app import WAITING_PER_THREAD
from serving.contract import RankRequest
from serving.engine import listen, running, serve
from serving.live import Serving

pytestmark = pytest.mark.long

BODY = {
    "user": {"id": "u1"},
    "context": {"device": "tv"},
    "candidates": ["i1", "i2", "i3", "new", 40],
    "top_k": 4,
}

PROGRAM = """
import json, sys
from serving import log_to_stderr, serve
log_to_stderr()
serve(sys.argv[1], sys.argv[2], ready=lambda url: print(url, flush=True),
      **json.loads(sys.argv[3]))
print("ended", flush=True)
"""


@contextmanager
def process(
    models: Path, features: Path, **options: object
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The service in a process, once it answers; its URL and the process."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, models, features, json.dumps({"port": 0, **options})],
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
        # Standard output is the program's own, whatever Ray has to say.
        url = lines.get(timeout=240)
        assert url.startswith("http"), url or child.stderr.read()
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


def test_local_ends_on_sigterm_whatever_is_late(
    tmp_path: Path, features: Path, spec: Spec, publish: Callable[..., Path]
) -> None:
    hasty = change(spec, ["serve.deadline_ms=300"])
    models = publish(tmp_path / "models", 1, by=hasty)
    with process(models, features) as (url, child):
        body = {**BODY, "context": {"device": "endless"}}
        assert httpx.post(f"{url}/v1/rank", json=body, timeout=30).status_code == 504
    assert child.returncode == 0
    assert child.stderr is not None and "at work (1 late requests)" in child.stderr.read()


def test_both_engines_answer_the_same(models: Path, features: Path) -> None:
    with (
        running(models, features) as local,
        process(models, features, engine="ray", replicas=2) as (url, child),
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
    assert child.stderr is not None
    said = child.stderr.read()
    steps = ("reading the feature tables", "loading version 1", "starting Ray", "starting 2 rep")
    assert sorted(steps, key=said.index) == list(steps)
    # Neither that options are not applied, nor that the controller, which it ended, is dead.
    assert not re.search(r"raylet|RAY_|serve \d+ --|http_options", said), said


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_cannot_start_says_why(
    tmp_path: Path, models: Path, features: Path, publish: Callable[..., Path], engine: str
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
    publish(tmp_path / "models", 1)
    (tmp_path / "models" / "1" / "saved_model.pb").write_bytes(b"half a graph")
    with pytest.raises(UserError, match="no model version") as caught:
        serve(tmp_path / "models", features, port=0, engine=engine)  # type: ignore[arg-type]
    assert "Cannot parse file" in caught.value.found


def test_a_cluster_that_is_none(models: Path, features: Path) -> None:
    with pytest.raises(UserError, match="cluster cannot be reached") as caught:
        serve(models, features, port=0, engine="ray", ray_address="nowhere")
    assert caught.value.where == "nowhere" and "ray start --head" in caught.value.fix


def test_an_engine_that_is_none(models: Path, features: Path) -> None:
    with pytest.raises(UserError, match="no such engine"):
        serve(models, features, port=0, engine="cloud")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot listen"):
        serve(models, features, host="203.0.113.1", port=0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Scoring waits until this is set."""
    event = threading.Event()
    rank = Serving.rank

    def wait(serving: Serving, request: RankRequest) -> dict[str, Any]:
        event.wait()
        return rank(serving, request)

    monkeypatch.setattr(Serving, "rank", wait)
    yield event
    event.set()


def test_overload_is_turned_away_and_the_rest_is_answered(
    models: Path, features: Path, held: threading.Event
) -> None:
    sent, let_in = 60, 1 + WAITING_PER_THREAD
    statuses = []
    with (
        running(models, features, threads=1) as url,
        httpx.Client(limits=httpx.Limits(max_connections=sent), timeout=60) as session,
        ThreadPoolExecutor(sent) as pool,
    ):
        asked = [pool.submit(session.post, f"{url}/v1/rank", json=BODY) for _ in range(sent)]
        for done in as_completed(asked):
            answer = done.result()
            statuses.append(answer.status_code)
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
                assert "busy" in answer.json()["error"]["message"]
            if len(statuses) == sent - let_in:
                held.set()
        assert session.post(f"{url}/v1/rank", json=BODY).status_code == 200
    assert Counter(statuses) == {503: sent - let_in, 200: let_in}


def with_deadline(spec: Spec, deadline_ms: int) -> Spec:
    limits = spec.serve.model_copy(update={"deadline_ms": deadline_ms})
    return spec.model_copy(update={"serve": limits})


def test_a_deadline_that_cannot_be_met(
    tmp_path: Path,
    features: Path,
    spec: Spec,
    publish: Callable[..., Path],
    held: threading.Event,
) -> None:
    models = publish(tmp_path / "models", 1, by=with_deadline(spec, 1000))
    with running(models, features) as url:
        answer = httpx.post(f"{url}/v1/rank", timeout=60, json=BODY)
        assert answer.status_code == 504
        assert answer.json()["error"]["expected"] == "1000 ms (serve.deadline_ms)"
        held.set()
        # The late work ends and gives its place back.
        for _ in range(3000):
            if "recsys_running 0.0" in (report := httpx.get(f"{url}/metrics", timeout=30).text):
                break
        else:
            raise AssertionError("the late request still holds its place")
        # What was never answered is not counted as answered.
        assert "recsys_candidates_count 0.0" in report
        assert "recsys_unknown_items_total 0.0" in report


def begin(url: str) -> socket.socket:
    """A rank request whose body is asked for, and none of it sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n"
    )
    assert connection.recv(100).startswith(b"HTTP/1.1 100")
    return connection


def rest(connection: socket.socket) -> tuple[bytes, dict[str, str]]:
    """Status line and error of what comes until the connection is closed."""
    with connection, connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return head.splitlines()[0], json.loads(body)["error"]


def test_a_body_that_does_not_come(
    tmp_path: Path, features: Path, spec: Spec, publish: Callable[..., Path]
) -> None:
    models = publish(tmp_path / "models", 1, by=with_deadline(spec, 200))
    with running(models, features) as url:
        status, error = rest(begin(url))
        report = httpx.get(f"{url}/metrics", timeout=30).text
    assert b"408" in status and error["where"] == "body"
    assert 'recsys_requests_total{status="408"} 1.0' in report


def test_a_service_that_ends_says_so_to_whom_it_cuts_off(
    models: Path, features: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.engine.GRACE_SECONDS", 1)
    with running(models, features) as url:
        connection = begin(url)
        connection.sendall(b'{"user"')
    status, error = rest(connection)
    assert b"503" in status and "ends" in error["message"]
    assert "Traceback" not in caplog.text


def test_the_command_writes_down_what_it_takes_up(
    tmp_path: Path, features: Path, publish: Callable[..., Path]
) -> None:
    models = publish(tmp_path / "models", 1)
    child = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "serve", models, "--features", features, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "Listening on" in line:
            url = line.split()[2]
            answer = httpx.post(f"{url}/v1/rank", json=BODY, timeout=30)
            assert told(answer)["model_version"] == 1
            publish(models, 2)
            publish(models, 3)
            (models / "3" / "saved_model.pb").write_bytes(b"half a graph")
        if "refused" in line and "version 2 serves" in line:
            child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", timeout=30)
    log = "".join(lines)
    time = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.search(rf"{time} INFO version 1 serves; loaded and warmed in", log, re.M)
    assert re.search(rf"{time} WARNING version 3 is refused: .*; version 2 serves$", log, re.M)


CLUSTER = """
import sys
import ray
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Other:
    async def __call__(self, request):
        return "the other answers"

cluster = ray.init(
    address="local", include_dashboard=False, log_to_driver=False, num_cpus=4,
    logging_level="ERROR",
)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Other.bind(), name="other", route_prefix="/other")
print("cluster", cluster.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def test_a_cluster_with_another_application(
    models: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder is needed
    listeners = [listen("127.0.0.1", 0) for _ in range(2)]
    port, elsewhere = (listener.getsockname()[1] for listener in listeners)
    for listener in listeners:
        listener.close()
    other = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None and other.stdout is not None

    def other_answers() -> bool:
        answer = httpx.get(f"http://127.0.0.1:{port}/other", timeout=60)
        return answer.text == "the other answers"

    try:
        address = next(line for line in other.stdout if line.startswith("cluster")).split()[1]
        refused = subprocess.run(
            [sys.executable, "-m", "infra.cli", "serve", models, "--features", features,
             "--engine", "ray", "--port", str(elsewhere), "--ray-address", address],
            capture_output=True, text=True,
        )  # fmt: skip
        assert refused.returncode == 1, refused.stderr
        assert "error: The service does not answer where it should." in refused.stderr
        assert f"the cluster's Serve listens on 127.0.0.1:{port}" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert other_answers()
        with process(models, features, engine="ray", port=port, ray_address=address) as (
            url,
            child,
        ):
            assert told(httpx.post(f"{url}/v1/rank", json=BODY, timeout=60))["model_version"] == 1
            assert other_answers()
        assert child.returncode == 0
        assert other_answers()
    finally:
        other.stdin.close()
        other.wait(timeout=60)
