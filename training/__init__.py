"""Features to a published model, on Ray Train.

`train` makes a run, `evaluate` measures it through its export, `publish` lets it past the
gate or not, `convert` makes a file for devices of it. Nothing heavy is imported before one of
them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import recsys  # noqa: F401  (Keras switch first)

if TYPE_CHECKING:
    from training.conversion import convert
    from training.evaluation import evaluate
    from training.gate import Promote, Reject
    from training.publishing import publish
    from training.trainer import train

__all__ = ["Promote", "Reject", "convert", "evaluate", "publish", "train"]

_HOMES = {
    "train": "training.trainer",
    "convert": "training.conversion",
    "evaluate": "training.evaluation",
    "publish": "training.publishing",
    "Promote": "training.gate",
    "Reject": "training.gate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
