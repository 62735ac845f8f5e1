"""Variants of a spec, for ablations: one change each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import yaml

from recsys.errors import SpecError
from recsys.spec import Spec, dumps, loads

Change = Callable[[dict[str, Any]], None]


def changed(spec: Spec, change: Change) -> Spec:
    """The spec after a change of its YAML tree."""
    tree = yaml.safe_load(dumps(spec))
    change(tree)
    return loads(yaml.safe_dump(tree, sort_keys=False))


def with_seed(spec: Spec, seed: int) -> Spec:
    """The spec with another training seed."""
    return changed(spec, lambda tree: tree.setdefault("train", {}).update(seed=seed))


def variants(spec: Spec) -> dict[str, Spec]:
    """Variants by name: balancing, loss, calibration, interactions, sharing, members, trees,
    features.

    The spec itself is `as shipped`; a variant that is no change of it is left out.
    """
    found = {"as shipped": spec}

    def add(name: str, change: Change) -> None:
        variant = changed(spec, change)
        if variant not in found.values():
            found[name] = variant

    for kind in ("fixed", "uncertainty", "gradnorm", "dwa", "pcgrad"):
        add(f"balancing {kind}", _set("train", "balancing", {"kind": kind}))
    for loss in ("bce", "focal"):
        for calibration in ("none", "platt"):
            add(f"loss {loss}, calibration {calibration}", _loss(loss, calibration))
    for kind in ("temperature", "platt", "isotonic"):
        add(f"calibration {kind}", _set("train", "calibration", kind))
    if "match" not in spec.model.interactions:
        with contextlib.suppress(SpecError):  # a side without embeddings has nothing to match by
            add("with match", _set("model", "interactions", [*spec.model.interactions, "match"]))
    for kind in ("shared_bottom", "mmoe", "ple"):
        add(f"sharing {kind}", _set("model", "sharing", {"kind": kind}))
    for members in (1, 2):
        add(f"members {members}", _set("model", "members", members))
    add("without trees", _set("model", "trees", None))
    for kind, name in (("history", "without history"), ("counter", "without counters")):
        add(name, _without(kind))
    return found


def _set(section: str, name: str, value: Any) -> Change:
    return lambda tree: tree.setdefault(section, {}).update({name: value})


def _loss(loss: str, calibration: str) -> Change:
    def change(tree: dict[str, Any]) -> None:
        tree.setdefault("train", {})["calibration"] = calibration
        for task in tree["tasks"]:
            if task.get("loss", {}).get("kind") not in ("mse", "huber"):
                task["loss"] = {"kind": loss}

    return change


def _without(kind: str) -> Change:
    def change(tree: dict[str, Any]) -> None:
        tree["features"] = [f for f in tree["features"] if f["encode"]["kind"] != kind]

    return change
