"""Publishing: through the gate, then as the next version, whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys.artifacts import (
    library_versions,
    read_json,
    read_manifest,
    sync_file,
    sync_tree,
    write_manifest,
    write_text,
)
from recsys.errors import UserError
from recsys.spec import fingerprints, load
from recsys.spec.records import Spec
from training.evaluation import (
    EXPORT,
    check_features,
    evaluate,
    evaluate_export,
    features_of,
    stored_metrics,
)
from training.gate import Decision, Promote, Reject, decide

_LOG = logging.getLogger(__name__)
_LAST = ".last_version"


def publish(run: str | Path, models: str | Path, force: bool = False) -> Decision:
    """Publish a run as the next version of a models folder, if the gate lets it.

    The champion is the newest version that loads. It is evaluated on the challenger's test
    examples where it was built from the same features; else its stored metrics count.

    Args:
        run: A finished run.
        models: The models folder; made where it is missing.
        force: Publish in spite of the gate; the reasons are kept in the notes.

    Returns:
        `Promote` with version and path, or `Reject` with the reasons. A run that is already
        published is not published again.

    Raises:
        UserError: The run is unfinished, or the folders cannot be used.
    """
    run, models = Path(run), Path(models)
    manifest = read_manifest(run, "run")
    spec = load(run / "spec.yaml")
    for version in versions(models):
        known = _manifest_of(models / str(version))
        if known is None or known.get("run") != manifest["run"]:
            continue
        # The same run with other serving limits is another version.
        if known["fingerprints"].get("serve") == fingerprints(spec)["serve"]:
            return Promote(version, models / str(version), ("this run is published",), True)
    metrics = stored_metrics(run) or evaluate(run, "test")
    champion = _champion(models)
    against = None if champion is None else _compare(champion, run, manifest, spec)
    decision = decide(metrics, against, spec)
    for text in decision.notes if isinstance(decision, Promote) else decision.reasons:
        _LOG.info("gate: %s", text)
    if isinstance(decision, Reject):
        if not force:
            return decision
        decision = Promote(notes=tuple(f"waived: {reason}" for reason in decision.reasons))
    version = _write(run, models, manifest, spec, metrics)
    return replace(decision, version=version, path=models / str(version))


def versions(models: Path) -> list[int]:
    """Numbers of the versions that stand in a models folder, oldest first."""
    if not models.is_dir():
        return []
    return sorted(int(p.name) for p in models.iterdir() if p.name.isdecimal() and p.is_dir())


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder, "model")
    except UserError:
        return None


def _champion(models: Path) -> Path | None:
    for version in reversed(versions(models)):
        folder = models / str(version)
        if _manifest_of(folder) is not None and (folder / "saved_model.pb").is_file():
            return folder
        _LOG.warning("version %s is damaged and is passed over", folder)
    return None


def _compare(
    champion: Path, run: Path, manifest: dict[str, Any], spec: Spec
) -> dict[str, Any] | None:
    theirs = read_manifest(champion, "model")
    if theirs["fingerprints"].get("features") == manifest["fingerprints"]["features"]:
        folder = features_of(manifest, None)
        try:
            check_features(spec, folder)
            return evaluate_export(load(champion / "spec.yaml"), champion, folder, "test")
        except UserError as error:
            _LOG.warning(
                "the champion cannot be evaluated anew, its stored metrics count: %s", error.message
            )
    return theirs.get("metrics")


def _write(
    run: Path, models: Path, manifest: dict[str, Any], spec: Spec, metrics: dict[str, Any]
) -> int:
    models.mkdir(parents=True, exist_ok=True)
    prints = fingerprints(spec)
    aside = Path(tempfile.mkdtemp(prefix=".publish-", suffix=".partial", dir=models))
    aside.chmod(0o755)
    try:
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
                    "spec": spec.name,
                    "metrics": metrics,
                    "trained": manifest.get("trained", {}),
                    "trained_with": manifest.get("libraries", library_versions()),
                },
            )
            sync_tree(aside)
            try:
                # Fails where another publisher has just taken the number.
                os.rename(aside, models / str(version))
                break
            except OSError:
                if not (models / str(version)).exists():
                    raise
        write_text(models / _LAST, f"{version}\n")
        sync_file(models)
        return version
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _next_version(models: Path) -> int:
    last = 0
    if (models / _LAST).is_file():
        last = int(read_json(models / _LAST))
    return max([last, *versions(models)]) + 1
