"""The trials of a sweep, kept by Optuna so that they survive their processes and are shared between them.

Optuna's journal is one file that is only ever appended to: it needs no server and no driver, several processes
append to it under one lock (SQLite is what Optuna advises against for many), and `optuna-dashboard study.journal` shows
it. A point of the grid is enqueued when a process is free to run it. What Optuna has only for databases is a heartbeat,
so each running trial holds a lock of the operating system, which is free again as soon as its process is dead.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mupscale_cli.errors import SweepError
from mupscale_cli.sweep.grid import Grid, Point
from mupscale_cli.sweep.result import Trial

JOURNAL = "study.journal"
_NAME = "mupscale-sweep"
_FIXED = "fixed"
_LARGEST = 1e300  # Optuna wants bounds; the grid has its own


@dataclass(frozen=True)
class Running:
    """A trial in progress, here or in another process.

    Attributes:
        point: what is tried.
        step: the last one that was reported, 0 before the first.
        loss: of that step.
    """

    point: Point
    step: int
    loss: float | None


class _JournalLock:
    """What Optuna wants of a lock. Its own ones are files that outlive a killed process for half a minute."""

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / "journal.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Claim:
    """A trial that this process is to run; a context manager that gives it back if it is not finished."""

    def __init__(self, study: Study, trial: Any, point: Point, lock: FileLock) -> None:
        self.point = point
        self.number: int = trial.number
        self._study = study
        self._trial = trial
        self._lock = lock
        self._is_finished = False

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_finished:
            self._study.give_back(self.number)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def report(self, step: int, loss: float) -> None:
        """Say how far it is, for every process that shows the study."""
        if math.isfinite(loss):
            self._trial.report(loss, step)

    def finish(self, loss: float) -> None:
        """Note its loss; one that is no finite number is a divergence, which is a result too."""
        self._is_finished = True
        self._study.finish(self.number, loss if math.isfinite(loss) else None)


class Study:
    """The trials of a directory."""

    def __init__(self, directory: Path) -> None:
        """Open the study of a directory, or begin it.

        Raises:
            SweepError: Optuna is not installed, or its journal cannot be read.
        """
        self._optuna = _import_optuna()
        self._locks = directory / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self._locks / "study.lock")
        try:
            with self.lock:
                self._study = self._open(directory / JOURNAL)
        except (OSError, ValueError, KeyError) as error:
            raise SweepError(
                f"cannot read `{directory / JOURNAL}`: {error}", hint="choose another directory with `-o`"
            ) from error

    def _open(self, journal: Path) -> Any:
        optuna = self._optuna
        backend = optuna.storages.journal.JournalFileBackend(str(journal), lock_obj=_JournalLock(self._locks))
        return optuna.create_study(
            study_name=_NAME,
            storage=optuna.storages.JournalStorage(backend),
            sampler=optuna.samplers.RandomSampler(),  # never asked: every trial was enqueued with all its values
            direction="minimize",
            load_if_exists=True,
        )

    def check_fixed(self, fixed: dict[str, Any]) -> None:
        """Hold what all trials have in common against what the study was begun with.

        Raises:
            SweepError: they differ, so that the losses could not be compared.
        """
        with self.lock:
            begun = self._study.user_attrs.get(_FIXED)
            if begun is None:
                self._study.set_user_attr(_FIXED, fixed)
                return
        differing = _first_difference(begun, fixed)
        if differing is not None:
            name, before, now = differing
            raise SweepError(
                f"the study was begun with {name} {before!r}, now it is {now!r}",
                hint="choose another directory with `-o`, or give what it was begun with",
            )

    def claim(self, grid: Grid) -> Claim | None:
        """The next trial of a grid, None if all are finished or in progress."""
        with self.lock:
            self._retry_dead()
            if not self._trials(("WAITING",)):  # as there are after a kill at this very place
                point = self._missing(grid)
                if point is None:
                    return None
                self._study.enqueue_trial(asdict(point))
            trial = self._study.ask()
            point = Point(
                trial.suggest_int("factor", 1, 1 << 31),
                trial.suggest_float("noise", 0.0, _LARGEST),
                trial.suggest_int("seed", 0, 1 << 31),
                trial.suggest_float("lr", 1 / _LARGEST, _LARGEST, log=True),
            )
            lock = self._lock_of(trial.number)
            lock.acquire()
            return Claim(self, trial, point, lock)

    def _lock_of(self, number: int) -> FileLock:
        return FileLock(self._locks / f"trial-{number}.lock", is_singleton=False)

    def _retry_dead(self) -> None:
        """Fail the running trials whose process is gone; what failed is enqueued again."""
        for trial in self._trials(("RUNNING",)):
            lock = self._lock_of(trial.number)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            self.give_back(trial.number)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def _missing(self, grid: Grid) -> Point | None:
        """The first point of a grid that is neither finished nor in progress."""
        there = {_point(trial) for trial in self._trials(("RUNNING", "COMPLETE", "PRUNED"))}
        return next((point for point in grid if point not in there), None)

    def finish(self, number: int, loss: float | None) -> None:
        """Note the result of a trial. Pruned is what Optuna calls one that ended without a value."""
        if loss is None:
            self._study.tell(number, state=self._state("PRUNED"))
        else:
            self._study.tell(number, loss)

    def give_back(self, number: int) -> None:
        """Let another process, or a later one, run a trial from its beginning."""
        self._study.tell(number, state=self._state("FAIL"), skip_if_finished=True)

    def results(self, grid: Grid) -> list[Trial]:
        """The finished trials of a grid, in the grid's order."""
        done = {}
        for trial in self._trials(("COMPLETE", "PRUNED")):
            # A pruned trial has the value of its last report; what counts is that it has no result.
            done[_point(trial)] = trial.value if trial.state.name == "COMPLETE" else None
        return [Trial(point, done[point]) for point in grid if point in done]

    def running(self) -> list[Running]:
        """The trials in progress."""
        found = []
        for trial in self._trials(("RUNNING",)):
            step = trial.last_step
            found.append(Running(_point(trial), step or 0, None if step is None else trial.intermediate_values[step]))
        return found

    def unfinished(self, grid: Grid) -> list[Point]:
        """What of a grid has no result yet, and whatever else is in progress."""
        done = {trial.point for trial in self.results(grid)}
        return [*(point for point in grid if point not in done), *(trial.point for trial in self.running())]

    def _trials(self, states: Iterable[str] = ()) -> list[Any]:
        wanted = tuple(self._state(name) for name in states) or None
        found: list[Any] = self._study.get_trials(deepcopy=False, states=wanted)
        return found

    def _state(self, name: str) -> Any:
        return self._optuna.trial.TrialState[name]


def _point(trial: Any) -> Point:
    """What a trial tries: before it runs Optuna keeps that among its system attributes."""
    values = trial.system_attrs.get("fixed_params") or trial.params
    return Point(int(values["factor"]), float(values["noise"]), int(values["seed"]), float(values["lr"]))


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _first_difference(old, new)
            return key.replace("_", " "), old, new
    return None


def _import_optuna() -> Any:
    try:
        optuna: Any = importlib.import_module("optuna")
        importlib.import_module("optuna.storages.journal")
    except ImportError as error:
        raise SweepError(
            "a sweep keeps its trials with Optuna, which is not installed", hint="pip install 'mupscale[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
