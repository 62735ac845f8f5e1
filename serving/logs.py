"""What the service writes down: swaps, refusals and failures, with their time, on stderr."""

from __future__ import annotations

import logging

NAME = "recsys.serving"


def log_to_stderr() -> None:
    """Write the service's log to standard error; for a process that is the service's own."""
    logger = logging.getLogger(NAME)
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Ray's handlers would write each line again
