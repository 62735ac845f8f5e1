"""How the process keeps memory between steps."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import numpy as np

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# Linux's larger pages, and its advice to move memory to them now.
_HUGE, _MADV_COLLAPSE = 2 << 20, 25
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/maps")
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?")


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


def use_huge_pages() -> int:
    """Move what the process holds in memory, such as tables, to pages of 2 MB where Linux may.

    A batch touches rows all over a table of millions. With pages of 4 kB, the processor has to look
    up where each lies, which costs more than to read it; `infra.benchmarks.training
    --table-scaling` shows what steps cost. To be called when all that is long-lived is there;
    what comes later has small pages.

    Memory of which a quarter or more was never touched is left alone, so that the process does
    not grow. A system that is told to have no huge pages is left as it is, and so is one without
    this advice (Linux before 6.1, others).

    Returns:
        How many bytes moved, or were there already.
    """
    try:
        if "[never]" in _SWITCH.read_text():
            return 0
        library = ctypes.CDLL("libc.so.6")
        madvise, mincore = library.madvise, library.mincore
        maps = _MAPS.read_text().splitlines()
    except (OSError, AttributeError):
        return 0
    address, size = ctypes.c_void_p, ctypes.c_size_t
    madvise.argtypes, mincore.argtypes = [address, size, ctypes.c_int], [address, size, address]
    moved = 0
    for place in filter(None, map(_MAP.fullmatch, maps)):
        first, end = (int(edge, 16) for edge in place.groups())
        first = -(-first // _HUGE) * _HUGE
        blocks = max(0, end - first) // _HUGE
        touched = np.zeros((blocks, _HUGE // mmap.PAGESIZE), np.uint8)
        if not blocks or mincore(first, blocks * _HUGE, touched.ctypes.data) != 0:
            continue
        for block in np.flatnonzero(touched.mean(axis=1) > 0.75):
            if madvise(first + int(block) * _HUGE, _HUGE, _MADV_COLLAPSE) == 0:
                moved += _HUGE
    return moved
