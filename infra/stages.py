"""The stages as the command line runs them, and all of them in a row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.progress import Progress
from infra.quiet import hushed, load_tensorflow
from recsys.artifacts import LEARNED, MANIFEST, read_json, read_manifest, write_json, write_text
from recsys.spec import Spec, dumps, fingerprint, fingerprints

STATE = "stages.json"


def make_features(
    spec: Spec, input: Path, output: Path, pipeline_args: list[str] | None = None
) -> dict[str, Any]:
    """Run the feature job; returns its manifest."""
    # Here and below, a wrong folder is told before TensorFlow takes its seconds.
    _listing(spec, input)
    load_tensorflow()
    from beam_jobs import run_features

    with Progress() as progress:
        return run_features(spec, input, output, pipeline_args or [], progress)


def fit(spec: Spec, features: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Train; returns the run's manifest, what validation says, and what a profiled run found.

    `validation` are the metrics of what was exported (with `train.refit`, of the model before),
    `calibration` the report by task, `profile` what bounds a run.
    """
    read_manifest(features, "features")
    load_tensorflow()
    from training import train
    from training.profile import FILE

    with Progress() as progress:
        manifest = train(spec, features, output, progress=progress, **options)
    manifest["validation"] = read_json(output / "metrics-validation.json")
    manifest["calibration"] = read_json(output / "calibration.json")
    if options.get("profile"):
        manifest["profile"] = read_json(output / FILE)
    return manifest


def measure(
    run: Path,
    split: str = "test",
    features: Path | None = None,
    champion: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run; returns its metrics."""
    from training.input import require_split

    require_split(split)
    read_manifest(run, "run")
    load_tensorflow()
    from training import evaluate

    return evaluate(run, split, features, champion)


def gate(run: Path, models: Path, force: bool = False, features: Path | None = None) -> Any:
    """Publish a run, or refuse; returns the decision."""
    read_manifest(run, "run")
    load_tensorflow()
    from training import publish

    return publish(run, models, force, features)


def to_device(model: Path, output: Path, features: Path | None = None) -> dict[str, Any]:
    """Convert a model to LiteRT; returns the folder's manifest."""
    load_tensorflow()
    from training import convert

    # The converter and the interpreter write to standard error from native code.
    with hushed():
        return convert(model, output, features)


def run_all(
    spec: Spec,
    input: Path,
    output: Path,
    *,
    workers: int = 0,
    gpu: bool = False,
    ray_address: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Features, train, evaluate, publish, each only where its inputs have changed.

    What each stage was last built from is kept in `OUTPUT/stages.json`. A run has a folder
    of its own for each spec and features, so an interrupted one is resumed and an earlier
    one is never overwritten.
    """
    from infra.report import best_epoch, counted, decision_json

    output.mkdir(parents=True, exist_ok=True)
    stages = _Stages(output / STATE, say)
    prints = fingerprints(spec)
    keys = {"features": fingerprint([prints["features"], _listing(spec, input)])}
    keys["train"] = fingerprint([keys["features"], prints["model"]])
    keys["evaluate"] = fingerprint([keys["train"], prints["evaluate"]])
    keys["publish"] = fingerprint([keys["evaluate"], prints["serve"], prints["gate"]])
    features, models = output / "features", output / "models"
    run = output / "runs" / keys["train"]

    # Rows that were few enough bad ones to go on with may be too many now.
    judged = stages.result("features")
    stricter = judged is not None and spec.data.bad_records < judged
    if stages.stale("features", keys["features"], features / MANIFEST, again=stricter):
        made = make_features(spec, input, features)
        stages.done("features", keys["features"], made, spec.data.bad_records)
        for line in counted(made):
            say(line)
        for warning in made.get("warnings", []):
            say(f"warning: {warning}")
    if stages.stale("train", keys["train"], run / MANIFEST):
        fitted = fit(
            spec,
            features,
            run,
            workers=workers,
            gpu=gpu,
            ray_address=ray_address,
            resume=run.exists() and any(run.iterdir()),
        )
        stages.done("train", keys["train"])
        say(best_epoch(fitted["trained"]))
    # The gate, slices and serving limits may have changed since, and those of now count.
    write_text(run / "spec.yaml", dumps(spec))
    if stages.stale("evaluate", keys["evaluate"], run / "metrics.json"):
        measure(run, features=features)
        stages.done("evaluate", keys["evaluate"])
    decision = stages.result("publish")
    # The folder may have been moved since: where the version lies is known by its number.
    version = _version(models, decision) / MANIFEST
    if stages.stale("publish", keys["publish"], version, again=force):
        decision = decision_json(gate(run, models, force, features))
        if decision["published"]:
            made = read_json(_version(models, decision) / MANIFEST)
            stages.done("publish", keys["publish"], made, decision)
    else:
        decision = {**decision, "path": str(_version(models, decision))}
    return {
        "features": str(features),
        "run": str(run),
        "models": str(models),
        "skipped": stages.skipped,
        "metrics": read_json(run / "metrics.json"),
        "decision": decision,
    }


class _Stages:
    """What each stage was last built from, on disk."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.skipped: list[str] = []

    def stale(self, stage: str, key: str, output: Path, again: bool = False) -> bool:
        """Whether the stage must run, as it must `again` in any case; says so either way.

        Features and a version must be those that the stage made: another command may have
        written there.
        """
        state = self._state.get(stage, {})
        fresh = state.get("key") == key and output.exists() and not again
        if fresh and stage in ("features", "publish"):
            fresh = _made(read_json(output)) == state.get("made")
        if fresh:
            self.skipped.append(stage)
        self._say(f"[bold]{stage}[/bold]" + (": unchanged, skipped" if fresh else ""))
        return not fresh

    def done(
        self, stage: str, key: str, manifest: dict[str, Any] | None = None, result: Any = None
    ) -> None:
        """Record that the stage was built from these inputs, with this manifest and answer."""
        self._state[stage] = {"key": key, "result": result}
        if manifest is not None:
            self._state[stage]["made"] = _made(manifest)
        write_json(self._path, self._state)

    def result(self, stage: str) -> Any:
        """What the stage answered when it was last done; None where it never was."""
        return self._state.get(stage, {}).get("result")


def _version(models: Path, decision: dict[str, Any] | None) -> Path:
    """Where the version of a decision lies."""
    return models / str((decision or {}).get("version", 0))


def _made(manifest: dict[str, Any]) -> list[Any]:
    """What tells features, or a version, from others that were built from the same spec."""
    return [manifest.get("created"), manifest.get("fingerprints"), manifest.get(LEARNED)]


def _listing(spec: Spec, folder: Path) -> list[Any]:
    """The files that the spec reads, by name, size and time of change."""
    from beam_jobs.plan import plan_of
    from beam_jobs.sources import resolve

    paths = {
        Path(file.path) for source in plan_of(spec).sources for file in resolve(folder, source)
    }
    return [
        (os.path.relpath(path, folder), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(paths)
    ]
