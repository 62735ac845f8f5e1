"""Makes the helpers beside the tests importable, and builds one small features folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features folder of `make_features.small_spec()`; not to be written to."""
    from make_features import make_features

    return make_features(tmp_path_factory.mktemp("small") / "features")
