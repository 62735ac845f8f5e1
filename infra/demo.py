"""The tour: the whole flow on a simulated world, ended by one ranked request over HTTP."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from infra.report import show_run
from infra.stages import run_all
from recsys.artifacts import MANIFEST, write_json
from recsys.errors import UserError
from recsys.spec import load


def tour(out: Path, rows: int, workers: int, say: Callable[[str], None]) -> None:
    """Simulate, run every stage, serve in a process of its own, rank one request, stop it.

    A world of as many rows that stands in `out` already is used again, and so is what was
    built from it.
    """
    started = time.monotonic()
    world = out / "world"
    spec_path = Path(str(resources.files("infra") / "specs" / "world.yaml"))
    _make_world(world, rows, say)
    result = run_all(load(spec_path), world, out, workers=workers, say=say)
    show_run(result)
    _rank_one(out, Path(result["models"]), Path(result["features"]), say)
    print(
        f"\nThe tour took {time.monotonic() - started:.0f} s. Everything lies in {out.resolve()}:"
    )
    for name, path in (
        ("raw logs", world),
        ("features", result["features"]),
        ("run", f"{result['run']} (tensorboard --logdir {result['run']}/logs)"),
        ("models", result["models"]),
        ("request", out / "request.json"),
    ):
        print(f"  {name:<9} {path}")
    print(
        "Keep the service up:\n"
        f"  .venv/bin/recsys serve {result['models']} --features {result['features']}\n"
        "and, in another terminal, rank:\n"
        f"  .venv/bin/recsys rank {out / 'request.json'}"
    )


def _make_world(world: Path, rows: int, say: Callable[[str], None]) -> None:
    from infra.progress import Progress
    from recsys.artifacts import read_manifest
    from recsys.world import simulate

    if (world / MANIFEST).exists():
        found = read_manifest(world, "world")["rows"]
        if found == rows:
            say("[bold]simulate[/bold]: unchanged, skipped")
            return
        raise UserError(
            "There is a world of another size.",
            where=str(world),
            expected=f"{rows} rows",
            found=f"{found} rows",
            fix="Name another folder, or remove this one.",
        )
    say("[bold]simulate[/bold]")
    with Progress() as progress:
        simulate(world, rows=rows, seed=0, progress=lambda d, t: progress("simulate", d, t))


def _rank_one(out: Path, models: Path, features: Path, say: Callable[[str], None]) -> None:
    from rich.console import Console

    from serving.client import rank, table
    from serving.example import example_request

    request = out / "request.json"
    body = example_request(load(features / "spec.yaml"), features)
    write_json(request, body)
    say("[bold]serve[/bold]")
    with running_service(models, features, out / "service.log") as url:
        say(f"[bold]rank[/bold]: POST {url}/v1/rank")
        Console().print(table(rank(body, url)))


class running_service:  # noqa: N801
    """A service in a process of its own for the length of a block; gives its address."""

    def __init__(self, models: Path, features: Path, log: Path, engine: str = "local") -> None:
        self._arguments = [
            sys.executable,
            "-m",
            "infra.cli",
            "serve",
            str(models),
            "--features",
            str(features),
            "--port",
            "0",
            "--engine",
            engine,
        ]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> str:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            text = self._log.read_text(errors="replace")
            if "http://" in text:
                return "http://" + text.split("http://", 1)[1].split()[0].rstrip("/.,;)")
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        self.__exit__()
        raise UserError(
            "The service did not start.",
            where=str(self._log),
            found=self._log.read_text(errors="replace")[-2000:],
        )

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=30)
