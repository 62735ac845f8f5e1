"""Latency of the ranking endpoint, over real HTTP: p50 and p99 in milliseconds.

    python -m infra.benchmarks.serving --models MODELS --features FEATURES
    python -m infra.benchmarks.serving                  # a stand-in model of the spec's inputs
    python -m infra.benchmarks.serving --swap           # also while a new version is taken up
    python -m infra.benchmarks.serving --clients 1 --clients 8      # also requests side by side

The stand-in looks every id up in a vocabulary and sums embeddings into a small tower, so that
the time of strings and lookups is that of a real model of the spec; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import recsys  # noqa: F401  (Keras switch first)
from recsys.artifacts import read_manifest, versions, write_folder, write_manifest
from recsys.spec import Spec, dumps, fingerprints, load
from recsys.spec.schema import OWNER_KEY, RawColumn, output_names, raw_columns
from serving.example import example_request
from serving.store import LocalStore

SPECS = Path(__file__).parent.parent / "specs"


def stand_in(spec: Spec, folder: Path, users: int = 1000, items: int = 10_000) -> None:
    """A MODELS and a FEATURES folder of the spec's raw columns, with made-up values."""
    rng = np.random.default_rng(0)
    columns = raw_columns(spec)
    with write_folder(folder / "features") as aside:
        (aside / "tables").mkdir()
        for owner, rows in (("user", users), ("item", items)):
            table: dict[str, Any] = {OWNER_KEY: [f"{row}" for row in range(rows)]}
            for column in columns:
                if column.owner == owner and column.dtype == "float32":
                    table[column.name] = rng.random(rows).astype(np.float32)
                elif column.owner == owner:
                    table[column.name] = [f"{value}" for value in rng.integers(0, 500, rows)]
            pq.write_table(pa.table(table), aside / "tables" / f"{owner}.parquet")
        (aside / "spec.yaml").write_text(dumps(spec))
        write_manifest(aside, "features", {"features": fingerprints(spec)["features"]}, {})
    with write_folder(folder / "models" / "1") as aside:
        _save(spec, columns, aside)
        (aside / "spec.yaml").write_text(dumps(spec))
        write_manifest(aside, "model", fingerprints(spec), {"version": 1})


def _save(spec: Spec, columns: tuple[RawColumn, ...], folder: Path) -> None:
    import tensorflow as tf

    class StandIn(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lookups = {
                column.name: tf.lookup.StaticHashTable(
                    tf.lookup.KeyValueTensorInitializer(
                        [f"{value}" for value in range(500)], tf.range(1, 501)
                    ),
                    0,
                )
                for column in columns
                if column.dtype == "string"
            }
            self.rows = tf.Variable(tf.random.normal([501 * len(self.lookups), 16]))
            self.first = tf.Variable(tf.random.normal([16 * len(columns), 128]) / 50)
            self.second = tf.Variable(tf.random.normal([128, 1]) / 20)

        @tf.function(
            input_signature=[tf.TensorSpec([None], column.dtype, column.name) for column in columns]
        )
        def raw(self, *values: Any) -> dict[str, Any]:
            given = {column.name: value for column, value in zip(columns, values, strict=True)}
            ids = tf.stack(
                [
                    table.lookup(given[name]) + 501 * at
                    for at, (name, table) in enumerate(self.lookups.items())
                ],
                axis=1,
            )
            numbers = [given[column.name] for column in columns if column.dtype == "float32"]
            parts = [tf.reshape(tf.gather(self.rows, ids), [-1, 16 * len(self.lookups)])]
            if numbers:
                dense = tf.stack(numbers, axis=1)
                dense = tf.where(tf.math.is_nan(dense), 0.0, dense)
                parts.append(tf.repeat(dense, 16, axis=1))
            hidden = tf.nn.relu(tf.concat(parts, axis=1) @ self.first)
            probability = tf.sigmoid(hidden @ self.second)[:, 0]
            return {name: probability for name in (*output_names(spec), "score")}

    model = StandIn()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.raw})


def start(models: Path, features: Path, engine: str, replicas: int) -> tuple[subprocess.Popen, str]:
    """The service in a process of its own, and its URL once it answers."""
    program = (
        "import sys; from serving import serve; serve(sys.argv[1], sys.argv[2], port=0, "
        "engine=sys.argv[3], replicas=int(sys.argv[4]), ready=lambda url: print(url, flush=True))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(models), str(features), engine, str(replicas)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("http"):
            # What comes later must not fill the pipe.
            threading.Thread(target=child.stdout.read, daemon=True).start()
            return child, line.strip()
    raise SystemExit("The service did not start; see above.")


def ask(session: httpx.Client, url: str, content: bytes) -> tuple[float, dict[str, Any]]:
    """One request: the milliseconds that it took the client, and the answer."""
    began = time.perf_counter()
    answer = session.post(f"{url}/v1/rank", content=content)
    elapsed = (time.perf_counter() - began) * 1000
    answer.raise_for_status()
    return elapsed, answer.json()


def measure(
    url: str, body: dict[str, Any], requests: int, clients: int = 1
) -> tuple[np.ndarray, np.ndarray, float]:
    """Send requests, each client one after the other.

    Returns:
        Milliseconds of each request as its client and as the service sees it, and requests a
        second over all clients.
    """
    content = orjson.dumps(body)
    share = -(-requests // clients)
    warm = threading.Barrier(clients)

    def send(_: int) -> tuple[list[tuple[float, float]], float, float]:
        with httpx.Client(timeout=30) as session:
            for _ in range(share // 10):
                ask(session, url, content)
            warm.wait()
            began, found = time.perf_counter(), []
            for _ in range(share):
                elapsed, answer = ask(session, url, content)
                found.append((elapsed, answer["took_ms"]))
            return found, began, time.perf_counter()

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(send, range(clients)))
    seen, took = np.array([pair for found, _, _ in parts for pair in found]).T
    spent = max(end for *_, end in parts) - min(began for _, began, _ in parts)
    return seen, took, len(seen) / spent


def summary(values: np.ndarray) -> list[str]:
    """Median, 99th percentile and longest, as the table shows them."""
    return [f"{cell:.2f}" for cell in (*np.percentile(values, (50, 99)), values.max())]


def publish_again(models: Path) -> int:
    """The newest version once more, as the next one; its number."""
    newest = versions(models)[0]
    source = models / str(newest)
    manifest = read_manifest(source, "model")
    with write_folder(models / str(newest + 1)) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)
        manifest["version"] = newest + 1
        write_manifest(aside, "model", manifest["fingerprints"], manifest)
    return newest + 1


def measure_swap(
    url: str, body: dict[str, Any], models: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Milliseconds of the requests sent while a new version is noticed, loaded and taken up.

    Returns:
        As the client and as the service sees each request from the publication up to the first
        answer of the new version, and as the client sees the hundred after it.
    """
    content = orjson.dumps(body)
    seen: list[float] = []
    took: list[float] = []
    after: list[float] = []
    version = publish_again(models)
    with httpx.Client(timeout=30) as session:
        while len(after) < 100:
            elapsed, answer = ask(session, url, content)
            if answer["model_version"] == version:
                after.append(elapsed)
            else:
                seen.append(elapsed)
                took.append(answer["took_ms"])
    return np.array(seen), np.array(took), np.array(after)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument(
        "--spec",
        type=Path,
        default=SPECS / "world.yaml",
        help="spec of the stand-in, without counters",
    )
    parser.add_argument("--engine", choices=["local", "ray"], action="append")
    parser.add_argument("--replicas", type=int, default=1, help="of --engine ray")
    parser.add_argument("--candidates", type=int, action="append")
    parser.add_argument(
        "--clients", type=int, action="append", help="requests that are under way side by side"
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument(
        "--swap", action="store_true", help="also measure while a new version is taken up"
    )
    options = parser.parse_args()
    if (options.models is None) != (options.features is None):
        parser.error("give both --models and --features, or neither")
    folder = None
    if options.models is None:
        folder = Path(tempfile.mkdtemp(prefix="recsys-serving-"))
        stand_in(load(options.spec), folder)
        options.models, options.features = folder / "models", folder / "features"
    if options.swap and folder is None:
        # Versions are published below: never into the caller's folder.
        newest = str(versions(options.models)[0])
        folder = Path(tempfile.mkdtemp(prefix="recsys-serving-"))
        shutil.copytree(options.models / newest, folder / "models" / newest)
        options.models = folder / "models"
    spec = LocalStore(options.features).spec
    result = Table(title=f"POST /v1/rank, spec {spec.name}, milliseconds")
    columns = (
        "engine",
        "candidates",
        "clients",
        "p50",
        "p99",
        "longest",
        "in the service p50",
        "p99",
        "longest",
        "a second",
    )
    for name in columns:
        result.add_column(name, justify="left" if name == "engine" else "right")
    for engine in options.engine or ["local"]:
        child, url = start(options.models, options.features, engine, options.replicas)
        try:
            for count, clients in itertools.product(
                options.candidates or [200], options.clients or [1]
            ):
                body = example_request(spec, options.features, n=count)
                asked = str(len(body["candidates"]))
                seen, took, rate = measure(url, body, options.requests, clients)
                result.add_row(
                    engine, asked, str(clients), *summary(seen), *summary(took), f"{rate:.0f}"
                )
                if options.swap:
                    seen, took, after = measure_swap(url, body, options.models)
                    result.add_row(
                        f"{engine}, {len(seen)} while a version is swapped",
                        asked,
                        "1",
                        *summary(seen),
                        *summary(took),
                    )
                    result.add_row(f"{engine}, {len(after)} after it", asked, "1", *summary(after))
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(timeout=60)
    Console(width=160).print(result)
    if folder is not None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
