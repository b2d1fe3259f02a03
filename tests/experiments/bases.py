"""Search for the optima along the paper's axis: the base's width varies, the factor does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from experiments.data import Data
from experiments.tasks import Task
from experiments.training import (
    Checkpoint,
    decay,
    from_scratch,
    load,
    mapped_optimizer,
    resume_state,
    save_narrow,
    train,
    train_narrow,
    widen,
)
from experiments.transfer import Grid, Losses, nearest_power, power, search

FACTOR = 2
BASES = (1, 2, 4, 8)  # widths of the base over that of the narrowest base
SEEDS = (0, 1, 2, 3, 4)  # each has a base of its own
Scale = Literal["spectral", "paper"]
SCALES: tuple[Scale, ...] = ("spectral", "paper")
_STARTS: dict[Scale, int] = {"spectral": -3, "paper": 0}  # exponents of the noise at which the first search starts


@dataclass(frozen=True)
class BaseTransfer:
    """The optima of one definition of the noise at all widths of the base.

    Attributes:
        scale: what the noise is relative to.
        lr: exponent of the learning rate at which sizes of noise are compared, tuned at the narrowest base.
        noise: exponent of the noise at which learning rates are compared, tuned at the narrowest base.
        rates: losses over learning rates, by the base's width over that of the narrowest base.
        noises: losses over sizes of noise, by the base's width over that of the narrowest base.
    """

    scale: Scale
    lr: int
    noise: int
    rates: dict[int, Grid]
    noises: dict[int, Grid]


@dataclass(frozen=True)
class Bases:
    """The optima of a task along the axis of the base's width; incomplete if the run was stopped.

    Attributes:
        task: the task's name.
        title: the title of its rows.
        sizes: the sizes of the models and their training, as texts by label.
        seconds: the duration of the measurement so far.
        transfers: one entry per definition of the noise.
        data: digest of the data, on which alone the measurement may go on; empty in older results.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    transfers: tuple[BaseTransfer, ...]
    data: str = ""


class Ladder:
    """Bases of several widths, each trained once per seed in maximal update parametrization."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self._folder = folder
        self.reference = train_narrow(task, folder / "reference", task.lr, steps=0)  # for its shapes
        self.base = cache(self._base)

    def _base(self, width: int, seed: int) -> Checkpoint:
        """Train the base of a width and save it with its optimizer's state."""
        task, folder = self.task.from_width(width), self._folder / f"base-{width}-{seed}"
        if width == 1:
            return train_narrow(task, folder, task.lr, seed=seed)
        model, optimizer = from_scratch(
            self.reference, widen(self.reference, width), width, self.task.lr, seed, mapped=True
        )
        curve = train(
            model, optimizer, task.data().batches(task.batch_size, task.narrow_steps, -1 - seed), task.narrow_steps
        )
        return Checkpoint(task, save_narrow(task, folder, model, optimizer), task.lr, curve.losses)

    def losses(
        self, data: Data, width: int, scale: Scale, lr: int, noise: int, *, seeds: tuple[int, ...]
    ) -> tuple[Losses, Losses]:
        """Widen the base of every seed, train it, and return the final training and held-out losses."""
        task, curves = self.task, []
        for seed in seeds:
            narrow = self.base(width, seed)
            wide = widen(narrow, FACTOR, noise=power(noise), noise_scale=scale, seed=seed)
            model = load(narrow.task, wide, FACTOR)
            # Learning rates are those of the narrowest base, carried through both widenings at once.
            optimizer = mapped_optimizer(task, model, widen(self.reference, FACTOR * width), power(lr))
            resume_state(optimizer, wide)
            batches = data.batches(task.batch_size, task.steps, seed)
            curves.append(train(model, optimizer, batches, task.steps, decay, data, {task.steps}))
            for file in wide.parent.glob(f"{wide.stem}.*"):  # thousands of them would fill the disk
                file.unlink()
        return tuple(curve.last for curve in curves), tuple(curve.held_out[task.steps] for curve in curves)


def measure_bases(
    task: Task,
    folder: Path,
    report: Callable[[str], None],
    keep: Callable[[tuple[BaseTransfer, ...]], None],
    bases: tuple[int, ...] = BASES,
    seeds: tuple[int, ...] = SEEDS,
    earlier: tuple[BaseTransfer, ...] = (),
) -> None:
    """Tune learning rate and noise at the narrowest base, then search for each optimum at every width of the base.

    Args:
        task: the task, whose narrow model is the narrowest base and whose learning rate is the bases'.
        folder: a folder for checkpoints.
        report: receives progress messages.
        keep: receives the results after each width.
        bases: widths of the base over that of the narrowest one.
        seeds: seeds of bases, noise and batches.
        earlier: results of a run that was stopped; their widths are not measured again.
    """
    ladder = Ladder(task, folder)
    found = {scale: BaseTransfer(scale, 0, 0, {}, {}) for scale in SCALES}
    found |= {transfer.scale: transfer for transfer in earlier}
    for width in bases:
        for scale in SCALES:
            if width in found[scale].rates:
                continue
            found[scale] = _with_width(found[scale], ladder, width, seeds)
            rates, noises = found[scale].rates[width], found[scale].noises[width]
            report(f"{scale} base x{width}: lr {rates.summary}; noise {noises.summary}")
            keep(tuple(transfer for transfer in found.values() if transfer.rates))


def _with_width(before: BaseTransfer, ladder: Ladder, width: int, seeds: tuple[int, ...]) -> BaseTransfer:
    """Add a width of the base; the first one also decides at which values the other hyperparameter is compared."""
    task, data = ladder.task, ladder.task.data()
    at = cache(partial(ladder.losses, data, width, before.scale, seeds=seeds))
    lr, noise = before.lr, before.noise
    if not before.rates:
        start = nearest_power(task.lr)
        noise = search(lambda e: at(start, e), _STARTS[before.scale], reach=1, walk=task.walk).best
        lr = search(lambda e: at(e, noise), start, reach=1, walk=task.walk).best
    lr_start, noise_start = (
        grids[max(grids)].best if grids else first for grids, first in ((before.rates, lr), (before.noises, noise))
    )
    rates = search(lambda e: at(e, noise), lr_start, reach=task.reach, walk=task.walk)
    noises = search(lambda e: at(lr, e), noise_start, reach=task.reach, walk=task.walk)
    return replace(
        before, lr=lr, noise=noise, rates={**before.rates, width: rates}, noises={**before.noises, width: noises}
    )
