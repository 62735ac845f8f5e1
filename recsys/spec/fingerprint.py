"""Fingerprints: what an artifact was built from, in sixteen characters."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from recsys.spec.records import Spec


def fingerprint(value: Any) -> str:
    """SHA-256 of the value's canonical JSON, shortened to 16 hexadecimal characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(spec: Spec) -> dict[str, str]:
    """Fingerprint of each section, in the order of the flow.

    `features` covers what the feature job reads: data, features, and the tasks' labels, so
    that a change of a loss or a tower does not make features stale (but a first ranking loss
    does, for which a request's rows are laid side by side). `model` covers what
    training and export read beside them, the blend included, since the graph carries it.
    `serve` and `evaluate` cover their own sections.
    """
    tree = json.loads(spec.model_dump_json(by_alias=True))
    labels = [{key: task[key] for key in ("name", "label", "given")} for task in tree["tasks"]]
    regression = [task.is_regression for task in spec.tasks]
    read = [tree["data"], tree["features"], labels, regression, tree["evaluate"]["slices"]]
    if any(task.ranking for task in spec.tasks):
        read.append("by request")
    return {
        "features": fingerprint(read),
        "model": fingerprint([tree["tasks"], tree["model"], tree["train"], spec.blend()]),
        "evaluate": fingerprint(tree["evaluate"]),
        "serve": fingerprint(tree["serve"]),
    }
