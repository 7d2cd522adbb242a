"""Progress of long work, on stderr: a bar with the time left, or plain lines off a terminal."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_AFTER_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0


class ProgressReporter:
    """Callable as `on_progress(done, total, what)`; silent for work that ends within seconds."""

    def __init__(
        self,
        title: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started = self._phase_started = self._last_line = clock()
        self._last_done = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = self._clock()
        if done < self._last_done:  # a new phase of the same work counts from its own start
            self._phase_started = now
        self._last_done = done
        if now - self._started < BAR_AFTER_SECONDS:
            return
        if self._stream.isatty():
            self._draw(done, total, what)
        elif now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            seconds = (now - self._phase_started) / done * (total - done) if done else None
            left = "" if seconds is None else f", {_duration(seconds)} left"
            self._stream.write(f"{self.title}: {done}/{total} {what}{left}\n")
            self._stream.flush()

    def _draw(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            self._bar = _new_bar(self._stream)
            self._task = self._bar.add_task(self.title, total=total, what=what)
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, what=what)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _new_bar(stream: TextIO) -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=Console(file=stream),
        transient=True,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
