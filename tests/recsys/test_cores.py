"""Cores are those that this process may use."""

from __future__ import annotations

import os

import pytest

from recsys.cores import cores_at_hand


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_cores_are_those_of_the_process_not_of_the_machine() -> None:
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert cores_at_hand() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)
    assert cores_at_hand() == len(all_of_them)
