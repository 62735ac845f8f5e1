"""How many cores there are to work with."""

from __future__ import annotations

import os


def cores_at_hand() -> int:
    """Cores that this process may use, at least 1: a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
