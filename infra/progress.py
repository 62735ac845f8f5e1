"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from infra.interrupt import interrupted
from training.progress import NOTES


class Progress:
    """Called as `progress(stage, done, total, text)`; one bar or one series of lines a stage.

    Plain lines come when a stage starts and ends, and in between at most every ten seconds,
    so that a log stays readable. Notes (the end of an epoch, a warning) are lines of their own,
    on a terminal above the bars, and none is left out.
    """

    def __init__(self, every: float = 10.0) -> None:
        self._every = every
        self._bars: dict[str, Any] = {}
        self._live: Any = None
        self._last: dict[str, tuple[float, int]] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._live = _bars()
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
        if stage in NOTES:
            self._note(f"{stage} {done}/{total}: {text}" if done else f"{stage}: {text}")
            return
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

    def _note(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _bars() -> Any:
    """Bars for stages, each a line of 80 columns at most: what is cut short is the text."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Words(TextColumn):
        """The text of a stage, as far as there is room: the only column that gives way."""

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    return Progress(
        SpinnerColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        Words("{task.fields[text]}", markup=False, table_column=Column()),
        console=Console(stderr=True),
    )
