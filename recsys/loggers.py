"""Logs of libraries, quiet for the length of a block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quieted(*names: str, below: int = logging.ERROR) -> Iterator[None]:
    """Let loggers say nothing that is less grave than `below`; "root" is the root logger.

    >>> beam = logging.getLogger("beam")
    >>> with quieted("beam", "root"):
    ...     beam.level, logging.getLogger().level
    (40, 40)
    >>> beam.level
    0
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(below)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
