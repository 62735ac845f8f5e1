"""Quality of ours and of other libraries on the same rows, features, split and tuning budget.

    python -m infra.benchmarks.quality --spec infra/specs/kuairand.yaml --input DIR --out OUT \\
        --peer-python PEERS/bin/python --deepctr-path DEEPCTR --seeds 5 --epochs 2 --write-docs
    python -m infra.benchmarks.quality --domain other --out OUT --peer-python PEERS/bin/python
    python -m infra.benchmarks.quality --domain flights --out OUT --peer-python PEERS/bin/python
    python -m infra.benchmarks.quality --table TABLE.csv --out OUT --peer-python PEERS/bin/python
    python -m infra.benchmarks.quality --spec SPEC --input DIR --out OUT --ablate --seeds 3

Every result is a line of OUT/results.jsonl; with --resume what is there is not done again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import get_args

from infra.benchmarks.docs import ROOT, write_between
from infra.benchmarks.quality import flights, other_domain, report
from infra.benchmarks.quality.bench import PEERS, Bench, Options, make_features
from infra.benchmarks.quality.variants import variants
from infra.infer import infer
from recsys.errors import UserError
from recsys.spec import Spec, fingerprints, load, loads

DOCS = ROOT / "docs"


def main() -> int:
    """Run what was asked for; 0 if all trainings succeeded."""
    given = _parse()
    options = Options(
        given.seeds,
        given.trials,
        given.epochs,
        given.threads,
        given.peer_python,
        given.deepctr_path,
    )
    if any(given.out.glob("**/results.jsonl")) and not given.resume:
        raise UserError(
            "The output holds results.",
            where=str(given.out),
            exit_code=2,
            fix="Go on with them: add --resume. Or name another folder.",
        )
    if given.table is not None:
        given.input = given.table.parent
        spec = loads(infer(given.table), given.table.name)
        benches = [_compare(given, options, spec, given.out, "quality-table")]
    elif given.domain != "spec":
        benches = _inferred(given, options)
    else:
        spec = load(given.spec)
        benches = [
            _ablate(given, options, spec)
            if given.ablate
            else _compare(given, options, spec, given.out)
        ]
    failed = [what for bench in benches for what in bench.failed]
    if failed:
        print(f"{len(failed)} trainings failed:", *failed, sep="\n  ")
    return int(bool(failed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m infra.benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--domain",
        choices=["spec", "other", "trees", "flights"],
        default="spec",
        help="the data of --spec, or tables whose spec is inferred: simulated, or of flights",
    )
    parser.add_argument("--spec", type=Path, default=Path("infra/specs/kuairand.yaml"))
    parser.add_argument("--table", type=Path, help="a table of yours, whose spec is inferred")
    parser.add_argument("--input", type=Path, help="raw logs, to build features from")
    parser.add_argument("--features", type=Path, help="features that were built already")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", help=f"ours and of {', '.join(PEERS)}; by default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--trials",
        type=int,
        default=2,
        choices=[1, 2, 3, 4],
        help="learning rates that each peer tries on validation with seed 0",
    )
    parser.add_argument("--epochs", type=int, default=3, help="of peers, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=150_000, help="rows of the other domains")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="Python with infra/benchmarks/requirements-quality.txt",
    )
    parser.add_argument("--deepctr-path", default="", help="folder into which DeepCTR was put")
    parser.add_argument("--ablate", action="store_true", help="variants of ours, no peers")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    inferred = given.table is not None or given.domain != "spec"
    if not inferred and (given.input is None) == (given.features is None):
        parser.error("give one of --input and --features")
    if given.table is not None and (given.domain != "spec" or given.write_docs):
        parser.error("--table goes with neither --domain nor --write-docs")
    default = ["ours", "lightgbm"] if inferred else ["ours", *PEERS]
    given.models = given.models.split(",") if given.models else default
    unknown = set(given.models) - {"ours", *PEERS}
    if unknown:
        parser.error(f"unknown models: {', '.join(sorted(unknown))}")
    return given


def _compare(
    given: argparse.Namespace, options: Options, spec: Spec, out: Path, name: str = "quality"
) -> Bench:
    bench = Bench(spec, _features(given, spec, out), out, options)
    bench.models(given.models)
    found = report.lines([r for r in bench.results if r["model"] in given.models])
    if not found:
        return bench
    slices = [rows for rows in found[0].results[0]["test"] if rows != "all"]
    text = report.table(spec, found)
    for rows in slices:
        text += f"\nOnly {rows}:\n\n" + report.table(spec, found, rows)
    report.plot(spec, found, out / "plot.png")
    if name == "quality":
        text += "\n![AUC by model](benchmarks-quality.png)\n"
    _publish(given, out, name, text)
    if given.write_docs and name == "quality":
        shutil.copyfile(out / "plot.png", DOCS / "benchmarks-quality.png")
    return bench


def _ablate(given: argparse.Namespace, options: Options, spec: Spec) -> Bench:
    shipped = Bench(spec, _features(given, spec, given.out), given.out, options)
    prints = fingerprints(spec)["features"]
    found = variants(spec)
    for seed in range(given.seeds):
        for name, variant in found.items():
            features = shipped.features
            if fingerprints(variant)["features"] != prints:
                if given.input is None:
                    print(f"{name}: needs other features, so --input; left out")
                    continue
                features = given.out / f"features-{name.replace(' ', '-')}"
                make_features(variant, given.input, features, features.with_suffix(".yaml"))
            bench = Bench(variant, features, given.out, options, shipped.failed)
            bench.results = shipped.results
            bench.ours(name, variant, seed)
    text = report.table(spec, report.lines(shipped.results), steps=True)
    _publish(given, given.out, "quality-ablation", text)
    return shipped


def _inferred(given: argparse.Namespace, options: Options) -> list[Bench]:
    benches = []
    table = flights.TABLE if given.domain == "flights" else other_domain.TABLE
    for layout in get_args(other_domain.Layout):
        out = given.out / layout
        if not (out / "data").is_dir():
            out.mkdir(parents=True, exist_ok=True)
            if given.domain == "flights":
                package = flights.find_package(options.peer_python)
                flights.generate(out / "data", layout, package, given.rows)
            else:
                response: other_domain.Response = "trees" if given.domain == "trees" else "curves"
                other_domain.generate(out / "data", layout, given.rows, response=response)
        given.input = out / "data"
        spec = loads(infer(given.input / table), table)
        benches.append(_compare(given, options, spec, out, f"quality-{given.domain}-{layout}"))
    return benches


def _features(given: argparse.Namespace, spec: Spec, out: Path) -> Path:
    if given.features is not None and given.domain == "spec":
        return given.features
    make_features(spec, given.input, out / "features", out / "spec.yaml")
    return out / "features"


def _publish(given: argparse.Namespace, out: Path, name: str, text: str) -> None:
    (out / "table.md").write_text(text)
    print(text)
    if given.write_docs:
        write_between(DOCS / "benchmarks.md", name, text)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
