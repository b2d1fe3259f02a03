"""Show the progress of a command: bytes, speed and time left.

On a terminal, the current phase has a bar, and a finished phase leaves a line. Elsewhere, for example in a log, a phase
prints a line when it starts, and a long phase prints its progress once a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from mupscale_cli.engine.events import Events
from mupscale_cli.text import bytes_text, time_text

LOG_INTERVAL = 60.0  # seconds between two lines of a long phase in a log
_NAME_WIDTH = 16
_FIGURES_WIDTH = 52  # 999.9 MB of 999.9 GB, 999.9 MB/s, 59 min 59 s left


@contextmanager
def show_progress(console: Console, *, live: bool, clock: Callable[[], float] = time.monotonic) -> Iterator[Events]:
    """Yield events that print progress on a console.

    Args:
        console: the console.
        live: whether the console can redraw a bar.
        clock: returns the time in seconds.
    """
    if not live:
        lines = _LogLines(console, clock)
        yield Events(lines.phase, lines.advance, lines.note)
        return
    width = max(8, min(40, console.width - _NAME_WIDTH - _FIGURES_WIDTH))
    columns = (TextColumn(f"{{task.description:<{_NAME_WIDTH}}}"), BarColumn(bar_width=width), _Figures())
    with Progress(*columns, console=console, transient=True, get_time=clock) as progress:
        bars = _Bars(progress)
        yield Events(bars.phase, bars.advance, bars.note)
        bars.end()


class _Figures(ProgressColumn):
    """Renders bytes, speed and time left or, for a phase without bytes, the elapsed time."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(time_text(task.elapsed or 0.0), style="progress.elapsed")
        left = "" if task.time_remaining is None else f", {time_text(task.time_remaining)} left"
        speed = "" if not task.speed else f", {bytes_text(task.speed)}/s"
        done, total = bytes_text(task.completed), bytes_text(task.total)
        return Text(f"{done} of {total}{speed}{left}", style="progress.download", no_wrap=True)


class _Bars:
    """Shows a bar for the current phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._current: TaskID | None = None

    def phase(self, name: str, total: int) -> None:
        self.end()
        self._current = self._progress.add_task(name, total=total or None)

    def advance(self, count: int) -> None:
        if self._current is not None:
            self._progress.advance(self._current, count)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Replace the bar of the current phase by a line."""
        if self._current is None:
            return
        task = next(task for task in self._progress.tasks if task.id == self._current)
        elapsed = task.elapsed or 0.0
        text = f"{task.description:<{_NAME_WIDTH}} {_done_text(int(task.completed), elapsed)}"
        self._progress.console.print(text, markup=False, style="dim", soft_wrap=True)
        self._progress.remove_task(self._current)
        self._current = None


def _done_text(num_bytes: int, seconds: float) -> str:
    speed = f" ({bytes_text(num_bytes / seconds)}/s)" if num_bytes and seconds >= 1 else ""
    return f"{bytes_text(num_bytes)} in {time_text(seconds)}{speed}" if num_bytes else time_text(seconds)


class _LogLines:
    """Prints a line when a phase starts, and its progress every `LOG_INTERVAL` seconds."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._name, self._total, self._done = "", 0, 0
        self._started = self._last_line = 0.0

    def phase(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._started = self._last_line = self._clock()
        self._print(f"{name} ({bytes_text(total)})" if total else name)

    def advance(self, count: int) -> None:
        self._done += count
        now = self._clock()
        if self._total and now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            speed = self._done / (now - self._started)
            left = time_text(max(0, self._total - self._done) / speed)
            self._print(
                f"{self._name}: {self._done / self._total:.0%}, {bytes_text(self._done)} of "
                f"{bytes_text(self._total)}, {bytes_text(speed)}/s, {left} left"
            )

    def note(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
