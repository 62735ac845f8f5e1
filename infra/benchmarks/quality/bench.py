"""Runs trainings one after another, each a process of its own, and keeps their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.benchmarks.quality.report import OURS, Result, chosen, read_results
from infra.benchmarks.quality.rows import Keys, read_keys, write_shared
from infra.benchmarks.quality.scores import score, selection
from infra.benchmarks.quality.variants import with_seed
from recsys.artifacts import read_json, write_text
from recsys.errors import UserError
from recsys.spec import Spec, dumps

PEERS = (
    "lightgbm",
    "deepctr-esmm",
    "deepctr-mmoe",
    "deepctr-ple",
    "rechub-esmm",
    "rechub-mmoe",
    "rechub-ple",
    "rechub-aitm",
    "fuxictr-deepfm",
    "fuxictr-dcnv2",
)
SETTINGS = ("base", "shared")
AS_SHIPPED = "spec"
SCRIPT = Path(__file__).parent / "peers" / "run.py"


@dataclass(frozen=True)
class Options:
    """How to train: seeds, candidates tried by peers, epochs at most, threads, and whose Python."""

    seeds: int = 5
    trials: int = 2
    epochs: int = 3
    threads: int = 1
    peer_python: str = sys.executable
    deepctr_path: str = ""


@dataclass
class Bench:
    """One spec's features, and the results on them so far (a line each in `results.jsonl`)."""

    spec: Spec
    features: Path
    out: Path
    options: Options
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self._path = self.out / "results.jsonl"
        self.results = read_results(self._path)
        self._keys: dict[str, Keys] = {}

    def models(self, names: list[str]) -> None:
        """Train ours and peers: tune on the first seed, then seed by seed, all of them."""
        if any(name != OURS for name in names) and not (self.out / "shared").is_dir():
            write_shared(self.spec, self.features, self.out / "shared")
        for seed in range(self.options.seeds):
            for name in names:
                if name == OURS:
                    self.ours(OURS, self.spec, seed)
                    continue
                for setting in SETTINGS if self._computed else SETTINGS[:1]:
                    self._peer(name, setting, seed)

    def ours(self, model: str, spec: Spec, seed: int) -> None:
        """Train a spec with a seed, and score it through its export."""
        folder = _slug(f"{model}-{seed}")
        spec_file = self.out / "specs" / f"{folder}.yaml"
        spec_file.parent.mkdir(exist_ok=True)
        spec = with_seed(spec, seed)
        write_text(spec_file, dumps(spec))
        self._record(
            {"model": model, "setting": AS_SHIPPED, "seed": seed, "candidate": 0},
            spec,
            [
                sys.executable,
                "-m",
                "infra.benchmarks.quality.ours",
                str(spec_file),
                "--features",
                str(self.features),
                "--run",
                str(self.out / "runs" / folder),
            ],
            {},
        )

    @property
    def _computed(self) -> bool:
        columns = read_json(self.out / "shared" / "columns.json")
        return any(c["computed"] for kind in ("ids", "numbers") for c in columns[kind])

    def _peer(self, name: str, setting: str, seed: int) -> None:
        own = [r for r in self.results if (r["model"], r["setting"]) == (name, setting)]
        # Candidates are compared at the first seed; later seeds take the one that won.
        candidates = range(self.options.trials) if seed == 0 else [chosen(own)] if own else []
        options, environment = self.options, {}
        python = options.peer_python
        if name.startswith("deepctr"):
            python = sys.executable
            environment = {"PYTHONPATH": options.deepctr_path, "TF_USE_LEGACY_KERAS": "1"}
        for candidate in candidates:
            self._record(
                {"model": name, "setting": setting, "seed": seed, "candidate": candidate},
                self.spec,
                [
                    python,
                    str(SCRIPT),
                    name,
                    "--data",
                    str(self.out / "shared"),
                    "--setting",
                    setting,
                    "--seed",
                    str(seed),
                    "--candidate",
                    str(candidate),
                    "--epochs",
                    str(options.epochs),
                    "--threads",
                    str(options.threads),
                ],
                environment,
            )

    def _record(
        self, key: dict[str, Any], spec: Spec, command: list[str], environment: dict[str, str]
    ) -> None:
        if any(all(r[name] == value for name, value in key.items()) for r in self.results):
            return
        name = _slug("-".join(str(value) for value in key.values()))
        target, log = self.out / "predictions" / name, self.out / "logs" / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        say = " ".join(f"{k} {v}" for k, v in key.items())
        threads = {
            n: str(self.options.threads)
            for n in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        }
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        began = time.perf_counter()
        with log.open("w") as file:
            done = subprocess.run(
                [*command, "--out", str(target)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, **quiet, **environment},
                check=False,
            )
        took = time.perf_counter() - began
        if done.returncode != 0:
            self.failed.append(say)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            print(f"FAILED {say} after {took:.0f} s; {log} ends:\n{tail}", flush=True)
            return
        result: Result = {**key, **read_json(target / "result.json")}
        for split in ("validation", "test"):
            result[split] = score(spec, self._keys_of(split), np.load(target / f"{split}.npy"))
        result["selection"] = selection(spec, result["validation"])
        self.results.append(result)
        with self._path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        aucs = ", ".join(
            f"{task.name} {result['validation']['all'][task.name]['auc']:.4f} validation "
            f"{result['test']['all'][task.name]['auc']:.4f} test"
            for task in spec.tasks
        )
        print(f"{say}: AUC {aucs}; {took:.0f} s", flush=True)

    def _keys_of(self, split: str) -> Keys:
        if split not in self._keys:
            self._keys[split] = read_keys(self.spec, self.features, split)
        return self._keys[split]


def make_features(spec: Spec, input: Path, features: Path, spec_file: Path) -> None:
    """Build a features folder in a process of its own; one that is there is kept."""
    if features.is_dir():
        return
    spec_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(spec_file, dumps(spec))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "infra.cli",
            "features",
            str(spec_file),
            "--input",
            str(input),
            "--output",
            str(features),
        ],
        check=False,
    )
    if done.returncode != 0:
        raise UserError("The features could not be built; see above.", where=str(input))


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)
