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

    `features` covers what the feature job reads: data, features, and of the tasks their labels,
    what these may be, and whether any is ranked (a request's rows then lie side by side), so that
    a change of a weight or a tower does not make features stale. `model` covers what
    training and export read beside them, the blend included, since the graph carries it.
    `serve` and `evaluate` cover their own sections.
    """
    tree = json.loads(spec.model_dump_json(by_alias=True))
    labels = [
        [whole["label"], task.name, task.given, task.is_regression, task.by_logarithm]
        for whole, task in zip(tree["tasks"], spec.tasks, strict=True)
    ]
    return {
        "features": fingerprint(
            [
                tree["data"],
                tree["features"],
                labels,
                any(task.ranking for task in spec.tasks),
                tree["evaluate"]["slices"],
            ]
        ),
        "model": fingerprint([tree["tasks"], tree["model"], tree["train"], spec.blend()]),
        "evaluate": fingerprint(tree["evaluate"]),
        "serve": fingerprint(tree["serve"]),
    }
