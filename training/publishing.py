"""Publishing: through the gate, then as the next version, whole or not at all."""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from recsys.artifacts import (
    LEARNED,
    library_versions,
    read_json,
    read_manifest,
    require_learned,
    share_tree,
    sync_file,
    sync_tree,
    versions,
    write_manifest,
    write_text,
)
from recsys.errors import UserError
from recsys.locks import locked_folder, remove_unlocked, sole_publisher
from recsys.spec import fingerprints, load
from recsys.spec.records import Spec
from training.evaluation import (
    EXPORT,
    MADE,
    check_features,
    evaluate,
    evaluate_other,
    features_of,
    load_numeric,
    load_trained,
    stored_metrics,
)
from training.gate import Decision, Promote, Reject, decide

_LOG = logging.getLogger(__name__)
_LAST = ".last_version"
_ASIDE, _PARTIAL = ".publish-", ".partial"


def publish(
    run: str | Path,
    models: str | Path,
    force: bool = False,
    features: str | Path | None = None,
) -> Decision:
    """Publish a run as the next version of a models folder, if the gate lets it.

    The gate is that of the run's `spec.yaml` as it is now. The champion is the newest version
    that loads. It is evaluated on the challenger's test rows, where their features have the same
    spec; else its stored metrics count, and the decision says so.

    Args:
        run: A finished run.
        models: The models folder; made where it is missing.
        force: Publish a new version in any case; the reasons are kept in the notes.
        features: The features folder; by default the one that the run was trained on.

    Returns:
        `Promote` with version and path, or `Reject` with the reasons. Unless forced, a run of
        which a whole version stands is not published again; if its gate has changed since, it is
        judged again, by the champion before that version.

    Raises:
        UserError: The run is unfinished, its spec was edited in what it was trained by, its
            export is missing or damaged, or the folders cannot be used.
    """
    run, models = Path(run), Path(models)
    manifest = read_manifest(run, "run")
    spec = load_trained(run, manifest)
    if not (run / EXPORT / "saved_model.pb").is_file():
        raise UserError(
            "The run has no exported model.",
            where=str(run / EXPORT),
            expected="saved_model.pb",
            found="none" if (run / EXPORT).is_dir() else "no such folder",
            fix="Train again with: recsys train SPEC --features FEATURES --output RUN",
        )
    if features is not None:
        # A folder that is named must be the right one, whether or not it comes to be read.
        _require_own(manifest, spec, Path(features))
    # Another publisher's version is the champion by which this run is to be judged.
    with sole_publisher(models):
        return _publish(run, models, manifest, spec, force, features)


def _publish(
    run: Path,
    models: Path,
    manifest: dict[str, Any],
    spec: Spec,
    force: bool,
    features: str | Path | None,
) -> Decision:
    published = None if force else _published(run, models, manifest, spec)
    if published is not None and _gate_of(models / str(published)) == fingerprints(spec)["gate"]:
        return _standing(published, models)
    # What the stored metrics are of may have been damaged since.
    load_numeric(run / EXPORT)
    metrics, decision = _judge(run, manifest, spec, _champion(models, published), features)
    for text in decision.notes if isinstance(decision, Promote) else decision.reasons:
        _LOG.info("gate: %s", text)
    if published is not None:
        if isinstance(decision, Promote):
            return _standing(published, models, decision.notes)
        stands = f"version {published} of this run stands, and serves until its folder is removed"
        return Reject((*decision.reasons, stands))
    if isinstance(decision, Reject):
        if not force:
            return decision
        decision = Promote(notes=tuple(f"waived: {reason}" for reason in decision.reasons))
    version = _write(run, models, manifest, spec, metrics)
    return replace(decision, version=version, path=models / str(version))


def _standing(version: int, models: Path, notes: tuple[str, ...] = ()) -> Promote:
    return Promote(version, models / str(version), notes, already=True)


def _judge(
    run: Path,
    manifest: dict[str, Any],
    spec: Spec,
    champion: _Champion | None,
    features: str | Path | None,
) -> tuple[dict[str, Any], Decision]:
    """The run's test metrics, and what the gate says to them."""
    metrics = _metrics(run, manifest, spec, features)
    against: dict[str, Any] | None = None
    caveat: tuple[str, ...] = ()
    if champion is not None:
        against, caveat = _compare(champion, manifest, spec, features)
        if against and not caveat and against["rows"] != metrics.get("rows"):
            metrics = evaluate(run, "test", features)
    decision = decide(metrics, against, spec)
    if isinstance(decision, Promote):
        return metrics, replace(decision, notes=decision.notes + caveat)
    return metrics, Reject(decision.reasons + caveat)


def _metrics(
    run: Path, manifest: dict[str, Any], spec: Spec, features: str | Path | None
) -> dict[str, Any]:
    """The run's test metrics: those that it has, unless its features have other rows by now."""
    stored = stored_metrics(run)
    if stored is None:
        return evaluate(run, "test", features)
    try:
        made = _require_own(manifest, spec, features_of(manifest, features))
    except UserError:
        # The rows are not at hand, and then no champion is measured on them either.
        return stored
    return stored if stored.get(MADE) == made.get("created") else evaluate(run, "test", features)


def _published(run: Path, models: Path, manifest: dict[str, Any], spec: Spec) -> int | None:
    """The newest whole version of a run, by its export's files."""
    for version in versions(models):
        folder = models / str(version)
        try:
            known = _manifest_of(folder)
        except UserError:
            continue
        # The same run with other serving limits is another version.
        if (known.get("run"), known["fingerprints"].get("serve")) != (
            manifest["run"],
            fingerprints(spec)["serve"],
        ):
            continue
        if _holds(folder, run / EXPORT):
            return version
        _LOG.warning("version %s of this run is damaged, and is passed over", folder)
    return None


def _gate_of(version: Path) -> str | None:
    """Fingerprint of the gate that a version was published through."""
    try:
        return fingerprints(load(version / "spec.yaml"))["gate"]
    except UserError:
        return None


def _holds(folder: Path, export: Path) -> bool:
    """Whether a folder has every file below an export, byte by byte."""
    twins = ((path, folder / path.relative_to(export)) for path in export.rglob("*"))
    return all(
        twin.is_file() and filecmp.cmp(path, twin, shallow=False)
        for path, twin in twins
        if path.is_file()
    )


def _manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a version. Raises `UserError` where it, or the spec beside it, is damaged."""
    manifest = read_manifest(folder, "model")
    load(folder / "spec.yaml")
    if not isinstance(manifest.get("fingerprints"), dict):
        raise UserError("The manifest of a version lacks its fingerprints.", where=str(folder))
    return manifest


class _Champion(NamedTuple):
    folder: Path
    manifest: dict[str, Any]
    model: Any


def _champion(models: Path, before: int | None = None) -> _Champion | None:
    """The newest version that loads, of those before one where that is given."""
    for version in versions(models):
        if before is not None and version >= before:
            continue
        folder = models / str(version)
        try:
            return _Champion(folder, _manifest_of(folder), load_numeric(folder).owner)
        except UserError as error:
            _LOG.warning("version %s is passed over: %s", folder, error.message)
    return None


def _compare(
    champion: _Champion, manifest: dict[str, Any], spec: Spec, features: str | Path | None
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The champion's metrics, on the challenger's rows where it can read them; and a caveat."""
    version, theirs, model = champion
    if theirs["fingerprints"].get("features") != manifest["fingerprints"]["features"]:
        why = "its features have another spec"
    else:
        try:
            folder = features_of(manifest, features)
            _require_own(manifest, spec, folder)
            other = load_trained(version, theirs)
            return evaluate_other(theirs, other, version, folder, "test", model), ()
        except UserError as error:
            why = error.message
    caveat = f"the champion's metrics are of its own test rows, as it was published: {why}"
    return theirs.get("metrics"), (caveat,)


def _require_own(manifest: dict[str, Any], spec: Spec, features: Path) -> dict[str, Any]:
    """The manifest of features, which are refused if they are not those of the run."""
    made = check_features(spec, features)
    require_learned(manifest, made, where=features, fix="Train on them.")
    return made


def _write(
    run: Path, models: Path, manifest: dict[str, Any], spec: Spec, metrics: dict[str, Any]
) -> int:
    remove_unlocked(models, f"{_ASIDE}*{_PARTIAL}")
    prints = fingerprints(spec)
    with locked_folder(models, _ASIDE, _PARTIAL) as aside:
        try:
            aside.chmod(0o755)
            shutil.copytree(run / EXPORT, aside, dirs_exist_ok=True)
            for name in ("spec.yaml", "metrics.json", "calibration.json"):
                if (run / name).is_file():
                    shutil.copy2(run / name, aside / name)
            while True:
                version = _next_version(models)
                (aside / "manifest.json").unlink(missing_ok=True)
                write_manifest(
                    aside,
                    "model",
                    {name: prints[name] for name in ("features", "model", "serve")},
                    {
                        "version": version,
                        "run": manifest["run"],
                        LEARNED: manifest.get(LEARNED),
                        "spec": spec.name,
                        "metrics": metrics,
                        "trained": manifest.get("trained", {}),
                        "trained_with": manifest.get("libraries", library_versions()),
                    },
                )
                share_tree(aside)
                sync_tree(aside)
                # Before the version can be seen: its number is gone, whatever comes.
                write_text(models / _LAST, f"{version}\n")
                try:
                    # Fails where another publisher has just taken the number: not all storage
                    # has locks.
                    os.rename(aside, models / str(version))
                    break
                except OSError:
                    if not (models / str(version)).exists():
                        raise
            sync_file(models)
            return version
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _next_version(models: Path) -> int:
    last = 0
    if (models / _LAST).is_file():
        # A damaged one tells nothing, and then the versions that stand must do.
        with contextlib.suppress(UserError, TypeError, ValueError, OverflowError):
            last = int(read_json(models / _LAST))
    return max([last, *versions(models)]) + 1
