"""The finalizer of SplitMix64 (Steele et al. 2014), in NumPy: chance, the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 0x9E3779B97F4A7C15
"""What one seed adds to the next: 2^64 divided by the golden ratio."""

FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mixed(values: NDArray[Any], seed: int = 0) -> NDArray[np.uint64]:
    """Spread integers evenly over 64 bits, one to one, otherwise for each seed.

    Splits, the order of rows and the rows of hashed tables hang on these numbers: they never
    change.

    Args:
        values: [rows], of any integer type; negative ones as two's complements.
        seed: Any whole number.

    Returns:
        uint64 [rows].

    >>> [hex(value) for value in mixed(np.array([0, 1, -1]))]
    ['0x0', '0x5692161d100b05e5', '0xb4d055fcf2cbbd7b']
    """
    z = values.astype(np.uint64) ^ np.uint64(seed * STEP % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FACTORS[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(FACTORS[1])
    return z ^ (z >> np.uint64(31))
