"""How far a command is: one bar of bytes with speed and time left, and a line for each phase that is done.

On a terminal the bar is for the phase that runs, and leaves its line when it ends. Elsewhere, as in a log, a phase says
its line when it begins, and one that takes long says how far it is now and then, so that nobody takes it for dead.
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

SILENCE = 60.0  # seconds after which a log hears of a long phase
_NAME_WIDTH = 16
_FIGURES_WIDTH = 52  # 999.9 MB of 999.9 GB, 999.9 MB/s, 59 min 59 s left


@contextmanager
def shown(console: Console, *, live: bool, clock: Callable[[], float] = time.monotonic) -> Iterator[Events]:
    """Events that are shown.

    Args:
        console: where.
        live: whether it is a terminal on which a bar can move.
        clock: the time in seconds.
    """
    if not live:
        lines = _Lines(console, clock)
        yield Events(lines.phase, lines.advance, lines.note)
        return
    width = max(8, min(40, console.width - _NAME_WIDTH - _FIGURES_WIDTH))
    columns = (TextColumn(f"{{task.description:<{_NAME_WIDTH}}}"), BarColumn(bar_width=width), _Figures())
    with Progress(*columns, console=console, transient=True, get_time=clock) as progress:
        bars = _Bars(progress)
        yield Events(bars.phase, bars.advance, bars.note)
        bars.end()


class _Figures(ProgressColumn):
    """Bytes, speed and time left; of a phase without bytes, how long it has been going on."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(time_text(task.elapsed or 0.0), style="progress.elapsed")
        left = "" if task.time_remaining is None else f", {time_text(task.time_remaining)} left"
        speed = "" if not task.speed else f", {bytes_text(task.speed)}/s"
        done, total = bytes_text(task.completed), bytes_text(task.total)
        return Text(f"{done} of {total}{speed}{left}", style="progress.download", no_wrap=True)


class _Bars:
    """One bar at a time; lives as long as they are shown."""

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
        """Leave a line of the phase that ends."""
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


class _Lines:
    """A line when a phase begins, and now and then one of how far it is."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._name, self._total, self._done = "", 0, 0
        self._began = self._told = 0.0

    def phase(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._began = self._told = self._clock()
        self._print(f"{name} ({bytes_text(total)})" if total else name)

    def advance(self, count: int) -> None:
        self._done += count
        now = self._clock()
        if self._total and now - self._told >= SILENCE:
            self._told = now
            speed = self._done / (now - self._began)
            left = time_text(max(0, self._total - self._done) / speed)
            self._print(
                f"{self._name}: {self._done / self._total:.0%}, {bytes_text(self._done)} of "
                f"{bytes_text(self._total)}, {bytes_text(speed)}/s, {left} left"
            )

    def note(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
