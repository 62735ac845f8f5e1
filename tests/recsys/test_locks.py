"""Locks end with their process, also one that is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.errors import UserError
from recsys.locks import locked_folder, remove_unlocked, sole_trainer


def killed(script: str, folder: Path, check: Callable[[int], None]) -> None:
    """Run a script that holds a lock until it is killed; `check` is called before that."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    try:
        check(process.pid)
    finally:
        process.kill()
        process.communicate()


HOLD = """
import sys
from pathlib import Path
from recsys.locks import locked_folder, sole_trainer
with {lock}:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_refused_with_its_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    def refused(pid: int) -> None:
        with pytest.raises(UserError, match="being trained already") as error, sole_trainer(run):
            pass
        assert error.value.found.startswith(f"process {pid} on ")
        assert error.value.where == str(run)

    run = tmp_path / "run"
    killed(HOLD.format(lock="sole_trainer(Path(sys.argv[1]))"), run, refused)
    assert [path.name for path in run.iterdir()] == [".lock"]
    with sole_trainer(run):
        assert (run / ".lock").is_file()
    assert list(run.iterdir()) == []


def test_a_folder_is_a_leftover_once_its_process_is_gone(tmp_path: Path) -> None:
    def kept(_: int) -> None:
        remove_unlocked(tmp_path, ".publish-*.partial")
        assert len(list(tmp_path.iterdir())) == 1

    lock = "locked_folder(Path(sys.argv[1]), '.publish-', '.partial')"
    killed(HOLD.format(lock=lock), tmp_path, kept)
    with locked_folder(tmp_path, ".publish-", ".partial") as mine:
        assert len(list(tmp_path.iterdir())) == 2
        remove_unlocked(tmp_path, ".publish-*.partial")
        assert list(tmp_path.iterdir()) == [mine]
