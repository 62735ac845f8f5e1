"""Ray's own words kept off the user's screen; nothing of Ray is imported here."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
"""What Ray's processes are to be started with, so that they report to nobody."""

_LOGGERS = ("ray", "ray.train", "ray.data", "ray.serve")


@contextlib.contextmanager
def quiet_ray(verbose: bool = False) -> Iterator[None]:
    """Let Ray's loggers in this process say errors alone, and nothing at all on standard output.

    Ray prints what its daemons say, and standard output belongs to the caller's result. To be
    entered once the parts of Ray that are used are imported, which sets levels of its own.

    Args:
        verbose: Leave the loggers as they are.
    """
    loggers = [] if verbose else [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
