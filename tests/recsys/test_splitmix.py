"""Numbers that a change would break: rows would move to other splits, batches and tables."""

import numpy as np
import pytest

from recsys.splitmix import mixed

VALUES = [0, 1, 2**63, 2**64 - 1, 1234567890123]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [0x0, 0x5692161D100B05E5, 0x25C26EA579CEA98A, 0xB4D055FCF2CBBD7B, 0x8008118ADF1627AF]),
        (7, [0x2C829ABE1F4532E1, 0xF14F2CF802083FA5, 0x859D9D5E71274B63, 0x8BDE40AB87623C48,
             0xE27E332196214E14]),
        (-1, [0x336503C6B835BEC0, 0xDE0A564CBCD060C4, 0xF768BD32E7DB96EB, 0xE4D971771B652C20,
              0xF49D49AFF9C8804]),
    ],
)  # fmt: skip
def test_numbers_stay(seed: int, expected: list[int]) -> None:
    assert mixed(np.array(VALUES, np.uint64), seed).tolist() == expected


def test_signed_integers_are_read_as_twos_complements() -> None:
    signed = np.array(VALUES, np.uint64).view(np.int64)
    assert mixed(signed).tolist() == mixed(np.array(VALUES, np.uint64)).tolist()
