"""Which version of a MODELS folder should serve: found on disk, decided by a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.artifacts import read_manifest
from recsys.errors import UserError
from recsys.spec import Spec, load
from serving.store import mark

Mark = tuple[int, int] | None


@dataclass(frozen=True)
class Found:
    """A version folder as it lies on disk. `fault` says why it cannot serve; '' if it can."""

    version: int
    mark: Mark
    fault: str = ""
    features: str = ""


@dataclass(frozen=True)
class Keep:
    """What serves now goes on."""


@dataclass(frozen=True)
class Swap:
    """This version is to be loaded and to serve."""

    version: int


@dataclass(frozen=True)
class Refuse:
    """This version may not serve, and why."""

    version: int
    reason: str


Decision = Keep | Swap | Refuse


def decide(
    found: Iterable[Found],
    current: tuple[int, Mark] | None,
    refused: Mapping[int, Mark],
    features: Iterable[str],
) -> tuple[Decision, ...]:
    """What to do about the versions on disk.

    The newest version that can serve is the one that should: a newer one replaces what
    serves, and one that was removed makes way for the newest that is left. A version is
    refused once; it is looked at again when its folder has been replaced.

    Args:
        found: The versions on disk.
        current: The version that serves, and its mark when it was loaded.
        refused: Versions refused before, each with its mark then.
        features: Fingerprints of the feature tables at hand.

    Returns:
        Any number of `Refuse`, then one `Keep` or `Swap`.

    >>> decide([Found(1, (1, 1)), Found(2, (2, 2), "half")], (1, (1, 1)), {}, [""])
    (Refuse(version=2, reason='half'), Keep())
    """
    features = tuple(features)
    decisions: list[Decision] = []
    for each in sorted(found, key=lambda one: -one.version):
        if current == (each.version, each.mark):
            return (*decisions, Keep())
        if each.version in refused and refused[each.version] == each.mark:
            continue
        reason = each.fault
        if not reason and each.features not in features:
            reason = (
                f"it needs features {each.features}, and the feature tables are "
                f"{' and '.join(features)}"
            )
        if not reason:
            return (*decisions, Swap(each.version))
        decisions.append(Refuse(each.version, reason))
    return (*decisions, Keep())


def inspect(folder: Path) -> Found:
    """Look at a version folder without loading the model."""
    version = int(folder.name)
    stamp = mark(folder)
    for needed in ("saved_model.pb", "variables/variables.index"):
        if not (folder / needed).is_file():
            return Found(version, stamp, f"{needed} is missing")
    try:
        manifest = read_manifest(folder, "model")
        load(folder / "spec.yaml")
    except UserError as error:
        return Found(version, stamp, _in_a_line(error))
    claimed = manifest.get("version", version)
    if claimed != version:
        return Found(version, stamp, f"its manifest says version {claimed}")
    return Found(version, stamp, "", str(manifest["fingerprints"].get("features")))


def scan(models: Path) -> list[Found]:
    """The versions of a MODELS folder: its subfolders that are named by an integer."""
    try:
        folders = [path for path in models.iterdir() if path.name.isdecimal() and path.is_dir()]
    except OSError:
        return []
    return [inspect(folder) for folder in folders]


def read_version(models: Path, version: int) -> tuple[dict[str, Any], Spec]:
    """Manifest and spec of a version. Raises `UserError` where either is damaged."""
    folder = models / str(version)
    return read_manifest(folder, "model"), load(folder / "spec.yaml")


def _in_a_line(error: UserError) -> str:
    parts = [error.message, error.where, error.found and f"found {error.found}"]
    return " ".join(" ".join(part.split()) for part in parts if part)
