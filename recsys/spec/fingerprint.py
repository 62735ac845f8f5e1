"""Fingerprints: what an artifact was built from, in sixteen characters.

Each field of the spec belongs to the sections that depend on it: `_BELONGS` says to which.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from recsys.spec.places import values_by_place
from recsys.spec.records import Spec

SECTIONS = ("features", "model", "gate", "evaluate", "serve")
"""What has a fingerprint, in the order of the flow."""

# A place belongs to the sections of the first pattern that matches it and all below it; `*` is
# any name. So a field that is new in a section of the spec makes what the section makes stale,
# until somebody says here that it need not.
_BELONGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("name", ()),
    # How many bad records are too many is judged, and changes no row.
    ("data.bad_records", ()),
    ("data", ("features",)),
    # How wide an embedding is and how those of a list are joined is the network's.
    ("features.*.dim", ("model",)),
    ("features.*.encode.combiner", ("model",)),
    ("features", ("features",)),
    ("tasks.*.gate", ("gate",)),
    # The feature job makes the labels and counts them. Of the loss it reads what `_derived` says.
    ("tasks.*.name", ("features", "model")),
    ("tasks.*.label", ("features", "model")),
    ("tasks.*.given", ("features", "model")),
    ("tasks.*", ("model",)),
    ("tasks", ("features", "model")),
    ("model", ("model",)),
    ("train", ("model",)),
    # Examples have a column of each slice.
    ("evaluate.slices", ("features", "evaluate")),
    ("evaluate", ("evaluate",)),
    # The graph carries the blend, as `_derived` has it.
    ("serve", ("serve",)),
)

_PATTERNS = [
    (re.compile(re.escape(place).replace(r"\*", r"[^.]+") + r"(\.|$)"), sections)
    for place, sections in _BELONGS
]


def fingerprint(value: Any) -> str:
    """SHA-256 of the value's canonical JSON, shortened to 16 hexadecimal characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(spec: Spec) -> dict[str, str]:
    """Fingerprint of each section: of what `covered` says.

    `features` is what the feature job's output depends on, `model` what training and export read
    beside it, `gate` what a run is judged by before it is published, `evaluate` and `serve` what
    metrics and the service read. A field may belong to several of them, or to none.
    """
    return {section: fingerprint(values) for section, values in covered(spec).items()}


def covered(spec: Spec) -> dict[str, dict[str, Any]]:
    """By section, the values that its fingerprint covers, by their places in the spec."""
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for place, value in values_by_place(spec).items():
        for section in belongs(place):
            values[section][place] = value
    for section, derived in _derived(spec).items():
        values[section] |= derived
    return values


def belongs(place: str) -> tuple[str, ...]:
    """The sections that depend on the value at a place of the spec.

    >>> belongs("data.split.seed"), belongs("features.user.dim"), belongs("data.bad_records")
    (('features',), ('model',), ())
    """
    return next(sections for pattern, sections in _PATTERNS if pattern.match(place))


def _derived(spec: Spec) -> dict[str, Mapping[str, Any]]:
    """What sections read of fields that do not belong to them as a whole."""
    labels: dict[str, Any] = {}
    for task in spec.tasks:
        # Numbers may be labels of a regression alone, and of a logarithm only those above -1.
        labels[f"tasks.{task.name} (regression)"] = task.is_regression
        labels[f"tasks.{task.name}.loss.log"] = task.by_logarithm
    # The rows of a request lie side by side in the examples where any task is ranked.
    labels["tasks.*.ranking (any)"] = any(task.ranking for task in spec.tasks)
    return {"features": labels, "model": {"serve.blend": spec.blend()}}
