"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from infra.interrupt import interrupted


class Progress:
    """Called as `progress(stage, done, total, text)`; one bar or one series of lines a stage.

    Plain lines come when a stage starts and ends, and in between at most every ten seconds,
    so that a log stays readable.
    """

    def __init__(self, every: float = 10.0) -> None:
        self._every = every
        self._bars: dict[str, Any] = {}
        self._live: Any = None
        self._last: dict[str, tuple[float, int]] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )
            from rich.progress import Progress as Bars

            self._live = Bars(
                SpinnerColumn(),
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        if interrupted():
            # Somebody else's code caught it.
            raise KeyboardInterrupt
        if self._live is not None:
            if stage not in self._bars:
                self._bars[stage] = self._live.add_task(stage, total=total, text=text)
            self._live.update(self._bars[stage], completed=done, total=total or None, text=text)
            return
        now = time.monotonic()
        self._started.setdefault(stage, now)
        when, count = self._last.get(stage, (-self._every, -1))
        finished = total > 0 and done >= total
        if (count == done and not text) or (not finished and now - when < self._every):
            return
        if finished and count >= total:
            return
        self._last[stage] = (now, done)
        share = f"{done}/{total}" if total else str(done)
        took = f" {now - self._started[stage]:.0f}s" if finished else ""
        print(f"{stage}: {share}{took}{'  ' + text if text else ''}", file=sys.stderr, flush=True)
