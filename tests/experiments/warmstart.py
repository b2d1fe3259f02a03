"""Find the best shrink factor for narrow weights that are padded with fresh units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from experiments.training import Checkpoint, decay, train, widen, widened
from experiments.transfer import Grid, Losses, power, search

SHRINKS = (0.2, 0.4, 0.6, 0.8, 1.0)
SIZES = (1.0, 0.5)  # of the fresh weights: 1 is the root mean square of the narrow ones, scaled to the width by muP


@dataclass(frozen=True)
class Shrinking:
    """The results of `--method warmstart` at one width.

    Attributes:
        factor: width over narrow width.
        size: the size of the fresh weights, relative to the narrow ones.
        grids: losses over learning rates, by shrink factor.
        at_once: training losses before the first step, one per seed, by shrink factor.
    """

    factor: int
    size: float
    grids: dict[float, Grid]
    at_once: dict[float, Losses]

    @property
    def best(self) -> float:
        """The shrink factor with the lowest loss."""
        return min(self.grids, key=lambda shrink: fmean(self.grids[shrink].seen[self.grids[shrink].best]))


def measure_shrinking(
    narrow: Checkpoint, factor: int, size: float, start: int, report: Callable[[str], None], shrinks: tuple[float, ...]
) -> Shrinking:
    """Train padded models with the best learning rate for each shrink factor.

    Args:
        narrow: the model to widen.
        factor: width over narrow width.
        size: the size of the fresh weights.
        start: exponent of the learning rate at which the first search starts.
        report: receives progress messages.
        shrinks: the shrink factors to try.
    """
    task = narrow.task
    data = task.data()
    grids: dict[float, Grid] = {}
    at_once: dict[float, Losses] = {}
    for shrink in shrinks:

        def losses(exponent: int, shrink: float = shrink) -> tuple[Losses, Losses]:
            curves = []
            for seed in task.seeds:
                wide = widen(
                    narrow, factor, method="warmstart", shrink=shrink, noise=size, noise_scale="init", seed=seed
                )
                model_and_optimizer = widened(narrow, wide, factor, power(exponent))
                batches = data.batches(task.batch_size, task.steps, seed)
                curves.append(train(*model_and_optimizer, batches, task.steps, decay, data, {0, task.steps}))
            at_once[shrink] = tuple(curve.seen[0] for curve in curves)
            return tuple(curve.last for curve in curves), tuple(curve.held_out[task.steps] for curve in curves)

        grids[shrink] = search(losses, start, reach=1, walk=task.walk)
        start = grids[shrink].best
        report(f"x{factor} size {size} shrink {shrink}: {grids[shrink].summary}")
    return Shrinking(factor, size, grids, at_once)
