"""Locks on folders, which the system frees with their process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys.errors import UserError

_LOG = logging.getLogger(__name__)

LOCK = ".lock"
"""File in a run folder that is locked, and names its process, while the run is trained."""

# The last is what a network's storage answers of a folder, which is open for reading alone.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextmanager
def sole_trainer(run: Path) -> Iterator[None]:
    """Hold a run's lock for the length of a block; the folder is made where it is missing.

    On storage without locks nothing is held.

    Raises:
        UserError: Another process trains the run; it is named.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    handle = _hold(path)
    try:
        yield
    finally:
        # Before the lock is free: who waits at the file finds that it is gone.
        path.unlink(missing_ok=True)
        os.close(handle)


def _hold(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(handle) is False:
                raise UserError(
                    "This run is being trained already.",
                    where=str(path.parent),
                    expected="a run that no other process trains",
                    found=os.read(handle, 1000).decode(errors="replace") or "another process",
                    fix="Wait until it ends, or name another output folder.",
                )
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def sole_publisher(models: Path) -> Iterator[None]:
    """Hold a models folder's lock for the length of a block, once other publishers are done.

    The folder is made where it is missing, and removed again if nothing came into it. On storage
    without locks nothing is held.
    """
    new = not models.exists()
    while True:
        models.mkdir(parents=True, exist_ok=True)
        handle = os.open(models, os.O_RDONLY)
        if _lock(handle) is False:
            _LOG.info("waiting for another process, which publishes into %s", models)
            _lock(handle, wait=True)
        if _is_at(handle, models):
            break
        os.close(handle)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):
                models.rmdir()
        os.close(handle)


@contextmanager
def locked_folder(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """A new folder that `remove_unlocked` leaves alone for the length of a block."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover before it was locked
            continue
        _lock(handle, wait=True)
        if _is_at(handle, folder):
            break
        os.close(handle)
    try:
        yield folder
    finally:
        os.close(handle)


def remove_unlocked(parent: Path, pattern: str) -> None:
    """Remove folders of `locked_folder` whose process is gone; none where that cannot be told."""
    for folder in parent.glob(pattern):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            if _lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _lock(handle: int, wait: bool = False) -> bool | None:
    """Whether an open file is now locked by this process; None where its storage has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
