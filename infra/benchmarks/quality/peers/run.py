"""Train one peer once: `python run.py MODEL --data DIR --setting S --seed N ... --out DIR`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from pathlib import Path

HOMES = {
    "lightgbm": "boosted_trees",
    "deepctr": "deepctr_models",
    "rechub": "rechub_models",
    "fuxictr": "fuxictr_models",
}


def main() -> None:
    """Train, and write predictions of validation and test, and result.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="library, or library-model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--setting", choices=["base", "shared"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("seed", 0), ("candidate", 0), ("epochs", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    # Libraries read these when they are imported.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(given.threads)

    import numpy as np
    import shared

    library, _, model = given.model.partition("-")
    options = shared.Options(given.seed, given.candidate, given.epochs, given.threads)
    began = time.perf_counter()
    data = shared.load(given.data, given.setting)
    answer = importlib.import_module(HOMES[library]).train(model, data, options)
    given.out.mkdir(parents=True, exist_ok=True)
    np.save(given.out / "validation.npy", answer.validation.astype(np.float32))
    np.save(given.out / "test.npy", answer.test.astype(np.float32))
    (given.out / "result.json").write_text(
        json.dumps(
            {
                "score": shared.mean_auc(data.splits["validation"].labels, answer.validation),
                "notes": answer.notes,
                "step_ms": answer.step_ms,
                "seconds": time.perf_counter() - began,
            }
        )
    )


if __name__ == "__main__":
    main()
