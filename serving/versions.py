"""Which version of a MODELS folder should serve: found on disk, decided by a pure function."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.artifacts import read_manifest
from recsys.errors import UserError
from recsys.spec import Spec, load

Mark = str
"""What changes when anything in a version's folder does."""


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
    serves. What serves makes way for an older one only when its own folder is gone. A version
    is refused once; it is looked at again when its folder has changed.

    Args:
        found: The versions on disk.
        current: The version that serves, and its mark when it was loaded.
        refused: Versions refused before, each with its mark then.
        features: Fingerprints of the feature tables at hand.

    Returns:
        Any number of `Refuse`, then one `Keep` or `Swap`.

    >>> decide([Found(1, "a"), Found(2, "b", "half")], (1, "a"), {}, [""])
    (Refuse(version=2, reason='half'), Keep())
    """
    features = tuple(features)
    decisions: list[Decision] = []
    found = sorted(found, key=lambda one: -one.version)
    if current and any(each.version == current[0] for each in found):
        found = [each for each in found if each.version >= current[0]]
    for each in found:
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
    stamp = folder_mark(folder)
    for needed in ("saved_model.pb", "variables/variables.index"):
        if not (folder / needed).is_file():
            return Found(version, stamp, f"{needed} is missing")
    try:
        manifest = read_manifest(folder, "model")
        load(folder / "spec.yaml")
    except UserError as error:
        return Found(version, stamp, in_a_line(error))
    claimed = manifest.get("version", version)
    if claimed != version:
        return Found(version, stamp, f"its manifest says version {claimed}")
    return Found(version, stamp, "", str(manifest["fingerprints"].get("features")))


def folder_mark(folder: Path) -> Mark:
    """A mark of a folder's files: their names, sizes and times."""
    lines = []
    for path in sorted(folder.rglob("*")):
        try:
            facts = path.stat()
        except OSError:
            continue
        if path.is_file():
            lines.append(f"{path.name} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def scan(models: Path) -> list[Found]:
    """The versions of a MODELS folder: its subfolders that are named by an integer."""
    try:
        folders = [path for path in models.iterdir() if path.name.isdecimal() and path.is_dir()]
    except OSError:
        return []
    # Two names can say one number ("1" and "01"); only the plain one is a version.
    folders = [path for path in folders if path.name == str(int(path.name))]
    return [inspect(folder) for folder in folders]


def read_version(models: Path, version: int) -> tuple[dict[str, Any], Spec]:
    """Manifest and spec of a version. Raises `UserError` where either is damaged."""
    folder = models / str(version)
    return read_manifest(folder, "model"), load(folder / "spec.yaml")


def in_a_line(error: UserError) -> str:
    """An error in one line of a log."""
    parts = [error.message, error.where, error.found and f"found {error.found}"]
    return " ".join(" ".join(part.split()) for part in parts if part)
