"""Artifacts on disk: whole or not at all, each with a manifest that says what it is.

A folder is written aside, synced and renamed into place. Its `manifest.json` carries the
format version, the fingerprints of what it was built from, library versions and counts; a
reader that is handed a mismatch refuses, naming both and the command that rebuilds.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from recsys.errors import UserError
from recsys.locks import locked_folder, remove_unlocked
from recsys.spec import Spec, covered, differences, fingerprints, load

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_LIBRARIES = (
    "tensorflow",
    "tf-keras",
    "tensorflow-recommenders",
    "tensorflow-transform",
    "apache-beam",
    "ray",
    "pyarrow",
)


@contextmanager
def write_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which appears at `path` whole when the block ends well.

    A link at `path` stays, and what it leads to is written. What killed writers of the same folder
    left beside it is removed.

    Args:
        path: Where the folder is to appear.
        replace: Whether a folder that stands there may be replaced.

    Raises:
        UserError: Something stands at `path` and may not be replaced, or came to stand there
            since: then the new folder is kept beside it, and named.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> with write_folder(root / "out") as folder:
    ...     _ = (folder / "a.txt").write_text("whole")
    >>> (root / "out" / "a.txt").read_text()
    'whole'
    """
    path = Path(os.path.realpath(path))
    if os.path.ismount(path):
        raise UserError(
            "The output is a mount point, which no finished folder can take the place of.",
            where=str(path),
            fix="Name a folder below it.",
        )
    if path.exists() and not replace and (path.is_file() or any(path.iterdir())):
        raise UserError(
            "The output already exists and is not empty.",
            where=str(path),
            fix="Name another output folder, or remove this one.",
        )
    old = identity(path) if replace else None
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{path.name}.", ".partial"
    remove_unlocked(path.parent, f"{glob.escape(prefix)}*{suffix}")
    with locked_folder(path.parent, prefix, suffix) as aside:
        try:
            aside.chmod(0o755)
            yield aside
            share_tree(aside)
            sync_tree(aside)
            put_in_place(aside, path, old)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


Identity = tuple[int, int, int]


def identity(path: Path) -> Identity | None:
    """What tells a folder from any other that takes its place; None where nothing stands."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    # The number alone may come again, once the folder that had it is gone.
    return found.st_dev, found.st_ino, found.st_mtime_ns


def put_in_place(aside: Path, path: Path, old: Identity | None) -> None:
    """Rename a finished folder to `path`, where nothing, an empty folder, or `old` stands.

    The old folder goes only when the new one stands. Between two renames nothing stands there;
    where the second fails, the old one comes back.

    Raises:
        UserError: Anything else stands there; the finished folder is kept beside it.
    """
    # A name that no earlier process took that was killed before it could clean up.
    moved = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
    if old is not None and identity(path) == old:
        os.rename(path, moved)
    try:
        # The system puts a folder in the place of an empty one, and of nothing else.
        os.rename(aside, path)
    except BaseException as error:
        if moved.exists() and not path.exists():
            os.rename(moved, path)
        if isinstance(error, OSError) and error.errno in _TAKEN:
            raise _taken(aside, path) from None
        raise
    for left in path.parent.glob(f".{glob.escape(path.name)}.old-*"):
        shutil.rmtree(left, ignore_errors=True)
    sync_file(path.parent)


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""Numbers of the system's errors where a folder cannot be renamed to what stands there."""


def _taken(aside: Path, path: Path) -> UserError:
    kept = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(aside, kept)
    return UserError(
        "Another folder has come to stand at the output while this one was made.",
        where=str(path),
        fix=f"Remove one of the two: what was made here is whole at {kept}.",
    )


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in a folder; nobody may be writing there.

    What a writer had moved aside comes back, where nothing has taken its place.
    """
    for old in folder.glob(".*.old-*"):
        path = old.with_name(old.name[1:].rpartition(".old-")[0])
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)
    for partial in folder.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def share_tree(folder: Path) -> None:
    """Let those who may read a folder read what is below it, in spite of a strict umask.

    The service often runs as another user than the one who trains.
    """
    wanted = folder.stat().st_mode & 0o555
    for root, folders, files in os.walk(folder):
        for names, mode in ((folders, wanted), (files, wanted & 0o444)):
            for name in names:
                path = Path(root) / name
                path.chmod(path.stat().st_mode | mode)


def sync_file(path: Path) -> None:
    """Force a file or folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force every file below a folder, and the folder, to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(root) / name)
        sync_file(Path(root))


def write_text(path: str | Path, text: str) -> None:
    """Write a small file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole or not at all; not-a-number is written as null."""
    write_text(path, json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """The value with every float that JSON cannot hold replaced by None."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_json(path: str | Path) -> Any:
    """Read a JSON artifact. Raises `UserError` where it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("A file is missing.", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            "A file is damaged.",
            where=str(path),
            expected="JSON",
            found=str(error),
            fix="Build this artifact again.",
        ) from None


def write_manifest(
    folder: Path, kind: str, fingerprints: Mapping[str, str], content: Mapping[str, Any]
) -> None:
    """Write a folder's manifest, the last file to be written into it."""
    write_json(
        folder / MANIFEST,
        {
            "kind": kind,
            "format_version": FORMAT_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprints": dict(fingerprints),
            "libraries": library_versions(),
            **content,
        },
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape artifacts, read without importing them."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """The manifest of an artifact of this kind.

    Raises:
        UserError: There is no such folder or manifest, or it is of another kind or format.
    """
    folder = Path(folder)
    makers = {
        "features": "recsys features SPEC --input IN --output FEATURES",
        "run": "recsys train SPEC --features FEATURES --output RUN",
        "model": "recsys publish RUN --models MODELS",
        "device": "recsys convert RUN --output FOLDER",
        "world": "recsys simulate OUT",
    }
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"This is no {kind} folder.",
            where=str(folder),
            expected=f"a folder with a {MANIFEST}",
            found="no such folder" if not folder.exists() else f"no {MANIFEST}",
            fix=f"Make one with: {makers.get(kind, 'recsys --help')}",
        )
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(
            "This folder is an artifact of another kind.",
            where=str(folder / MANIFEST),
            expected=kind,
            found=str(found),
            fix=f"Name a folder made with: {makers.get(kind, 'recsys --help')}",
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            "This artifact has another format version.",
            where=str(folder / MANIFEST),
            expected=str(FORMAT_VERSION),
            found=str(manifest.get("format_version")),
            fix=f"Build it again with: {makers.get(kind, 'recsys --help')}",
        )
    return manifest


RAW_FOLDER, RAW_SPLIT = "raw", "test"
"""Folder of a features folder with the raw columns of that split, file by file as its examples."""

LEARNED = "learned"
"""Key of manifests: fingerprint of what the transform graph learned from its training rows.

Ids of two features folders mean the same tokens where it is the same. It travels from features
to the runs and versions that read them.
"""


def same_learned(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two manifests go back to the same vocabularies; so taken where one does not say."""
    first, second = one.get(LEARNED), other.get(LEARNED)
    return first is None or second is None or first == second


def require_learned(
    made: Mapping[str, Any], features: Mapping[str, Any], *, where: str | Path, fix: str
) -> None:
    """Refuse features whose ids mean other tokens than those that an artifact was made with.

    Raises:
        UserError: The two manifests (or records) name other fingerprints.
    """
    if not same_learned(made, features):
        raise UserError(
            "The features were built anew, on other rows: their ids stand for other tokens.",
            where=str(where),
            expected=f"{LEARNED} {made[LEARNED]}",
            found=f"{LEARNED} {features[LEARNED]}",
            fix=fix,
        )


def require_fingerprint(
    manifest: Mapping[str, Any],
    section: str,
    spec: Spec,
    *,
    where: str | Path,
    fix: str,
    own: str = "spec.yaml",
) -> None:
    """Refuse an artifact that was built from another spec, and name the fields that differ.

    Args:
        manifest: The artifact's.
        section: One of those that `fingerprints` knows.
        spec: The spec that it should have been built from.
        where: The artifact's folder, with its own spec.
        fix: What to do about it.
        own: File in the folder with the spec that it was built from.

    Raises:
        UserError: The manifest's fingerprint of the section is not the spec's.
    """
    expected, found = fingerprints(spec)[section], manifest["fingerprints"].get(section)
    if found == expected:
        return
    path = Path(where) / own
    try:
        named = differences(covered(spec)[section], covered(load(path))[section])
    except UserError:
        named = None
    # The same fields had another fingerprint in an earlier release.
    ours, theirs = named or (f"{section} {expected}", f"{section} {found}")
    raise UserError(
        f"This artifact was built from another spec: its `{section}` differ.",
        where=str(path if named else where),
        expected=ours,
        found=theirs,
        fix=fix,
    )


def versions(models: str | Path) -> list[int]:
    """The versions that stand in a models folder, newest first: its subfolders named by a number.

    Two names can say one number ("1" and "01"); only the plain one is a version. A folder that is
    not there has none; of one that cannot be read, that is not known, and the system's error comes.
    """
    try:
        names = [path.name for path in Path(models).iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = [int(name) for name in names if name.isdecimal() and name == str(int(name))]
    return sorted(numbers, reverse=True)
