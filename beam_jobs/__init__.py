"""Raw logs to features, on Apache Beam and TensorFlow Transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import recsys  # noqa: F401  (Keras switch first)
from recsys.spec.records import Spec

__all__ = ["run_features"]


def run_features(
    spec: Spec,
    input: str | Path,
    output: str | Path,
    pipeline_args: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Build the features folder of a spec from raw logs; see `beam_jobs.job.run_features`.

    Beam and TensorFlow are imported by the call, not by the package.
    """
    from beam_jobs.job import run_features as run

    return run(spec, input, output, pipeline_args=pipeline_args, progress=progress)
