"""What every test shares: helpers, the order of files, and where random numbers begin."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test marked ``long`` go first.

    Files are handed to processes in this order (pytest-xdist, a file at a time); a long file
    begun last would keep one process busy while the others have nothing left.
    """
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin each test at the same random numbers, before its fixtures.

    Weights that a test leaves to chance are then the same in every run, whichever tests the
    process had before. Python's own ``random`` stays apart: Ray draws its ports from it, and
    two processes that drew the same ones would meet.
    """
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].utils.set_random_seed(0)
        random.seed()
