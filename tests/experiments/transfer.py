"""Search for the best learning rate and the best noise at every width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Literal

from experiments.data import Data
from experiments.tasks import Task
from experiments.training import (
    Checkpoint,
    add_absolute_noise,
    continued,
    decay,
    from_scratch,
    train,
    train_narrow,
    warm_up_and_decay,
    widen,
    widened,
)

# How a wide model is created and trained. `mapped`: mapped hyperparameters, and noise relative to each tensor.
# `standard`: one learning rate, and noise of one size. `scratch-`: from random weights instead of widened.
Arm = Literal["mapped", "standard", "scratch-mapped", "scratch-standard"]
Losses = tuple[float, ...]  # one per seed


@dataclass(frozen=True)
class Grid:
    """Final losses over a grid of powers of the root of two.

    Attributes:
        seen: training losses of all seeds, by the exponent e of 2 ** (e / 2).
        held_out: held-out losses of all seeds, by the exponent.
    """

    seen: dict[int, Losses]
    held_out: dict[int, Losses]

    @property
    def best(self) -> int:
        """The exponent with the lowest mean training loss."""
        return min(self.seen, key=lambda exponent: fmean(self.seen[exponent]))

    @property
    def best_of_seeds(self) -> tuple[int, ...]:
        """The exponent with the lowest training loss, for each seed."""
        seeds = range(len(next(iter(self.seen.values()))))
        return tuple(min(self.seen, key=lambda exponent: self.seen[exponent][seed]) for seed in seeds)

    @property
    def fitted(self) -> float:
        """The optimum between grid points: the minimum of a parabola through the lowest mean and its neighbors."""
        e = self.best
        around = [fmean(self.seen[e + offset]) if e + offset in self.seen else math.inf for offset in (-1, 0, 1)]
        if not all(map(math.isfinite, around)):
            return float(e)
        left, middle, right = around
        bend = left - 2 * middle + right
        return e + (left - right) / (2 * bend) if bend > 0 else float(e)

    @property
    def summary(self) -> str:
        """The optimum and all points, in one line."""
        points = ", ".join(f"{e}: {fmean(losses):.4f}" for e, losses in self.seen.items())
        return f"2^({self.best}/2), of seeds {self.best_of_seeds}, fitted {self.fitted:.1f} ({points})"


def power(exponent: float) -> float:
    """Return the grid point of an exponent."""
    return 2.0 ** (exponent / 2)


def nearest_power(value: float) -> int:
    """Return the exponent of the grid point nearest to a value."""
    return round(2 * math.log2(value))


def search(evaluate: Callable[[int], tuple[Losses, Losses]], start: int, reach: int = 2, walk: int = 20) -> Grid:
    """Walk over the grid until the best point has `reach` worse ones on either side.

    Args:
        evaluate: returns the training and held-out losses of all seeds for an exponent.
        start: the exponent to start with.
        reach: number of worse points on each side.
        walk: distance from the start at which the search gives up.
    """
    seen: dict[int, Losses] = {}
    held_out: dict[int, Losses] = {}

    def grid() -> Grid:
        return Grid(dict(sorted(seen.items())), dict(sorted(held_out.items())))

    best = start
    while True:
        missing = [e for e in range(best - reach, best + reach + 1) if e not in seen]
        if not missing or abs(best - start) > walk:
            return grid()
        for exponent in missing:
            seen[exponent], held_out[exponent] = evaluate(exponent)
        best = grid().best


def narrow_checkpoint(task: Task, folder: Path) -> tuple[Checkpoint, Grid]:
    """Train the narrow model with the best learning rate of the grid; also return the losses of the search."""
    data = task.data()

    def evaluate(exponent: int) -> tuple[Losses, Losses]:
        narrow = train_narrow(task, folder / f"lr{exponent}", power(exponent))
        # Learning rates are compared after they have decayed.
        model, optimizer = continued(narrow, narrow.lr)
        curve = train(
            model, optimizer, data.batches(task.batch_size, task.steps, 0), task.steps, decay, data, {task.steps}
        )
        return (curve.last,), (curve.held_out[task.steps],)

    grid = search(evaluate, nearest_power(task.lr), reach=task.reach, walk=task.walk)
    return train_narrow(task, folder / "best", power(grid.best)), grid


def final_losses(
    narrow: Checkpoint, data: Data, arm: Arm, factor: int, lr: float, noise: float, seeds: tuple[int, ...]
) -> tuple[Losses, Losses]:
    """Train at a width and return the final training and held-out losses of every seed."""
    task = narrow.task
    curves = []
    for seed in seeds:
        model, optimizer = wide_model(narrow, arm, factor, lr, noise, seed)
        schedule = warm_up_and_decay if arm.startswith("scratch") else decay
        batches = data.batches(task.batch_size, task.steps, seed)
        curves.append(train(model, optimizer, batches, task.steps, schedule, data, {task.steps}))
    return tuple(curve.last for curve in curves), tuple(curve.held_out[task.steps] for curve in curves)


def wide_model(narrow: Checkpoint, arm: Arm, factor: int, lr: float, noise: float, seed: int):
    """Return a wide model and its optimizer, before training."""
    if arm.startswith("scratch"):
        return from_scratch(narrow, widen(narrow, factor), factor, lr, seed, mapped=arm == "scratch-mapped")
    if arm == "mapped":
        wide = widen(narrow, factor, noise=noise, seed=seed)
        return widened(narrow, wide, factor, lr)
    model, optimizer = widened(narrow, widen(narrow, factor), factor, lr, mapped=False)
    add_absolute_noise(model, narrow, noise, seed)
    return model, optimizer


@dataclass(frozen=True)
class Transfer:
    """The optima of one arm at all widths.

    Attributes:
        arm: how models are created and trained.
        noise: the exponent of the noise at which learning rates are compared, tuned at the smallest factor.
        lr: losses over learning rates, by factor.
        noises: losses over sizes of noise at the best learning rate of each width, by factor.
    """

    arm: Arm
    noise: int
    lr: dict[int, Grid]
    noises: dict[int, Grid]


def shift(grids: Mapping[int, Grid]) -> int:
    """Return the grid steps between the smallest and the largest optimum of all widths."""
    best = [grid.best for grid in grids.values()]
    return max(best) - min(best)


def measure_transfer(narrow: Checkpoint, arm: Arm, report: Callable[[str], None], noise_start: int = -3) -> Transfer:
    """Search for both optima at every width.

    Args:
        narrow: the model to widen, or the base of models with random weights.
        arm: how wide models are created and trained.
        report: receives progress messages.
        noise_start: exponent of the noise at which the search starts.
    """
    task = narrow.task
    data = task.data()
    start = nearest_power(narrow.lr)

    @cache  # both searches at a width share a point
    def over_rates(factor: int, noise: int, exponent: int) -> tuple[Losses, Losses]:
        return final_losses(narrow, data, arm, factor, power(exponent), power(noise), task.seeds)

    def over_noises(factor: int, lr: int, exponent: int) -> tuple[Losses, Losses]:
        return over_rates(factor, exponent, lr)

    first = search(partial(over_noises, task.factors[0], start), noise_start, reach=task.reach, walk=task.walk)
    noise = first.best
    report(f"{arm}: noise {first.summary}")
    rates: dict[int, Grid] = {}
    noises: dict[int, Grid] = {}
    noise_start = noise
    reach = task.reach
    for factor in task.factors:
        rates[factor] = search(partial(over_rates, factor, noise), start, reach=reach, walk=task.walk)
        start = rates[factor].best  # the next width's search starts here
        report(f"{arm} x{factor}: lr {rates[factor].summary}")
        noises[factor] = search(partial(over_noises, factor, start), noise_start, reach=reach, walk=task.walk)
        noise_start = noises[factor].best
        report(f"{arm} x{factor}: noise {noises[factor].summary}")
        reach = 1  # the next search starts near its optimum, and wide models take most of the time
    return Transfer(arm, noise, rates, noises)
