"""A client of the endpoint: one request, one answer, errors in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from recsys.errors import EXIT_WRONG_USE, UserError

DEFAULT_URL = "http://127.0.0.1:8501"


def read_request(path: Path) -> dict[str, Any]:
    """The body of `POST /v1/rank` in a JSON file, or on stdin where the path is `-`.

    Raises:
        UserError: It cannot be read, or is no JSON object.
    """
    where = "stdin" if str(path) == "-" else str(path)
    expected = "a JSON file, as /docs of the service shows it"
    try:
        text = sys.stdin.buffer.read() if where == "stdin" else path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError(
            "The request is missing." if missing else "The request cannot be read.",
            where=where,
            expected=expected,
            found="no such file" if missing else str(error.strerror),
            fix="Name the file of a request, or - to read it from stdin.",
        ) from None
    try:
        request = json.loads(text)
        found = "" if isinstance(request, dict) else f"a JSON {_KINDS[type(request)]}"
    except RecursionError:
        found = "lists or objects that are nested too deeply"
    except ValueError as error:
        found = str(error) if text.strip() else "nothing"
    if found:
        raise UserError(
            "The request is no JSON object.",
            where=where,
            expected='{"user": …, "candidates": …}, as /docs of the service shows it',
            found=found,
            fix="Correct it, and send it again.",
            exit_code=EXIT_WRONG_USE,
        )
    return request  # type: ignore[no-any-return]


_KINDS = {
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


def rank(request: dict[str, Any], url: str = DEFAULT_URL, timeout: float = 30.0) -> dict[str, Any]:
    """Ask the service to rank.

    Args:
        request: The body of `POST /v1/rank`.
        url: Where the service listens.
        timeout: Seconds to wait.

    Returns:
        The answer's body.

    Raises:
        UserError: The service cannot be reached, or refuses the request.
    """
    target = url.rstrip("/") + "/v1/rank"
    try:
        answer = httpx.post(target, json=request, timeout=timeout)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UserError(
            "This is no URL of a service.",
            where=url,
            expected=f"as {DEFAULT_URL}",
            found=str(error),
        ) from None
    except httpx.TimeoutException:
        raise UserError(
            "The service did not answer in time.",
            where=target,
            expected=f"an answer within {timeout:g} s",
        ) from None
    except httpx.TransportError as error:
        raise UserError(
            "The service cannot be reached.",
            where=target,
            found=str(error),
            fix="Start it with: recsys serve MODELS --features FEATURES",
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            "The request cannot be written as JSON.",
            found=str(error),
            fix="Write null where a value is missing.",
        ) from None
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.status_code == httpx.codes.OK and isinstance(body, dict) and "items" in body:
        return body
    error_body = body.get("error") if isinstance(body, dict) else None
    if isinstance(error_body, dict) and error_body.get("message"):
        fields = {
            name: str(error_body.get(name) or "") for name in ("expected", "found", "where", "fix")
        }
        raise UserError(f"{error_body['message']} (HTTP {answer.status_code})", **fields)  # type: ignore[arg-type]
    raise UserError(
        "What answered is no rank service.",
        where=target,
        expected="an answer of recsys serve",
        found=f"HTTP {answer.status_code} {answer.text[:80]}",
    )


def table(answer: dict[str, Any]) -> Table:
    """An answer as a table: rank, item, score, each probability and each value."""
    items = answer["items"]
    parts = [{**item["probabilities"], **item.get("values", {})} for item in items]
    names = list(parts[0]) if parts else []
    known = "known" if answer["user"]["known"] else "unknown"
    caption = (
        f"model version {answer['model_version']}, {known} user, "
        f"{answer['unknown_items']} unknown items, {answer['took_ms']:.1f} ms"
    )
    result = Table(caption=caption)
    result.add_column("rank", justify="right")
    result.add_column("item")
    result.add_column("score", justify="right")
    for name in names:
        result.add_column(name, justify="right")
    for item, part in zip(items, parts, strict=True):
        result.add_row(
            str(item["rank"]),
            # An id is a text of the caller's, where [b] means nothing.
            Text(f"{item['id']}" if item["known"] else f"{item['id']} (unknown)"),
            _number(item["score"]),
            *(_number(part[name]) for name in names),
        )
    return result


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"
