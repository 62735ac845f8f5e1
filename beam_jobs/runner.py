"""How a pipeline is run: options, the local runner, quiet logs, and errors that come back whole."""

from __future__ import annotations

import base64
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from recsys.cores import cores_at_hand
from recsys.errors import EXIT_WRONG_USE, UserError, of_system
from recsys.loggers import quieted

_MARK = "recsys-user-error:"
_NOISY = ("apache_beam", "absl", "tensorflow", "tensorflow_transform", "tfx_bsl", "root")
_listeners: dict[str, Callable[[str], None]] = {}


def options_of(pipeline_args: Sequence[str]) -> PipelineOptions:
    """Beam's options from command line arguments.

    Raises:
        UserError: An argument is none of Beam's options, or has a wrong value.
    """
    parser = _BeamArgumentParser(allow_abbrev=False)
    for kind in {*PipelineOptions.__subclasses__()}:
        kind._add_argparse_args(parser)
    fault = ""

    def refuse(message: str) -> None:
        nonlocal fault
        fault = fault or message
        raise ValueError(message)

    parser.error = refuse
    try:
        unknown = parser.parse_known_args(list(pipeline_args))[1]
        fault = f"unknown: {' '.join(unknown)}" if unknown else ""
    except (ValueError, SystemExit):
        fault = fault or "arguments that cannot be parsed"
    options = PipelineOptions(list(pipeline_args) if not fault else [])
    if not fault and _names_runner(pipeline_args):
        try:
            create_runner(options.view_as(StandardOptions).runner)
        except (ValueError, ImportError, AttributeError) as error:
            fault = str(error)
    if fault:
        raise UserError(
            "These are no options of Apache Beam.",
            where="pipeline options",
            expected="Beam pipeline options, such as --runner or --direct_num_workers",
            found=fault,
            fix="Correct them; see the pipeline options of Beam's runners.",
            exit_code=EXIT_WRONG_USE,
        )
    return options


def _names_runner(pipeline_args: Sequence[str]) -> bool:
    return any(str(argument).startswith("--runner") for argument in pipeline_args)


@contextmanager
def pipeline(pipeline_args: Sequence[str]) -> Iterator[beam.Pipeline]:
    """A pipeline that runs when the block ends; in memory, unless the options name a runner.

    Raises:
        UserError: A worker met a mistake of the user, or the options are wrong.
    """
    options = options_of(pipeline_args)
    named = _names_runner(pipeline_args)
    try:
        with (
            # They warn of their own internals by the page; errors still come through.
            quieted(*_NOISY, below=logging.CRITICAL),
            warnings.catch_warnings(action="ignore"),
            beam.Pipeline(runner=None if named else FnApiRunner(), options=options) as pipeline,
        ):
            yield pipeline
    except UserError:
        raise
    except Exception as error:
        carried = _carried(error)
        if carried is None:
            raise
        raise carried from None


class CarriedError(Exception):
    """A `UserError` on its way out of a worker: runners keep an exception's text only."""

    def __init__(self, error: UserError | str) -> None:
        if isinstance(error, UserError):
            content = json.dumps([error.message, error.fields()]).encode()
            error = f"{_MARK}{base64.b64encode(content).decode()}:"
        super().__init__(error)


def _carried(error: BaseException) -> UserError | None:
    found = re.search(_MARK + r"([A-Za-z0-9+/=]+):", str(error))
    if found is None:
        return None
    message, fields = json.loads(base64.b64decode(found.group(1)))
    return UserError(message, **fields)


@contextmanager
def carrying() -> Iterator[None]:
    """Inside a worker: let a `UserError`, or a failure to write, reach the user as one."""
    try:
        yield
    except UserError as error:
        raise CarriedError(error) from None
    except OSError as error:
        told = of_system(error) or UserError(
            "A file could not be written or read.",
            where=str(error.filename or ""),
            found=error.strerror or str(error),
            fix="See to this file and its disk, and run the job again.",
        )
        raise CarriedError(told) from error


@contextmanager
def listening(job: str, listener: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, `tick(job, stage)` in this process calls the listener."""
    _listeners[job] = listener
    try:
        yield
    finally:
        del _listeners[job]


def tick(job: str, stage: str) -> None:
    """Say that a part of a stage is done; nothing happens in a process that does not listen."""
    listener = _listeners.get(job)
    if listener is not None:
        listener(stage)


def use_cores() -> None:
    """Limit TensorFlow's threads to the cores that this process may use."""
    import tensorflow as tf

    cores = cores_at_hand()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
    except RuntimeError:
        return  # TensorFlow has started already, with the threads that its first user chose.


def summed(values: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The dictionaries' sum by key; a combiner of counts."""
    total: dict[str, Any] = {}
    for value in values:
        for key, count in value.items():
            total[key] = total[key] + count if key in total else count
    return total
