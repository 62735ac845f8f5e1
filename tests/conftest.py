"""What every test shares: the order in which files start."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test marked ``long`` go first.

    Files are handed to processes in this order (pytest-xdist, a file at a time); a long file
    begun last would keep one process busy while the others have nothing left.
    """
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)
