"""The feature job: raw logs to a features folder, in two pipelines.

The first joins and divides the rows, and knows by its end whether the data are fit to learn
from; the second learns the transform graph and writes the examples.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.artifacts import (
    LEARNED,
    MANIFEST,
    read_json,
    write_folder,
    write_json,
    write_manifest,
)
from recsys.errors import UserError
from recsys.spec import dumps, fingerprint, fingerprints
from recsys.spec.records import Spec
from recsys.spec.schema import SPLITS

if TYPE_CHECKING:
    from beam_jobs.plan import Owner

Progress = Callable[[str, int, int], None]

BYTES_PER_SHARD = 4 << 20
MOST_SHARDS = 256
FEWEST_SHARDS = 4


def run_features(
    spec: Spec,
    input: str | Path,
    output: str | Path,
    pipeline_args: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the features folder of a spec from raw logs, whole or not at all.

    Args:
        spec: The spec.
        input: The folder that the spec's paths are relative to, or one file of impressions.
        output: The features folder. One that stands there is replaced; anything else is not.
        pipeline_args: Any Beam pipeline option; the local runner in memory by default.
        progress: Called with a stage (`read`, `join`, `analyze`, `transform`, `write`), parts
            done and parts in all.

    Returns:
        The manifest.

    Raises:
        UserError: Wrong input: no files, a missing column, a damaged file, too many bad
            records, an empty split; or an unknown pipeline option.
    """
    output = Path(output)
    with write_folder(output, replace=_may_replace(output)) as folder:
        return _Job(spec, Path(input), output, folder, list(pipeline_args), progress).run()


def _may_replace(output: Path) -> bool:
    try:
        return read_json(output / MANIFEST).get("kind") == "features"
    except (UserError, OSError, AttributeError):
        return False


class _Job:
    def __init__(
        self,
        spec: Spec,
        input: Path,
        output: Path,
        folder: Path,
        pipeline_args: list[str],
        progress: Progress | None,
    ) -> None:
        from beam_jobs.plan import plan_of

        self.spec, self.input, self.output, self.folder = spec, input, output, folder
        self.pipeline_args, self.progress = pipeline_args, progress
        self.plan = plan_of(spec)
        self.scratch = folder / ".scratch"
        self.joined = self.scratch / "joined"
        self.name = uuid.uuid4().hex
        self.warnings: list[str] = []
        self.done: dict[str, int] = {}
        self.all: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        # What is wrong with the files is told before Beam is imported, and what is wrong with
        # the rows before TensorFlow is: each takes seconds.
        reads, shards = self._look()
        from beam_jobs import runner

        with runner.listening(self.name, self._tick):
            # Items and users are joined shard by shard, and each shard of each split is written.
            self._expect(read=sum(map(len, reads.values())), join=5 * shards)
            self._join(reads, shards)
            self._complete("join")
            found = self._judge()
            self._transform()
        self._expect(write=1)
        manifest = self._finish(found)
        self._tick("write")
        return manifest

    def _look(self) -> tuple[dict[str, list[Any]], int]:
        """What there is to read, checked, and how many shards it is worth."""
        from beam_jobs import sources

        found = {source.name: sources.resolve(self.input, source) for source in self.plan.sources}
        files = {name: sources.filled(some) for name, some in found.items()}
        for name, some in found.items():
            empty = [file.path for file in some if file not in files[name]]
            if empty:
                self.warnings.append(
                    f"{len(empty):,} of {len(some):,} files of {name} are empty: {empty[0]}"
                    + (" and others" if len(empty) > 1 else "")
                )
        for source in self.plan.sources:
            self._require_outside(files[source.name], source.name)
            sources.check(files[source.name], source)
        shown = self.plan.impressions
        if shown.whole and sources.tells_moments(files[shown.name], shown):
            self.plan = replace(self.plan, impressions=replace(shown, whole=False))
        most = {"impressions": self.spec.data.max_rows}
        reads = {
            source.name: sources.tasks(files[source.name], source, most.get(source.name))
            for source in self.plan.sources
        }
        size = sum(Path(file.path).stat().st_size for some in files.values() for file in some)
        shards = min(MOST_SHARDS, max(FEWEST_SHARDS, -(-size // BYTES_PER_SHARD)))
        return reads, shards

    def _require_outside(self, files: Sequence[Any], name: str) -> None:
        for folder in (self.output.resolve(), self.folder.resolve()):
            for file in files:
                if folder in Path(file.path).resolve().parents:
                    raise UserError(
                        f"The output lies in a folder that is read for {name}.",
                        where=file.path,
                        expected="an output outside of the logs",
                        found=str(self.output),
                        fix="Name another output, or a narrower path in the spec.",
                    )

    def _join(self, reads: dict[str, list[Any]], shards: int) -> None:
        from beam_jobs import runner, steps
        from beam_jobs.count_past import CountPast
        from beam_jobs.plan import IMPRESSION, TABLE_KEY, USER

        plan, ledger = self.plan, steps.Ledger()
        meet = IMPRESSION if self.spec.data.keys.impression else USER
        tables = self.folder / "tables"
        with runner.pipeline(self.pipeline_args) as root:

            def read(source: Any, key: str) -> Any:
                return root | f"Read {source.name}" >> steps.ReadSource(
                    reads[source.name], source, key, shards, self.name, ledger
                )

            logs = {"impressions": read(plan.impressions, meet)}
            logs |= {name: read(source, IMPRESSION) for name, source in plan.actions.items()}
            owned = {
                owner: {"table": read(source, TABLE_KEY)} for owner, source in plan.tables.items()
            }
            rows = logs | "Attribute actions" >> steps.AttributeActions(plan, shards, ledger)
            bounds = steps.day_bounds(rows, plan)
            for owner in ("item", "user"):
                join = steps.JoinTable(plan, owner, shards, self.name, ledger, bounds)
                rows, serving = {"shown": rows, **owned.get(owner, {})} | f"Join {owner}" >> join
                _ = serving | f"Serve {owner}" >> steps.WriteServing(tables / f"{owner}.parquet")
            if plan.counters:
                rows = rows | "Count past" >> CountPast(plan, shards, tables, bounds)
            rows = rows | "Divide rows" >> steps.DivideRows(plan, shards, ledger)
            _ = rows | "Write shards" >> steps.WriteShards(plan, shards, self.joined, self.name)
            ledger.write(self.folder / "dead_letter", self.scratch / "counts.json", shards)

    def _judge(self) -> dict[str, Any]:
        """What the first pipeline found, if the data are fit to learn from."""
        from beam_jobs import judge
        from beam_jobs.plan import OWNERS

        counts = read_json(self.scratch / "counts.json")
        judge.require_good_records(counts, self.plan, self.folder / "dead_letter")
        splits = {
            split: read_json(self.joined / f"{split}.json")
            if (self.joined / f"{split}.json").exists()
            else {"rows": 0}
            for split in SPLITS
        }
        rows = {name: found["rows"] for name, found in splits.items()}
        judge.require_rows(rows, counts, self.spec, self.joined)
        warnings = self.warnings + [
            f"the {owner} table has no rows" for owner in OWNERS if self._write_missing_table(owner)
        ]
        joined = sum(rows.values()) + counts.get("outside_split", 0)
        warnings += judge.require_known(joined, counts, self.plan, self.folder)
        labels: dict[str, dict[str, float]] = {
            name: found.get("labels", {}) for name, found in splits.items()
        }
        judge.require_matches(counts, self.plan)
        warnings += judge.doubtful_duplicates(counts, self.plan)
        warnings += judge.doubtful_actions(counts, self.plan)
        warnings += judge.without_label(labels, counts, self.spec)
        warnings += [
            f"no training row has the label {task!r}: there is nothing to learn of it"
            for task in judge.unlearnable(labels, self.spec)
        ]
        return {"counts": counts, "splits": splits, "warnings": warnings}

    def _write_missing_table(self, owner: Owner) -> bool:
        """Write an owner's table without rows, where no shard had any; whether that was so."""
        path = self.folder / "tables" / f"{owner}.parquet"
        if path.exists():
            return False
        from beam_jobs.serving_tables import serving_rows
        from beam_jobs.sinks import write_parquet

        write_parquet(serving_rows(None, None, [], owner, self.plan), path)
        return True

    def _transform(self) -> None:
        from beam_jobs import runner

        runner.use_cores()
        from beam_jobs.examples import TransformExamples, count_batches

        self._expect(analyze=1, transform=count_batches(self.joined))
        with runner.pipeline(self.pipeline_args) as root:
            _ = root | "Transform" >> TransformExamples(
                self.plan, self.joined, self.folder, self.scratch / "transform", self.name
            )

    def _finish(self, found: dict[str, Any]) -> dict[str, Any]:
        import shutil

        import tensorflow_transform as tft

        from beam_jobs import judge, sinks, transform
        from beam_jobs.validate import DEAD_LETTER

        folder, splits = self.folder, found["splits"]
        if not (folder / "dead_letter").exists():
            sinks.write_parquet(
                DEAD_LETTER.empty_table(), folder / "dead_letter" / "part-00000.parquet"
            )
        write_json(
            folder / "statistics.json",
            {name: split.pop("columns") for name, split in splits.items()},
        )
        transform.write_schema(self.spec, folder)
        (folder / "spec.yaml").write_text(dumps(self.spec), encoding="utf-8")
        content = {
            "spec": self.spec.name,
            "rows": {name: split["rows"] for name, split in splits.items()},
            "tables": transform.rows_of_tables(
                self.spec, tft.TFTransformOutput(str(folder / "transform"))
            ),
            "labels": {name: split["labels"] for name, split in splits.items()},
            "time_range": {name: split["time_range"] for name, split in splits.items()},
            "counts": judge.tidy(found["counts"]),
            "warnings": found["warnings"] + _without_values(folder),
            "counters": {
                feature.name: {
                    "default": read_json(folder / "tables" / f".counter-{feature.name}.json"),
                }
                for feature in self.plan.counters
            },
        }
        content[LEARNED] = _learned(folder, content)
        for feature in self.plan.counters:
            (folder / "tables" / f".counter-{feature.name}.json").unlink()
        shutil.rmtree(self.scratch)
        write_manifest(
            folder, "features", {"features": fingerprints(self.spec)["features"]}, content
        )
        return read_json(folder / MANIFEST)

    def _expect(self, **parts: int) -> None:
        self.all.update(parts)
        for stage in parts:
            self._say(stage)

    def _complete(self, stage: str) -> None:
        self.done[stage] = self.all[stage]
        self._say(stage)

    def _tick(self, stage: str) -> None:
        self.done[stage] = self.done.get(stage, 0) + 1
        self._say(stage)

    def _say(self, stage: str) -> None:
        if self.progress is not None:
            total = self.all.get(stage, 0)
            self.progress(stage, min(self.done.get(stage, 0), total), total)


def _learned(folder: Path, content: Mapping[str, Any]) -> str:
    """Fingerprint of the vocabularies, and of the training rows from which numbers were learned.

    Of the rows, what statistics.json tells of their columns stands for them.
    """
    assets = sorted((folder / "transform" / "transform_fn" / "assets").glob("*"))
    words = []
    for path in assets:
        with open(path, "rb") as file:
            words.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    train = [content[name]["train"] for name in ("rows", "labels", "time_range")]
    columns = read_json(folder / "statistics.json")["train"]
    return fingerprint([words, content["tables"], train, columns])


def _without_values(folder: Path) -> list[str]:
    """What there is to say of vocabularies that hold nothing."""
    from beam_jobs.vocabularies import NO_VALUE
    from recsys.spec.schema import vocabulary_name

    assets = folder / "transform" / "transform_fn" / "assets"
    return [
        f"no value of table {path.name.removeprefix(vocabulary_name(''))!r} is in its vocabulary: "
        "each is missing, rarer than min_count, or holds a line break"
        for path in sorted(assets.glob(vocabulary_name("*")))
        if path.read_bytes() == NO_VALUE + b"\n"
    ]
