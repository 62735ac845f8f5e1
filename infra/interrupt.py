"""Ctrl-C and SIGTERM, where libraries swallow them or dress them up as errors of their own."""

from __future__ import annotations

import signal
from types import FrameType

_ASKED: list[int] = []


def listen(terminated: bool = False) -> None:
    """Remember a Ctrl-C from here on, and interrupt as Python does.

    Args:
        terminated: Interrupt by a SIGTERM alike, which else ends the process without a word.
    """
    signal.signal(signal.SIGINT, _asked)
    if terminated:
        signal.signal(signal.SIGTERM, _asked)


def interrupted() -> bool:
    """Whether the process was asked to end."""
    return bool(_ASKED)


def exit_code() -> int:
    """What a process answers that was asked to end: 128 and the number of the signal."""
    return 128 + (_ASKED[0] if _ASKED else signal.SIGINT)


def _asked(number: int, frame: FrameType | None) -> None:
    _ASKED.append(number)
    signal.default_int_handler(number, frame)
