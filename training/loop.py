"""The training loop of one worker: epochs, validation, early stopping, checkpoints."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifacts import read_manifest, write_json
from recsys.errors import UserError
from recsys.spec.records import Spec
from training.checkpoints import Position, Store
from training.debug import NotFiniteError, first_bad_layer, first_bad_value, watched_layers
from training.input import (
    Rows,
    Split,
    chunks,
    dataset,
    kept_rows,
    load_rows,
    open_split,
    open_training,
)
from training.memory import keep_freed_memory, use_huge_pages
from training.moments import label_units
from training.order import Plan, make_plan
from training.profile import FILE, Profiler
from training.progress import Progress, epoch_words, silent
from training.scoring import score_rows, validate
from training.writing import writing

LOOK_EVERY = 50
"""Steps between looks at the losses: each look waits for the device, and for all workers."""

MOST_REPEATED = 2000
"""Steps that are done again, at most, to name the layer in which one of them failed."""

_UNKNOWN = ", in a layer that is not known"
_RATES = (
    "Lower train.dense_learning_rate or train.table_learning_rate, or look for very large numbers "
    "in the data (scale: none)."
)

CHECKPOINTS = "checkpoints"
REFIT = "refit"

ROWS = ".rows-"
"""Begin of the names of folders in a run with rows that do not fit into memory."""


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told.

    Attributes:
        spec: The spec.
        features: The features folder.
        run: The run folder.
        eager: Run each step eagerly, with shapes and finite values checked by layer.
        profile: Time and trace some steps of the first epoch, and write `profile.json`.
        refit: Epochs of a training on training and validation rows together, which nothing
            validates (`train.refit`); None for one on training rows alone.
        past_steps: Steps of earlier runs behind the optimizer, after a warm start.
    """

    spec: Spec
    features: Path
    run: Path
    eager: bool = False
    profile: bool = False
    refit: int | None = None
    past_steps: int = 0

    @property
    def checkpoints(self) -> str:
        """The name of the checkpoints' folder in the run folder."""
        return CHECKPOINTS if self.refit is None else REFIT

    @property
    def split(self) -> Split:
        """The rows to train on."""
        return open_training(self.spec, self.features, self.refit is not None)

    def again(self, position: Position) -> Job:
        """The job that trains anew, for as many epochs as its own best took."""
        return replace(self, refit=position.best_epochs, profile=False)


class StoppedError(UserError):
    """A fault that every worker finds at the same step, so that none waits for another."""


Report = Callable[[dict[str, Any], Path | None], None]
"""Called by every worker at each epoch's end, with metrics and the checkpoint's folder."""


def fit(
    job: Job,
    *,
    strategy: Any = None,
    worker: int = 0,
    workers: int = 1,
    progress: Progress = silent,
    report: Report | None = None,
) -> tuple[Any, Position]:
    """Train, from the newest checkpoint where there is one.

    Args:
        job: What to train.
        strategy: The distribution strategy; None for the default one.
        worker: Which worker this is; the first writes checkpoints and logs.
        workers: How many there are.
        progress: Told of every look.
        report: Told of every epoch's end.

    Returns:
        The model, with the weights of the last step, and where the run stands.

    Raises:
        UserError: The examples are unfit.
        StoppedError: The loss is not finite.
    """
    import tensorflow as tf

    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix=ROWS, dir=job.run) as scratch:
        loop = _Loop(
            job,
            strategy or tf.distribute.get_strategy(),
            worker,
            workers,
            progress,
            report,
            Path(scratch),
        )
        return loop.run()


class _Loop:
    def __init__(
        self,
        job: Job,
        strategy: Any,
        worker: int,
        workers: int,
        progress: Progress,
        report: Report | None,
        scratch: Path,
    ) -> None:
        import tensorflow as tf

        self._job, self._spec, self._strategy = job, job.spec, strategy
        self._worker, self._workers, self._chief = worker, workers, worker == 0
        self._progress, self._report = progress, report
        progress("read", 0, 1, "reading examples")
        self._plan, self._rows, self._validation = _read(job, worker, workers, scratch)
        progress("build", 0, 1, "building the model")
        limit = self._spec.train.max_steps
        total = self._spec.train.epochs * self._plan.steps
        self._total = total if limit is None else min(total, limit)
        self._epochs = self._spec.train.epochs if job.refit is None else job.refit
        self._last = min(self._total, self._epochs * self._plan.steps)
        refit = (REFIT, "validation rows too, ")
        self._stage, self._on = ("train", "") if job.refit is None else refit
        self._model = self._build()
        self._store = Store(job.run / job.checkpoints)
        self._profiler: Profiler | None = None
        self._in_huge_pages = False
        self._at = Position()
        self._step = self._step_function()
        self._sum = _summer(strategy)
        self._writers = {
            name: tf.summary.create_file_writer(str(job.run / "logs" / name))
            for name in ((self._stage, "validation") if job.refit is None else (self._stage,))
            if self._chief
        }

    def _build(self) -> Any:
        """A model that has learned nothing."""
        from recsys.model import build

        job, tables = self._job, read_manifest(self._job.features, "features")["tables"]
        with self._strategy.scope():
            model = build(self._spec, tables, self._total, job.past_steps)
            if model.label_units is not None:
                model.label_units.assign(label_units(self._spec, job.split))
        return model

    def run(self) -> tuple[Any, Position]:
        position = self._store.restore_latest(self._model, warn=self._warn)
        if self._job.profile:
            # Every worker makes one, so that all stop where there are too few steps.
            steps = self._stop(position) - position.batch
            self._profiler = Profiler(steps, self._plan.batch, self._job.run)
        try:
            with self._debugging():
                while not position.ended:
                    position = self._epoch(position)
        finally:
            if self._profiler is not None:
                self._profiler.close()
        for writer in self._writers.values():
            writer.close()
        return self._model, position

    def _epoch(self, position: Position) -> Position:
        plan, spec = self._plan, self._spec
        stop = self._stop(position)
        data = iter(
            dataset(
                self._rows,
                plan,
                self._worker,
                **self._range(position, max(0, stop - position.batch)),
            )
        )
        pending: list[dict[str, Any]] = []
        every = spec.train.checkpoint_every
        while position.batch < stop:
            self._at = position
            pending.append(self._step(data))
            position = replace(position, batch=position.batch + 1, step=position.step + 1)
            due = every is not None and position.step % every == 0 and position.batch < stop
            if len(pending) == LOOK_EVERY or position.batch == stop or due:
                position = self._look(pending, position)
                pending.clear()
                if not self._in_huge_pages:
                    # The first steps have made the optimizer's slots and the activations.
                    use_huge_pages()
                    self._in_huge_pages = True
            if due:
                self._save(position, {"step": position.step})
        return self._end_epoch(position)

    def _stop(self, position: Position) -> int:
        """The batch at which the position's epoch ends."""
        # On another number of workers, an epoch may have fewer steps than are behind.
        return min(self._plan.steps, position.batch + max(0, self._last - position.step))

    def _look(self, pending: list[dict[str, Any]], position: Position) -> Position:
        names = sorted(pending[0])
        values = np.array([[float(logs[name]) for name in names] for logs in pending])
        # A gradient's norm may overflow in float16, where the loss scale skips the step.
        losses = [n for n, name in enumerate(names) if name.split("/")[0] == "loss"]
        finite = np.isfinite(values[:, losses]).all(axis=1)
        first = len(pending) if finite.all() else int(np.argmin(finite))
        means = np.where(np.isfinite(values), values, 0.0).mean(axis=0)
        # One collective tells all workers of all: they stop together, or go on together.
        bad = np.zeros(LOOK_EVERY + 1)
        bad[first] = float(first < len(pending))
        totals = self._sum(np.concatenate([means, bad]).astype(np.float32))
        bad = totals[len(names) :]
        if bad.any():
            earliest = int(np.argmax(bad > 0))
            self._fail(earliest - len(pending), position, first == earliest)
        logs = dict(zip(names, (totals[: len(names)] / self._workers).tolist(), strict=True))
        self._write(self._stage, position.step, logs)
        self._progress(
            self._stage,
            position.step,
            self._last,
            f"{self._on}epoch {position.epoch + 1}, loss {logs['loss']:.4f}",
        )
        steps = float(len(pending))
        seen = {name: value * steps for name, value in logs.items()} | {"steps": steps}
        sums = {name: position.sums.get(name, 0.0) + value for name, value in seen.items()}
        return replace(position, sums=sums)

    def _fail(self, back: int, position: Position, mine: bool) -> None:
        """Stop at a loss that is not finite; every worker comes here, for the same step."""
        bad = replace(position, batch=position.batch + back, step=position.step + back)
        batch = next(chunks(self._rows, self._plan, self._worker, **self._range(bad, 1)))
        fault = first_bad_value(self._spec, batch, self._worker * self._plan.worker_batch)
        # One worker's data stop all, or the others would wait for it as they look further.
        if self._sum(np.array([float(bool(fault))], np.float32))[0]:
            raise self._stopped_by_data(_place(bad), fault)
        layer = self._first_bad_layer(bad, batch)
        raise self._stopped(
            "the loss is not finite", _place(bad) + (layer if mine else ""), "a finite loss"
        )

    def _first_bad_layer(self, bad: Position, batch: dict[str, Any]) -> str:
        """Words on the layer that a batch fails in, with the weights of just before its step.

        Those of today are of up to `LOOK_EVERY` steps later, when nothing may be finite any more.
        Hence the steps since the last checkpoint, or the begin, are done again, by all workers.
        """
        if self._profiler is not None:
            self._profiler.close()
            self._profiler = None
        # First, as there may not be room for two.
        del self._model, self._step
        self._model = self._build()
        self._step = self._step_function()
        position = self._store.restore_latest(self._model, warn=self._warn)
        steps = bad.step - position.step
        if position.epoch != bad.epoch or not 0 <= steps <= MOST_REPEATED:
            return _UNKNOWN
        self._progress(self._stage, position.step, self._last, "looking for what is not finite")
        data = iter(
            dataset(self._rows, self._plan, self._worker, **self._range(position, steps + 1))
        )
        for _ in range(steps):
            self._step(data)
        spoiled = self._spoiled_weight()
        layer = first_bad_layer(self._model, batch)
        # All workers take the step: it waits for all.
        again = float(self._step(data)["loss"])
        if spoiled:
            before = _place(replace(bad, batch=bad.batch - 1, step=bad.step - 1))
            return f", layer {layer or spoiled}, whose weights the update before spoiled ({before})"
        if layer:
            return f", layer {layer}"
        # What a device adds up in another order may be finite this time.
        return _UNKNOWN if np.isfinite(again) else ", in the loss (all layers are finite)"

    def _range(self, position: Position, steps: int) -> dict[str, Any]:
        """Which batches `chunks` and `dataset` are to give: some from a position on."""
        return {
            "seed": self._spec.train.seed,
            "epoch": position.epoch,
            "start": position.batch,
            "stop": position.batch + steps,
            "grouped": any(task.ranking for task in self._spec.tasks),
        }

    def _stopped(self, what: str, where: str, expected: str) -> StoppedError:
        return StoppedError(
            f"Training stopped: {what}.",
            where=where,
            expected=expected,
            found="NaN or infinity",
            fix=self._advice(f"{_RATES} Run with --eager to stop at the first layer."),
        )

    def _stopped_by_data(self, where: str, fault: str) -> StoppedError:
        return StoppedError(
            "Training stopped: the data hold what is no number.",
            where=where + (f", {fault}" if fault else ""),
            expected="finite numbers",
            found="NaN or infinity",
            fix=self._advice(
                "Mend it in the logs, and build the features again (recsys features SPEC "
                "--input IN --output FEATURES)."
            ),
        )

    def _advice(self, text: str) -> str:
        kept = self._store.names()
        if not kept:
            return text
        return f"{text} The last good checkpoint is kept: {self._store.folder / kept[-1]}"

    def _require_finite_weights(self, position: Position) -> None:
        """Losses are of before an update: the last one is seen in the weights alone.

        These are the same on every worker, so all stop, or none.
        """
        spoiled = self._spoiled_weight()
        if spoiled:
            raise self._stopped(
                "a weight is not finite", f"step {position.step}, {spoiled}", "finite weights"
            )

    def _spoiled_weight(self) -> str:
        """Name of the first weight that is not finite, or ''."""
        import tensorflow as tf

        for variable in self._model.trainable_variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable))):
                return str(variable.name)
        return ""

    def _require_finite_logits(self, logits: Any, own: Any, rows: Rows, position: Position) -> None:
        """Refuse logits of all workers' validation rows; `own` are those of this one's `rows`."""
        if np.isfinite(logits).all():
            return
        where = f"epoch {position.epoch + 1}, step {position.step}, validation rows"
        bad = np.flatnonzero(~np.isfinite(own).all(axis=1))
        own_first = len(logits) * self._worker // self._workers
        if bad.size:
            one = {name: values[bad[:1]] for name, values in rows.arrays().items()}
            fault = first_bad_value(self._spec, one, own_first + int(bad[0]))
            if fault:
                raise self._stopped_by_data(where, fault)
            layer = first_bad_layer(self._model, one)
            where += f", layer {layer}" if layer else ""
        raise self._stopped("predictions are not finite", where, "finite logits")

    def _end_epoch(self, position: Position) -> Position:
        spec = self._spec
        if self._validation is None:
            ended = position.step >= self._last or position.epoch + 1 >= self._epochs
            position = replace(position, epoch=position.epoch + 1, batch=0, sums={}, ended=ended)
            self._save(position, {"epoch": position.epoch - 1})
            return position
        self._progress("validate", position.step, self._total, f"epoch {position.epoch + 1}")
        scored = score_rows(self._model, self._validation)
        both = _gather(self._strategy, np.concatenate([scored, self._validation.labels], axis=1))
        logits, labels = both[:, : len(spec.tasks)], both[:, len(spec.tasks) :]
        self._require_finite_logits(logits, scored, self._validation, position)
        score, metrics = validate(spec, labels, logits)
        train = {
            name: total / position.sums["steps"]
            for name, total in position.sums.items()
            if name != "steps"
        }
        record = {
            "epoch": position.epoch,
            "step": position.step,
            "score": score,
            "train": train,
            "validation": metrics,
        }
        better = position.best is None or score > position.best["score"]
        over = position.step >= self._total
        position = replace(
            position,
            epoch=position.epoch + 1,
            batch=0,
            sums={},
            history=[*position.history, record],
            stale=0 if better else position.stale + 1,
        )
        patience = spec.train.early_stopping.patience
        position = replace(
            position,
            ended=over or position.epoch >= self._epochs or position.stale >= patience,
        )
        if better:
            position = position.as_best(score)
        flat = {
            f"{metric}/{task}": value
            for task, values in metrics.items()
            for metric, value in values.items()
            if metric not in ("rows", "positives")
        }
        self._write("validation", position.step, {"score": score, **flat})
        self._save(position, {"score": score, "epoch": record["epoch"]})
        self._progress("epoch", position.epoch, spec.train.epochs, epoch_words(metrics))
        return position

    def _save(self, position: Position, metrics: dict[str, Any]) -> None:
        self._require_finite_weights(position)
        if self._chief:
            self._store.save(self._model, position)
            if self._job.refit is None:
                write_json(self._job.run / "history.json", position.history)
        # Ray takes reports every two seconds and holds the workers until then. What is not
        # reported is not lost: a new start looks at the storage.
        if self._report is not None and position.batch == 0:
            path = self._store.folder / position.checkpoint
            self._report(metrics, path if self._chief else None)

    def _step_function(self) -> Callable[[Any], dict[str, Any]]:
        import tensorflow as tf

        model, strategy = self._model, self._strategy

        def step(batches: Any) -> dict[str, Any]:
            return strategy.run(model.train_step, args=(next(batches),))

        def step_of(batch: Any) -> dict[str, Any]:
            return strategy.run(model.train_step, args=(batch,))

        if self._job.profile:
            # Batches are fetched outside of the step, where waiting for them can be timed. All
            # workers do, to the run's end: their collectives are numbered as steps are traced.
            compiled = tf.function(step_of, reduce_retracing=True, autograph=False)
            return lambda batches: self._profiled(compiled, batches)
        if self._job.eager:
            return step
        return tf.function(step, reduce_retracing=True, autograph=False)

    def _profiled(self, step: Callable[[Any], dict[str, Any]], batches: Any) -> dict[str, Any]:
        if not self._chief or self._profiler is None or self._profiler.done:
            return step(next(batches))
        logs = self._profiler.take(step, batches)
        if self._profiler.done:
            write_json(self._job.run / FILE, self._profiler.record())
        return logs

    @contextlib.contextmanager
    def _debugging(self) -> Any:
        if not self._job.eager:
            yield
            return
        try:
            with watched_layers(self._model, self._job.run / "logs" / "shapes.txt"):
                yield
        except NotFiniteError as error:
            batch = next(chunks(self._rows, self._plan, self._worker, **self._range(self._at, 1)))
            fault = first_bad_value(self._spec, batch, self._worker * self._plan.worker_batch)
            if fault:
                raise self._stopped_by_data(_place(self._at), fault) from error
            error.where = f"{_place(self._at)}, layer {error.where}"
            error.fix = self._advice(_RATES)
            raise

    def _write(self, split: str, step: int, values: dict[str, Any]) -> None:
        import tensorflow as tf

        if self._chief:
            with writing(self._job.run / "logs" / split):
                with self._writers[split].as_default(step):
                    for name, value in values.items():
                        if value is not None:
                            tf.summary.scalar(name, value)
                self._writers[split].flush()

    def _warn(self, text: str) -> None:
        self._progress("warning", 0, 1, text)


def _place(position: Position) -> str:
    return f"epoch {position.epoch + 1}, batch {position.batch}, step {position.step}"


def _read(job: Job, worker: int, workers: int, scratch: Path) -> tuple[Plan, Rows, Rows | None]:
    train = job.split
    kept = kept_rows(job.spec, train)
    plan = make_plan(train.rows if kept is None else len(kept), job.spec.train.batch_size, workers)
    rows = load_rows(job.spec, train, *plan.share(worker), kept=kept, scratch=scratch)
    if job.refit is not None:
        return plan, rows, None
    split = open_split(job.spec, job.features, "validation")
    low, high = (split.rows * n // workers for n in (worker, worker + 1))
    return plan, rows, load_rows(job.spec, split, low, high)


def _summer(strategy: Any) -> Callable[[Any], Any]:
    """Sums a float32 vector over the workers."""
    import tensorflow as tf

    if strategy.num_replicas_in_sync == 1:
        return lambda values: values

    def add(values: Any) -> Any:
        # The copy lies on the replica's device, where a collective wants its input.
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

    @tf.function(autograph=False)
    def total(values: Any) -> Any:
        return strategy.run(add, args=(values,))

    return lambda values: total(tf.constant(values)).numpy()


def _gather(strategy: Any, values: Any) -> Any:
    """All workers' rows [rows, width], in the order of the workers."""
    import tensorflow as tf

    if strategy.num_replicas_in_sync == 1:
        return values

    def gather(part: Any) -> Any:
        return tf.distribute.get_replica_context().all_gather(tf.identity(part), axis=0)

    @tf.function(autograph=False)
    def joined(part: Any) -> Any:
        return strategy.run(gather, args=(part,))

    return joined(tf.constant(values)).numpy()
