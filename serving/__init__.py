"""A published model to ranked items, over HTTP.

`serve` runs the endpoint and `log_to_stderr` writes down what it does; `rank` asks it, by a request
that `read_request` reads, and `example_request` writes one that it takes.
Each name is imported when it is first used, so that importing `serving` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import recsys  # noqa: F401  (Keras switch first)

if TYPE_CHECKING:
    from serving.app import create_app
    from serving.client import rank, read_request, table
    from serving.engine import running, serve
    from serving.example import example_request
    from serving.logs import log_to_stderr

__all__ = [
    "create_app",
    "example_request",
    "log_to_stderr",
    "rank",
    "read_request",
    "running",
    "serve",
    "table",
]

_HOMES = {
    "create_app": "serving.app",
    "example_request": "serving.example",
    "log_to_stderr": "serving.logs",
    "rank": "serving.client",
    "read_request": "serving.client",
    "running": "serving.engine",
    "serve": "serving.engine",
    "table": "serving.client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
