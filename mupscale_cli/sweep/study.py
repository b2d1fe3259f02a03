"""Store the trials of a sweep: they outlive a killed process, and several processes share them.

`trials.jsonl` is only appended to: its first line holds the settings that all trials share, every other line is a
finished trial. A running trial holds a lock of the operating system, which is released however its process ends.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.errors import SweepError
from mupscale_cli.files import read_bytes, read_text
from mupscale_cli.sweep.grid import Grid, Point
from mupscale_cli.sweep.result import Trial

TRIALS = "trials.jsonl"


@dataclass(frozen=True)
class Running:
    """A trial in progress, here or in another process.

    Attributes:
        point: the trial's point of the grid.
        step: last reported step, 0 before the first report.
        loss: training loss at that step, None before the first report.
    """

    point: Point
    step: int
    loss: float | None


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs; leaving the context releases it, finished or not.

    Attributes:
        study: study of the trial.
        point: the trial's point of the grid.
        lock: lock held while the trial runs; a JSON file of the same name shows its progress to other processes.
    """

    study: Study
    point: Point
    lock: FileLock

    @property
    def name(self) -> str:
        """Name of the trial's files."""
        return _name(self.point)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        with self.study.lock:
            self._progress.unlink(missing_ok=True)
            release(self.lock)

    def report(self, step: int, loss: float | None) -> None:
        """Publish the trial's progress; a loss that is not finite is left out."""
        if loss is None or math.isfinite(loss):
            replace_json(self._progress, asdict(Running(self.point, step, loss)))

    def finish(self, loss: float) -> None:
        """Record the final loss; one that is not finite is a divergence, which is a result too."""
        with self.study.lock:
            self.study.append({"point": asdict(self.point), "loss": loss if math.isfinite(loss) else None})

    @property
    def _progress(self) -> Path:
        return Path(self.lock.lock_file).with_suffix(".json")


class Study:
    """The trials of a directory."""

    def __init__(self, directory: Path) -> None:
        """Open the study of a directory, or start one.

        Raises:
            SweepError: `trials.jsonl` cannot be read.
        """
        self._file = directory / TRIALS
        self._locks = directory / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self._locks / "study.lock")
        try:
            with self.lock:
                self._drop_torn_line()
                self._finished()
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SweepError(
                f"cannot read `{self._file}`: {error}", hint="choose another directory with `-o`"
            ) from error

    def check_fixed(self, fixed: dict[str, Any]) -> None:
        """Check that the settings are those the study was started with, so that losses are comparable.

        Raises:
            SweepError: a setting differs.
        """
        with self.lock:
            lines = self._lines()
            if not lines:
                self.append({"fixed": fixed})
                return
        differing = _first_difference(lines[0]["fixed"], fixed)
        if differing is not None:
            name, before, now = differing
            raise SweepError(
                f"the sweep in this directory was started with {name} {before!r}, now it is {now!r}",
                hint="choose another directory with `-o`, or restore the setting",
            )

    def claim(self, grid: Grid) -> Claim | None:
        """Claim the next trial of a grid; return None if all are finished or in progress."""
        with self.lock:
            finished = self._finished()
            for point in grid:
                if point not in finished and (lock := try_lock(self._locks / f"{_name(point)}.lock")):
                    claim = Claim(self, point, lock)
                    claim.report(0, None)
                    return claim
        return None

    def results(self, grid: Grid) -> list[Trial]:
        """Return the finished trials of a grid, in the grid's order."""
        finished = self._finished()
        return [Trial(point, finished[point]) for point in grid if point in finished]

    def running(self) -> list[Running]:
        """Return the trials in progress; forget those whose process is dead."""
        running = []
        with self.lock:
            for file in sorted(self._locks.glob("*.json")):
                if lock := try_lock(file.with_suffix(".lock")):
                    file.unlink()
                    release(lock)
                else:
                    progress = read_json(file)
                    running.append(Running(**{**progress, "point": Point(**progress["point"])}))
        return running

    def unfinished(self, grid: Grid) -> list[Point]:
        """Return the points of a grid that have no result yet, and all that are in progress."""
        finished = self._finished()
        return [*(point for point in grid if point not in finished), *(trial.point for trial in self.running())]

    def append(self, line: dict[str, Any]) -> None:
        """Append a line. The caller holds the lock."""
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_torn_line(self) -> None:
        """Remove the start of a line whose process or machine stopped while writing it."""
        self._file.touch()
        os.truncate(self._file, read_bytes(self._file).rfind(b"\n") + 1)

    def _lines(self) -> list[dict[str, Any]]:
        """Read the complete lines; another process may be appending one."""
        return [json.loads(line) for line in read_text(self._file).split("\n")[:-1]]

    def _finished(self) -> dict[Point, float | None]:
        return {Point(**line["point"]): line["loss"] for line in self._lines()[1:]}


def _name(point: Point) -> str:
    """Name a trial's files: `factor2-noise0.1-seed0-lr0.001`."""
    return "-".join(f"{field}{value!r}" for field, value in asdict(point).items())


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _first_difference(old, new)
            return key.replace("_", " "), old, new
    return None
