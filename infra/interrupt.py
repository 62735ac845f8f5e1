"""Ctrl-C, where libraries swallow it or dress it up as an error of their own."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_ASKED = threading.Event()


def listen() -> None:
    """Remember a Ctrl-C from here on, and interrupt as Python does."""
    signal.signal(signal.SIGINT, _asked)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed."""
    return _ASKED.is_set()


def _asked(number: int, frame: FrameType | None) -> None:
    _ASKED.set()
    signal.default_int_handler(number, frame)
