"""A request's bytes to a JSON value, or where it stops being JSON."""

from __future__ import annotations

import json
from typing import Any

import orjson

from serving.faults import RequestError


def parse_json(body: bytes) -> Any:
    """The value of a JSON body; `NaN` and `Infinity` are taken, as many writers send them.

    Raises:
        RequestError: 400, with the place of the fault.

    >>> parse_json(b'{"price": NaN}')
    {'price': nan}
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        refusal = _no_json(body, error)
    constants: list[str] = []

    def constant(name: str) -> float:
        constants.append(name)
        return float(name.replace("Infinity", "inf"))

    try:
        value = json.loads(body, parse_constant=constant, parse_int=_whole)
        if not constants:
            raise refusal
        orjson.dumps(value)  # refuses what is no Unicode, as loads does
    except json.JSONDecodeError as error:
        raise (_no_json(body, error) if constants else refusal) from None
    except (ValueError, RecursionError, TypeError):
        raise refusal from None
    return value


def _whole(text: str) -> int | float:
    """A whole number as orjson takes it: one beyond 64 bits as a float."""
    value = int(text)
    return value if -(2**63) <= value < 2**64 else float(text)


def _no_json(body: bytes, error: json.JSONDecodeError) -> RequestError:
    return RequestError(
        400,
        "The body is no JSON.",
        expected="one JSON object, in UTF-8",
        found=error.msg if body.strip() else "an empty body",
        where=f"line {error.lineno} column {error.colno} (character {error.pos})",
        fix="Send a body as /docs shows it.",
    )
