"""The command line: `recsys`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.interrupt import exit_code, interrupted, listen
from recsys import __version__
from recsys.errors import EXIT_REFUSED, EXIT_WRONG_USE, UserError, of_system

if TYPE_CHECKING:
    from recsys.spec import Spec

app = typer.Typer(
    name="recsys",
    help="Rank items for users by click and conversion at once: features, training, serving.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_INTERRUPTED = 130
"""What Typer ends with by itself on an interruption."""

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
Input = Annotated[
    Path, typer.Option("--input", metavar="IN", help="Raw logs: a folder, or one table's file.")
]
FeaturesFolder = Annotated[
    Path, typer.Option("--features", metavar="FEATURES", help="Folder of `recsys features`.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting of the spec, like train.epochs=3; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Ray workers; 0 trains in this process.")
]
Gpu = Annotated[bool, typer.Option("--gpu", help="Give each worker a GPU.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="ADDRESS", help="A running Ray cluster; default: a local one."
    ),
]
RunFeatures = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="FEATURES",
        help="Folder of `recsys features`; default: the run's own.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Publish a new version in any case; reasons of the gate against it are kept.",
    ),
]


class Engine(StrEnum):
    """Where the application runs."""

    local = "local"
    ray = "ray"


def _say(text: str = "") -> None:
    """Words for the user, on stderr, so that stdout holds results alone."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def _load(path: Path, settings: list[str] | None) -> Spec:
    from recsys.spec import change, load

    return change(load(path), settings or [], str(path))


def _require_workers(workers: int, gpu: bool, ray_address: str | None) -> None:
    if not workers and (gpu or ray_address is not None):
        raise UserError(
            "One process has no workers to give GPUs to, and no cluster.",
            expected="--workers N with --gpu or --ray-address",
            found="--workers 0",
            fix="Add --workers, or leave them out: TensorFlow alone takes the GPUs that it sees.",
            exit_code=EXIT_WRONG_USE,
        )


def _result(value: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        from recsys.artifacts import finite

        print(json.dumps(finite(value)))
    else:
        show(value)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Shown by --help as the program's own text."""
    if version:
        print(f"recsys {__version__}")
        raise typer.Exit()


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the world into.")],
    rows: Annotated[int, typer.Option(min=100, help="Impressions.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Same seed, same world.")] = 0,
    days: Annotated[int, typer.Option(min=3, help="Days, from 2026-01-01.")] = 10,
    dirt: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of duplicates and stray events.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Simulate a world: impressions, clicks and conversions by day, with known truth."""
    from infra.progress import Progress
    from recsys.world import simulate as run

    with Progress() as progress:
        manifest = run(
            out,
            rows=rows,
            seed=seed,
            days=days,
            dirt=dirt,
            progress=lambda done, total: progress("simulate", done, total),
        )

    def show(value: dict[str, Any]) -> None:
        best = value["best_auc"]
        rates = ", ".join(f"{name} {rate:.4f}" for name, rate in value["label_rates"].items())
        print(f"{value['rows']:,} impressions in {out} ({rates})")
        print("best possible AUC: " + ", ".join(f"{k} {v:.4f}" for k, v in best.items() if v))

    _result(manifest, as_json, show)


@app.command()
def check(spec: SpecPath, as_json: AsJson = False) -> None:
    """Check a spec: every fault at once, each with its place."""
    from recsys.errors import SpecError
    from recsys.spec import fingerprints, load

    try:
        loaded = load(spec)
    except SpecError as error:
        if as_json:
            faults = [
                {"where": f.where, "line": f.line, "message": f.message} for f in error.faults
            ]
            print(json.dumps({"ok": False, "faults": faults}))
            raise typer.Exit(EXIT_WRONG_USE) from None
        raise

    def show(value: dict[str, Any]) -> None:
        print(
            f"{spec} is sound: {len(loaded.features)} features, tasks "
            + ", ".join(f"{t.name}{f' (given {t.given})' if t.given else ''}" for t in loaded.tasks)
        )

    _result({"ok": True, "name": loaded.name, "fingerprints": fingerprints(loaded)}, as_json, show)


spec_app = typer.Typer(help="Write specs.", no_args_is_help=True)
app.add_typer(spec_app, name="spec")


@spec_app.command("infer")
def spec_infer(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="One table, one row an impression.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="SPEC", help="File to write; default: standard output.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The user's column; default: by name.")
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The item's column; default: by name.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The time's column; default: by name.")
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The column of what was shown together; default: by name."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="A label's column, 0 and 1; may be given again. Default: by name.",
        ),
    ] = None,
) -> None:
    """Write a spec by looking at a table: keys, labels, time, encodings."""
    from infra.infer import look_over
    from infra.report import show_inferred
    from infra.roles import Named
    from recsys.artifacts import write_text
    from recsys.spec import loads

    if output is not None and output.exists():
        raise UserError(
            "The output already exists.",
            where=str(output),
            fix="Name another file, or remove this one.",
        )
    found = look_over(table, Named(user, item, time, request, label or ()), output)
    spec = loads(found.text, str(output or "the inferred spec"))
    if output is None:
        print(found.text, end="")
    else:
        write_text(output, found.text)
        show_inferred(spec, found, table, output)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
)
def features(
    ctx: typer.Context,
    spec: SpecPath,
    input: Input,
    output: Annotated[
        Path, typer.Option(metavar="FEATURES", help="Folder to write the features into.")
    ],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Turn raw logs into features. Options after `--` go to Apache Beam as they are."""
    from infra.report import show_features
    from infra.stages import make_features

    loaded = _load(spec, settings)
    manifest = make_features(loaded, input, output, list(ctx.args))
    _result(manifest, as_json, lambda value: show_features(loaded, value, output))


@app.command()
def train(
    spec: SpecPath,
    features: FeaturesFolder,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    workers: Workers = 0,
    gpu: Gpu = False,
    ray_address: RayAddress = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Start from the weights of this finished run."),
    ] = None,
    eager: Annotated[
        bool, typer.Option("--eager", help="Run steps eagerly, with checks that name the layer.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say what bounds the run, and what to change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit the model; one process, or Ray workers."""
    _require_workers(workers, gpu, ray_address)
    from infra.report import show_training
    from infra.stages import fit

    result = fit(
        _load(spec, settings),
        features,
        output,
        workers=workers,
        gpu=gpu,
        ray_address=ray_address,
        resume=resume,
        warm_start=warm_start,
        eager=eager,
        profile=profile,
    )
    _result(result, as_json, lambda value: show_training(value, output))


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="train, validation or test.")
    ] = "test",
    features: RunFeatures = None,
    champion: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run or version to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run's exported model on a split."""
    from infra.report import show_metrics
    from infra.stages import measure

    _result(measure(run, split, features, champion), as_json, show_metrics)


@app.command()
def publish(
    run: RunFolder,
    models: Annotated[Path, typer.Option(metavar="MODELS", help="Folder of published versions.")],
    features: RunFeatures = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compare with the champion, then publish a new version or refuse with reasons (exit 3)."""
    from infra.report import decision_json, show_decision
    from infra.stages import gate

    decision = gate(run, models, force, features)
    _result(decision_json(decision), as_json, show_decision)
    if not decision_json(decision)["published"]:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def convert(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or of a published version.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to write the LiteRT model into.")
    ],
    features: RunFeatures = None,
    as_json: AsJson = False,
) -> None:
    """Convert a model to LiteRT for a device, checked against the SavedModel."""
    from infra.report import show_conversion
    from infra.stages import to_device

    _result(to_device(model, output, features), as_json, lambda v: show_conversion(v, output))


@app.command()
def serve(
    models: Annotated[Path, typer.Argument(metavar="MODELS", help="Folder of published versions.")],
    features: FeaturesFolder,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8501,
    engine: Annotated[Engine, typer.Option(help="One process, or Ray Serve.")] = Engine.local,
    replicas: Annotated[int, typer.Option(min=1, help="Processes under --engine ray.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests that a process works on at once.", show_default="one a core"
        ),
    ] = None,
    ray_address: RayAddress = None,
) -> None:
    """Serve the newest version; later ones are taken up while it runs."""
    if engine is Engine.local and (replicas > 1 or ray_address is not None):
        raise UserError(
            "One process has no replicas and no cluster.",
            expected="--engine ray with --replicas or --ray-address",
            found="--engine local",
            fix="Add --engine ray, or leave them out.",
            exit_code=EXIT_WRONG_USE,
        )
    from recsys.artifacts import read_manifest

    read_manifest(features, "features")
    # Until TensorFlow is there, nobody else has a word to say.
    _say("starting TensorFlow")
    from infra.quiet import load_tensorflow
    from serving import log_to_stderr
    from serving import serve as run

    load_tensorflow()
    log_to_stderr()
    run(
        models,
        features,
        host=host,
        port=port,
        engine=engine.value,
        threads=threads,
        replicas=replicas,
        ray_address=ray_address,
    )


@app.command()
def rank(
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="The request, a JSON file; - reads stdin.")
    ],
    url: Annotated[
        str, typer.Option(metavar="URL", help="Where the service listens.")
    ] = "http://127.0.0.1:8501",
    as_json: AsJson = False,
) -> None:
    """Send one request to a running service and print the ranked items."""
    from infra.report import show as show_table
    from serving.client import rank as send
    from serving.client import read_request, table

    body = read_request(request)

    def show(answer: dict[str, Any]) -> None:
        show_table(table(answer))

    _result(send(body, url), as_json, show)


@app.command()
def run(
    spec: SpecPath,
    input: Input,
    output: Annotated[
        Path, typer.Option(metavar="OUT", help="Folder for features, runs and models.")
    ],
    workers: Workers = 0,
    gpu: Gpu = False,
    ray_address: RayAddress = None,
    settings: Settings = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """All of it: features, train, evaluate, publish. What has not changed is skipped."""
    _require_workers(workers, gpu, ray_address)
    from infra.report import show_run
    from infra.stages import run_all

    result = run_all(
        _load(spec, settings),
        input,
        output,
        workers=workers,
        gpu=gpu,
        ray_address=ray_address,
        force=force,
        say=_say,
    )
    _result(result, as_json, show_run)
    if not result["decision"]["published"]:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for everything.")] = Path(
        "demo"
    ),
    rows: Annotated[int, typer.Option(min=5000, help="Impressions to simulate.")] = 200_000,
    workers: Workers = 2,
) -> None:
    """The tour: simulate, features, train, evaluate, publish, serve, rank one request."""
    from infra.demo import tour

    tour(out, rows, workers, say=_say)


_GOES_ON = {
    "train": " An unfinished training goes on with --resume.",
    "run": " The same command goes on from there.",
    "demo": " The same command goes on from there.",
}
"""What an interruption of a command leaves to be gone on with."""

_CLEANS_UP = {*_GOES_ON, "simulate", "features", "convert", "publish"}
"""Commands that a SIGTERM must not end before they have removed what is half-written."""


def main() -> None:
    """Entry point: errors of the user are words, not tracebacks."""
    listen(terminated=_command() in _CLEANS_UP)
    try:
        app()
    except UserError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail_interrupted()
    except SystemExit as stop:
        # Typer ends by itself on Ctrl-C, without a word.
        if stop.code == EXIT_INTERRUPTED and interrupted():
            _fail_interrupted()
        raise
    except Exception as error:
        if interrupted():
            _fail_interrupted()
        told = of_system(error) if isinstance(error, OSError) else None
        if told is None:
            raise
        _fail(str(told), told.exit_code)


def _command() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else ""


def _fail_interrupted() -> None:
    _fail("Interrupted." + _GOES_ON.get(_command(), ""), exit_code())


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
