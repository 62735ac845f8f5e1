"""The HTTP application, the same under every engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from recsys.cores import cores_at_hand
from serving.contract import Contract
from serving.faults import RequestError
from serving.live import Live
from serving.logs import NAME
from serving.metrics import Metrics

log = logging.getLogger(NAME)

WAITING_PER_THREAD = 16
"""Requests that may wait for each scoring thread; more are turned away at once (503)."""

CLIENT_GONE = 499

LAST_SECONDS = 1
"""How long a version that is being loaded is waited for when the service ends."""


class Answer(Response):
    """A JSON answer; numpy numbers and NaN (as null) included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class RankService:
    """Takes a request's body through parsing, scoring and its limits.

    Args:
        live: What serves now.
        metrics: Counts what happens.
        threads: Requests that are worked on at once; by default one a core.
    """

    def __init__(self, live: Live, metrics: Metrics, threads: int | None = None) -> None:
        self.live, self.metrics = live, metrics
        self.threads = threads or cores_at_hand()
        self.most = self.threads * (1 + WAITING_PER_THREAD)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="rank")
        self._work: set[Future[Any]] = set()

    async def __call__(self, request: Request) -> Response:
        """The answer to a rank request, whatever comes."""
        started = time.perf_counter()
        try:
            answer = await self._answer(request, started)
        except RequestError as error:
            answer = _refusal(error)
        except ClientDisconnect:
            answer = Answer(None, CLIENT_GONE)
        except asyncio.CancelledError:
            # The server ends, and the time that it leaves to requests at work is over.
            answer = _refusal(_ending())
        except Exception:
            log.exception("a rank request failed")
            answer = _refusal(_internal())
        self.metrics.requests.labels(str(answer.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - started)
        return answer

    async def _answer(self, request: Request, started: float) -> Answer:
        limits = self.live.current.contract.spec.serve
        end = started + limits.deadline_ms / 1000
        try:
            async with asyncio.timeout(max(end - time.perf_counter(), 0.001)):
                body = await read_body(request, limits.max_body_bytes)
        except TimeoutError:
            raise _slow_body(limits.deadline_ms) from None
        content, candidates = await self._within_deadline(body, started, limits.deadline_ms)
        answer = Answer(content)
        # Counted here, since a late one is worked out too and never answered.
        self.metrics.candidates.observe(candidates)
        self.metrics.unknown_items.inc(content["unknown_items"])
        if not content["user"]["known"]:
            self.metrics.unknown_users.inc()
        return answer

    async def _within_deadline(
        self, body: bytes, started: float, deadline_ms: int
    ) -> tuple[dict[str, Any], int]:
        if self.at_work >= self.most:
            raise RequestError(
                503,
                "The service is busy.",
                found=f"{self.at_work} requests at work or in line",
                expected=f"at most {self.most}",
                fix="Try again shortly, or add replicas.",
                headers={"Retry-After": "1"},
            )
        end = started + deadline_ms / 1000
        work = self._pool.submit(self._rank, body, started, end)
        self._work.add(work)
        self.metrics.running.set(self.at_work)
        # A thread cannot be stopped: its place is free when it is done, not at the deadline.
        work.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(
                asyncio.wrap_future(work), max(end - time.perf_counter(), 0.001)
            )
        except TimeoutError:
            raise _late(deadline_ms) from None

    def _done(self, work: Future[Any]) -> None:
        self._work.discard(work)
        self.metrics.running.set(self.at_work)

    def _rank(self, body: bytes, started: float, end: float) -> tuple[dict[str, Any], int]:
        """The answer, and how many candidates it ranks."""
        serving = self.live.current
        if time.perf_counter() > end:
            raise _late(serving.contract.spec.serve.deadline_ms)
        request = serving.contract.parse(body)
        answer = serving.rank(request)
        answer["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
        return answer, len(request.keys)

    @property
    def at_work(self) -> int:
        """Requests in line or at work, those included whose answer nobody waits for any longer."""
        return len(self._work)

    def close(self) -> None:
        """Take no more. The server has waited for answers; what is late by now is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def read_body(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes, by what it claims and by what comes.

    Raises:
        RequestError: 413 where the body is longer.
    """
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > most:
        raise _too_long(most, f"{claimed} bytes (content-length)")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_long(most, f"more than {most} bytes")
    return bytes(body)


def _too_long(most: int, found: str) -> RequestError:
    return RequestError(
        413,
        "The body is too long.",
        expected=f"at most {most} bytes (serve.max_body_bytes)",
        found=found,
        where="body",
        fix="Rank fewer candidates at once, or raise serve.max_body_bytes in the spec and publish.",
        headers={"Connection": "close"},
    )


def _slow_body(deadline_ms: int) -> RequestError:
    return RequestError(
        408,
        "The body did not come in time.",
        expected=f"the whole body within {deadline_ms} ms (serve.deadline_ms)",
        found="a part of it",
        where="body",
        fix="Send it faster, or raise serve.deadline_ms in the spec and publish.",
        headers={"Connection": "close"},
    )


def _late(deadline_ms: int) -> RequestError:
    return RequestError(
        504,
        "The answer was not ready in time.",
        expected=f"{deadline_ms} ms (serve.deadline_ms)",
        found="more",
        fix="Rank fewer candidates at once, add replicas, or raise "
        "serve.deadline_ms in the spec and publish.",
    )


def _ending() -> RequestError:
    return RequestError(
        503,
        "The service ends, before it could answer.",
        fix="Send the request again, to a service that runs.",
        headers={"Connection": "close"},
    )


def _internal() -> RequestError:
    return RequestError(
        500,
        "The service failed on this request.",
        fix="See the log of the service.",
    )


def _refusal(error: RequestError) -> Answer:
    return Answer(error.body(), error.status, error.headers)


def create_app(
    models: str | Path,
    features: str | Path,
    *,
    poll_seconds: float = 2.0,
    threads: int | None = None,
) -> FastAPI:
    """The application, with the newest good version loaded and warm.

    Args:
        models: Folder of published versions (`recsys publish`).
        features: Folder of the feature job (`recsys features`).
        poll_seconds: How often the folders are looked at for something new.
        threads: Requests that are worked on at once; by default one a core.

    Raises:
        UserError: There is no version that can serve, or the tables are of other features.
    """
    metrics = Metrics()
    live = Live(models, features, metrics, poll_seconds)
    rank = RankService(live, metrics, threads)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        live.start()
        yield
        await asyncio.to_thread(live.stop, LAST_SECONDS)
        rank.close()

    app = FastAPI(title=f"recsys: {live.current.contract.spec.name}", lifespan=lifespan)
    app.state.live, app.state.rank = live, rank
    app.add_api_route(
        "/v1/rank",
        rank.__call__,
        methods=["POST"],
        include_in_schema=True,
        response_class=Answer,
        name="rank",
        summary="Rank candidates for a user",
    )
    _add_reports(app, live, metrics)
    _add_errors(app)

    def openapi() -> dict[str, Any]:
        return _openapi(app, live.current.contract, live.current.version)

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add_reports(app: FastAPI, live: Live, metrics: Metrics) -> None:
    # An orchestrator may ask by HEAD. Routes of their own: OpenAPI has one operation a name.
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_class=Answer, summary="Whether the process lives")
    async def healthz() -> Answer:
        return Answer({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_class=Answer, summary="Whether a version can answer")
    async def readyz() -> Answer:
        return Answer({"status": "ready", "model_version": live.current.version})

    @app.get("/v1/models", response_class=Answer, summary="What serves, and what was refused")
    async def models() -> Answer:
        current = live.current
        return Answer(
            {
                "model_version": current.version,
                "manifest": current.manifest,
                "features": {
                    "folder": str(live.features),
                    "fingerprint": current.store.fingerprint,
                    "created": current.store.manifest.get("created"),
                    "users": current.store.size("user"),
                    "items": current.store.size("item"),
                },
                # A copy: the watcher may refuse another meanwhile.
                "refused": {
                    str(version): why.reason for version, why in dict(live.refused).items()
                },
            }
        )

    @app.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def report() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Answer:
        refusal = RequestError(
            error.status_code,
            f"{error.detail}: {request.method} {request.url.path}.",
            where=request.url.path,
            expected="a path of /docs, such as POST /v1/rank",
            found=f"{request.method} {request.url.path}",
            headers=dict(error.headers or {}),
        )
        return _refusal(refusal)

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Answer:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _refusal(_internal())


def _openapi(app: FastAPI, contract: Contract, version: int) -> dict[str, Any]:
    """The OpenAPI document of the version that serves; its requests come from its spec."""
    schema = get_openapi(title=app.title, version=str(version), routes=app.routes)
    request = contract.request_schema("#/components/schemas/{model}")
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    name: {"type": "string"}
                    for name in ("message", "expected", "found", "where", "fix")
                },
            }
        },
    }
    parts = schema.setdefault("components", {}).setdefault("schemas", {})
    parts |= request.pop("$defs", {})
    parts |= {"RankRequest": request, "RankAnswer": contract.answer_schema(), "Error": error}

    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    operation = schema["paths"]["/v1/rank"]["post"]
    operation["requestBody"] = {"required": True, "content": content("RankRequest")}
    operation["responses"] = {
        "200": {"description": "Ranked items", "content": content("RankAnswer")},
        **{
            status: {"description": text, "content": content("Error")}
            for status, text in (
                ("400", "The body is no JSON"),
                ("408", "The body did not come within the deadline"),
                ("413", "The body is too long"),
                ("422", "The request breaks the contract"),
                ("503", "Busy, or about to end: try again"),
                ("504", "Not ready within the deadline"),
            )
        },
    }
    return schema
