"""How the process keeps memory between steps."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let the C library keep what a training step frees, for the next step to use again.

    By default glibc hands large blocks back to the system, and each step then pays for
    thousands of page faults to get its activations anew. Blocks above 32 MB, such as tables,
    still go back when they are freed. It holds for the whole process, so it is for one that
    trains; `infra.benchmarks.training` shows what steps cost.

    Returns:
        Whether the C library took it; one other than glibc is left as it is.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}
    return all([mallopt(parameter, value) for parameter, value in wanted.items()])
