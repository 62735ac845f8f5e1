"""Huge pages: what moves, what does not, and that nothing in it changes."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from training.memory import use_huge_pages

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20


def kept(array: np.ndarray, what: str) -> int:
    """Bytes of the array's mapping that are there (`Rss`) or in huge pages (`AnonHugePages`)."""
    place, found = array.ctypes.data, 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        edges = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if edges:
            low, high = (int(edge, 16) for edge in edges.groups())
            inside = low < place + array.nbytes and high > place
        elif inside and line.startswith(f"{what}:"):
            found += 1024 * int(line.split()[1])
    return found


def draw(size: int) -> np.ndarray:
    """Memory of small pages, none of it touched; numpy's own arrays ask for huge ones."""
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def may_move() -> bool:
    """Whether the kernel moves memory when asked to; it has to know the advice, and have a page."""
    if not SWITCH.exists() or "[never]" in SWITCH.read_text():
        return False
    with mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(bytes(4 * MIB))
        try:
            memory.madvise(25)  # MADV_COLLAPSE, which Python does not name
        except OSError:
            return False
    return True


@pytest.mark.skipif(not may_move(), reason="no memory moves to huge pages on this system")
def test_used_memory_moves_to_huge_pages_and_untouched_memory_stays_untouched() -> None:
    table, sparse = draw(64 * MIB), draw(256 * MIB)
    values = np.arange(table.size) % 251
    table[:] = values
    sparse[:: 2 * MIB] = 7
    huge, there = kept(table, "AnonHugePages"), kept(sparse, "Rss")

    moved = use_huge_pages()

    # Not all of it: fragmented memory has few huge pages to give.
    assert moved >= kept(table, "AnonHugePages") - huge > 0
    assert np.array_equal(table, values)
    # One page in each 2 MB was touched: had they moved, all 256 MB would be there.
    assert kept(sparse, "Rss") - there < 128 * MIB
    assert np.all(sparse[:: 2 * MIB] == 7)
