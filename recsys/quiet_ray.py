"""Ray's own words kept off the user's screen; nothing of Ray is imported here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from recsys.loggers import quieted

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
"""What Ray's processes are to be started with, so that they report to nobody."""

_LOGGERS = ("ray", "ray.train", "ray.data", "ray.serve")


@contextlib.contextmanager
def quiet_ray() -> Iterator[None]:
    """Let Ray's loggers in this process say errors alone, and nothing at all on standard output.

    Ray prints what its daemons say, and standard output belongs to the caller's result. To be
    entered once the parts of Ray that are used are imported, which sets levels of its own.
    """
    with quieted(*_LOGGERS), contextlib.redirect_stdout(sys.stderr):
        yield
