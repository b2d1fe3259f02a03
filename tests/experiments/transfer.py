"""Where the best learning rate and the best noise lie, at every width."""

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

# How a wide model is made and trained: widened with mapped hyperparameters and noise relative to each tensor; widened
# with one learning rate and noise of one size; at random likewise.
Arm = Literal["mapped", "standard", "scratch-mapped", "scratch-standard"]
Losses = tuple[float, ...]  # one a seed


@dataclass(frozen=True)
class Grid:
    """Final losses over a grid of powers of the root of two.

    Attributes:
        seen: training losses of all seeds by the exponent e of 2 ** (e / 2).
        held_out: the same on held-out data.
    """

    seen: dict[int, Losses]
    held_out: dict[int, Losses]

    @property
    def best(self) -> int:
        """The exponent with the least mean training loss."""
        return min(self.seen, key=lambda exponent: fmean(self.seen[exponent]))

    @property
    def best_of_seeds(self) -> tuple[int, ...]:
        """The exponent with the least training loss of each seed."""
        seeds = range(len(next(iter(self.seen.values()))))
        return tuple(min(self.seen, key=lambda exponent: self.seen[exponent][seed]) for seed in seeds)

    @property
    def fitted(self) -> float:
        """The optimum between grid points: of the parabola through the least mean and its neighbours."""
        e = self.best
        around = [fmean(self.seen[e + offset]) if e + offset in self.seen else math.inf for offset in (-1, 0, 1)]
        if not all(map(math.isfinite, around)):
            return float(e)
        left, middle, right = around
        bend = left - 2 * middle + right
        return e + (left - right) / (2 * bend) if bend > 0 else float(e)

    @property
    def told(self) -> str:
        """The optimum and the points around it, in a line."""
        points = ", ".join(f"{e}: {fmean(losses):.4f}" for e, losses in self.seen.items())
        return f"2^({self.best}/2), of seeds {self.best_of_seeds}, fitted {self.fitted:.1f} ({points})"


def power(exponent: float) -> float:
    """A point of the grid."""
    return 2.0 ** (exponent / 2)


def nearest_power(value: float) -> int:
    return round(2 * math.log2(value))


def search(evaluate: Callable[[int], tuple[Losses, Losses]], start: int, reach: int = 2, walk: int = 20) -> Grid:
    """Walk over the grid until the best point has `reach` worse ones on either side.

    Args:
        evaluate: from an exponent to training and held-out losses of all seeds.
        start: the exponent to begin with.
        reach: how many points on each side.
        walk: how far from the start the search gives up.
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
    """The narrow model, trained with the best learning rate of the grid."""
    data = task.data()

    def evaluate(exponent: int) -> tuple[Losses, Losses]:
        narrow = train_narrow(task, folder / f"lr{exponent}", power(exponent))
        # What a learning rate was good for shows after it has decayed.
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
    """Training and held-out loss after training at a width, of every seed."""
    task = narrow.task
    curves = []
    for seed in seeds:
        model, optimizer = wide_model(narrow, arm, factor, lr, noise, seed)
        schedule = warm_up_and_decay if arm.startswith("scratch") else decay
        batches = data.batches(task.batch_size, task.steps, seed)
        curves.append(train(model, optimizer, batches, task.steps, schedule, data, {task.steps}))
    return tuple(curve.last for curve in curves), tuple(curve.held_out[task.steps] for curve in curves)


def wide_model(narrow: Checkpoint, arm: Arm, factor: int, lr: float, noise: float, seed: int):
    """A wide model at the beginning of its training, and its optimizer."""
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
        arm: how models are made and trained.
        noise: with which learning rates were compared, tuned at the least factor.
        lr: losses over learning rates by factor.
        noises: losses over sizes of noise by factor, each at the best learning rate of its width.
    """

    arm: Arm
    noise: int
    lr: dict[int, Grid]
    noises: dict[int, Grid]


def shift(grids: Mapping[int, Grid]) -> int:
    """Grid steps between the smallest and the largest optimum of all widths."""
    best = [grid.best for grid in grids.values()]
    return max(best) - min(best)


def measure_transfer(narrow: Checkpoint, arm: Arm, say: Callable[[str], None], noise_start: int = -3) -> Transfer:
    """Search for both optima at every width.

    Args:
        narrow: what is widened, or the base of what begins at random.
        arm: how.
        say: what happens meanwhile.
        noise_start: exponent of the noise at which the search begins.
    """
    task = narrow.task
    data = task.data()
    start = nearest_power(narrow.lr)

    @cache  # both searches at a width go through the point where they cross
    def over_rates(factor: int, noise: int, exponent: int) -> tuple[Losses, Losses]:
        return final_losses(narrow, data, arm, factor, power(exponent), power(noise), task.seeds)

    def over_noises(factor: int, lr: int, exponent: int) -> tuple[Losses, Losses]:
        return over_rates(factor, exponent, lr)

    first = search(partial(over_noises, task.factors[0], start), noise_start, reach=task.reach, walk=task.walk)
    noise = first.best
    say(f"{arm}: noise {first.told}")
    rates: dict[int, Grid] = {}
    noises: dict[int, Grid] = {}
    noise_start = noise
    reach = task.reach
    for factor in task.factors:
        rates[factor] = search(partial(over_rates, factor, noise), start, reach=reach, walk=task.walk)
        start = rates[factor].best  # where the next width's search begins
        say(f"{arm} x{factor}: lr {rates[factor].told}")
        noises[factor] = search(partial(over_noises, factor, start), noise_start, reach=reach, walk=task.walk)
        noise_start = noises[factor].best
        say(f"{arm} x{factor}: noise {noises[factor].told}")
        reach = 1  # it begins at an optimum, and wide models take most of the time
    return Transfer(arm, noise, rates, noises)
