"""Ray Train: starting the workers of a run, and what becomes of them."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recsys.artifacts import read_json, write_json
from recsys.cores import cores_at_hand
from recsys.errors import UserError, first_line, of_system
from recsys.quiet_ray import ENVIRONMENT, quiet_ray
from training.loop import Job, StoppedError, fit
from training.progress import FOLDER, Progress, ProgressFile, Relay

MAX_FAILURES = 3
"""Times that a group of workers is started anew after one of them was lost."""

_LOG = logging.getLogger(__name__)
_START_ATTEMPTS = 3
_LOOK_S = 0.3
_FAULT = "fault-{}.json"
_QUIET = {
    **ENVIRONMENT,
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    # A busy machine may take long to start some Python processes.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Each of these would be one more process beside the workers.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
_WORKER_ENV = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **_QUIET}


def fit_on_ray(
    job: Job,
    workers: int,
    *,
    gpu: bool = False,
    address: str | None = None,
    progress: Progress,
) -> None:
    """Train on Ray workers, and train anew where the spec says `train.refit`.

    The checkpoints in the run folder are the result.

    A worker that is lost takes its group with it; the group is started anew, up to
    `MAX_FAILURES` times, and goes on from the newest checkpoint.

    Args:
        job: What to train. On a cluster, its folders must be on storage that all share.
        workers: How many workers, at least 1.
        gpu: Give each a GPU.
        address: The cluster; None for one on this machine.
        progress: Told what the first worker tells.

    Raises:
        UserError: The workers cannot be had, kept being lost, or found a fault in the data.
    """
    os.environ.update(_QUIET)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    progress("start", 0, 1, f"starting {workers} worker{'s' if workers > 1 else ''}")
    progress_folder = job.run / FOLDER
    shutil.rmtree(progress_folder, ignore_errors=True)
    progress_folder.mkdir()
    with _ray(address, workers):
        _require(workers, gpu, ray.cluster_resources(), address)
        # A snapshot of an earlier attempt may name checkpoints that are gone.
        for stale in (job.run / job.checkpoints).glob("*snapshot*"):
            stale.unlink()
        trainer = TensorflowTrainer(
            _worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name=job.checkpoints,
                storage_path=str(job.run),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                worker_runtime_env={"env_vars": _WORKER_ENV},
            ),
        )
        try:
            _attend(trainer.fit, Relay(job.run, progress))
        except TrainingFailedError as error:
            fault = _read_fault(job.run)
            raise fault or _lost(job, error) from error
    fault = _read_fault(job.run)
    if fault is not None:
        raise fault


def _attend(work: Callable[[], Any], relay: Relay) -> None:
    """Do the work in a thread while this one relays progress and can be interrupted.

    In the main thread, Ray Train would take over the interrupt and end the process.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        relay.look()
    if failed:
        raise failed[0]


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs."""
    import ray.train
    import tensorflow as tf

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if _read_fault(job.run) is not None:
        # Ray starts a failed group anew; a fault of the data would only fail again.
        return
    threads = max(1, cores_at_hand() // context.get_local_world_size())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # A collective may hold a thread while it waits for the other workers.
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    strategy = None
    if world > 1 and "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    each = functools.partial(
        fit, strategy=strategy, worker=rank, workers=world, progress=ProgressFile(job.run, rank)
    )
    try:
        position = each(job, report=_report)[1]
        if job.spec.train.refit:
            gc.collect()  # The model, whose memory the next one needs.
            # Here, where the workers have started. Ray is told nothing: its record is of `job`.
            each(job.again(position))
    except (UserError, OSError) as error:
        fault = error if isinstance(error, UserError) else of_system(error, job.run)
        if fault is None:
            raise
        path = job.run / FOLDER / _FAULT.format(rank)
        write_json(path, {"message": fault.message, **fault.fields()})
        # Where one worker alone stops, the others wait for it until Ray ends them.
        if not isinstance(error, StoppedError):
            raise


def _report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    ray.train.report(
        metrics,
        checkpoint=None if checkpoint is None else Checkpoint.from_directory(str(checkpoint)),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _read_fault(run: Path) -> UserError | None:
    """What the workers found wrong; of several, the one that says most of the place."""
    faults = [read_json(path) for path in sorted((run / FOLDER).glob(_FAULT.format("*")))]
    if not faults:
        return None
    fault = max(faults, key=lambda record: len(record["where"]))
    return UserError(fault.pop("message"), **fault)


def _lost(job: Job, error: Exception) -> UserError:
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return UserError(
        f"Training failed {MAX_FAILURES + 1} times in a row or could not go on.",
        where=str(job.run),
        found=last[0].strip() if last else type(error).__name__,
        fix="Mend the cause, then go on from the last checkpoint with --resume.",
    )


def _require(workers: int, gpu: bool, has: dict[str, float], address: str | None) -> None:
    for kind in ("CPU", "GPU") if gpu else ("CPU",):
        found = int(has.get(kind, 0))
        if found < workers:
            raise UserError(
                f"There are not enough {kind}s for the workers.",
                where=address or "this machine",
                expected=f"{workers} {kind}s, one a worker",
                found=f"{found} {kind}{'' if found == 1 else 's'}",
                fix="Use fewer workers, or a larger cluster (--ray-address)"
                + (", or leave --gpu out." if kind == "GPU" else "."),
            )


@contextlib.contextmanager
def _ray(address: str | None, workers: int) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    folder = None
    if address is None:
        # Sockets lie in it, and their paths may be 107 bytes long at most.
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
        options |= {
            "num_cpus": max(cores_at_hand(), workers),
            "include_dashboard": False,
            "_temp_dir": folder,
        }
    try:
        with quiet_ray():
            before = signal.getsignal(signal.SIGTERM)
            _start_ray(address, options)
            # Ray's own handler prints the stacks of native code, and aborts.
            if callable(before) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
            yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start_ray(address: str | None, options: dict[str, Any]) -> None:
    import ray

    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(address=address, **options)
            return
        # Ray raises a bare Exception where its daemons are not up within thirty seconds, as
        # they may not be on a busy machine.
        except Exception as error:
            ray.shutdown()
            if address is None and attempt < _START_ATTEMPTS:
                _LOG.warning("Ray did not start, trying again: %s", error)
                continue
            raise UserError(
                "Ray cannot be reached." if address else "Ray cannot be started.",
                where=address or "this machine",
                found=first_line(error),
                fix="Check --ray-address, or train in this process with --workers 0.",
            ) from error


def worker_pids(run: Path) -> dict[int, int]:
    """Process ids of a run's workers, by rank, as they last told."""
    pids = {}
    for path in (run / FOLDER).glob("worker-*.json"):
        with contextlib.suppress(json.JSONDecodeError, FileNotFoundError):
            pids[int(path.stem.removeprefix("worker-"))] = json.loads(path.read_text())["pid"]
    return pids
