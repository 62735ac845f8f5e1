"""Which version of a MODELS folder should serve: found on disk, decided by a pure function."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.artifacts import read_manifest, versions
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
    """This version may not serve, and why; `features` are those that it waits for, '' if none."""

    version: int
    reason: str
    features: str = ""


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
        found: The versions on disk, newest first; read no further than needed.
        current: The version that serves, and its mark when it was loaded.
        refused: Versions refused before, each with its mark then.
        features: Fingerprints of the feature tables at hand.

    Returns:
        Any number of `Refuse`, then one `Keep` or `Swap`.

    >>> decide([Found(2, "b", "half"), Found(1, "a")], (1, "a"), {}, [""])
    (Refuse(version=2, reason='half', features=''), Keep())
    """
    features = tuple(features)
    decisions: list[Decision] = []
    for each in found:
        if current == (each.version, each.mark):
            break
        if refused.get(each.version) != each.mark:
            if each.fault:
                decisions.append(Refuse(each.version, each.fault))
            elif each.features in features:
                return (*decisions, Swap(each.version))
            else:
                reason = (
                    f"it needs features {each.features}, and the feature tables are "
                    f"{' and '.join(features)}"
                )
                decisions.append(Refuse(each.version, reason, each.features))
        if current and current[0] == each.version:
            break
    return (*decisions, Keep())


def scan(models: Path, seen: dict[int, Found]) -> Iterator[Found]:
    """Look at the versions of a MODELS folder, newest first, each when it is asked for.

    Args:
        models: The folder.
        seen: What an earlier look found; kept up to date. A folder is read again only where
            its mark has changed.
    """
    for version in versions(models):
        stamp = folder_mark(models / str(version))
        if version not in seen or seen[version].mark != stamp:
            seen[version] = inspect(models / str(version), stamp)
        yield seen[version]


def inspect(folder: Path, stamp: Mark) -> Found:
    """Look at a version folder, of this mark, without loading the model."""
    version = int(folder.name)
    try:
        for needed in ("saved_model.pb", "variables/variables.index"):
            if not (folder / needed).is_file():
                return Found(version, stamp, f"{needed} is missing")
        manifest = read_manifest(folder, "model")
        load(folder / "spec.yaml")
        claimed = manifest.get("version", version)
        if claimed != version:
            return Found(version, stamp, f"its manifest says version {claimed}")
        return Found(version, stamp, "", str(manifest["fingerprints"]["features"]))
    except KeyError as error:
        return Found(version, stamp, f"its manifest lacks {error}")
    except Exception as error:
        # Whatever a damaged folder or its permissions throw, the other versions can serve.
        return Found(version, stamp, in_a_line(error))


def folder_mark(folder: Path) -> Mark:
    """A mark of a folder's files: their names, sizes, times and permissions."""
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        files += (Path(root) / name for name in sorted(names))
    return mark_of(files)


def mark_of(files: Iterable[Path]) -> Mark:
    """A mark of these files, as `folder_mark`; those that are not there leave none."""
    lines = []
    for path in files:
        try:
            facts = path.stat()
        except OSError:
            continue
        lines.append(
            f"{path.name} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} "
            f"{facts.st_mode} {facts.st_uid} {facts.st_gid}"
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_version(models: Path, version: int) -> tuple[dict[str, Any], Spec]:
    """Manifest and spec of a version. Raises `UserError` where either is damaged."""
    folder = models / str(version)
    return read_manifest(folder, "model"), load(folder / "spec.yaml")


def in_a_line(error: Exception) -> str:
    """An error in one line of a log."""
    if isinstance(error, UserError):
        parts = [error.message, error.where, error.found and f"found {error.found}"]
    else:
        parts = [f"{type(error).__name__}:", str(error)]
    return " ".join(" ".join(part.split()) for part in parts if part)
