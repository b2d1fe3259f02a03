"""By how much the narrow weights are best shrunk when they are padded with fresh units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from experiments.training import Checkpoint, decay, train, widen, widened
from experiments.transfer import Grid, Losses, power, search

SHRINKS = (0.2, 0.4, 0.6, 0.8, 1.0)
SIZES = (1.0, 0.5)  # of the fresh weights: 1 is the root mean square of the narrow ones, as muP carries it to a width


@dataclass(frozen=True)
class Shrinking:
    """What `--method warmstart` comes to at one width.

    Attributes:
        factor: width over narrow width.
        size: of the fresh weights, relative to the narrow ones.
        grids: losses over learning rates by what the narrow weights are multiplied by.
        at_once: training loss before the first step, of all seeds.
    """

    factor: int
    size: float
    grids: dict[float, Grid]
    at_once: dict[float, Losses]

    @property
    def best(self) -> float:
        """The shrinkage with the least loss."""
        return min(self.grids, key=lambda shrink: fmean(self.grids[shrink].seen[self.grids[shrink].best]))


def measure_shrinking(
    narrow: Checkpoint, factor: int, size: float, start: int, say: Callable[[str], None], shrinks: tuple[float, ...]
) -> Shrinking:
    """Train padded models with the best learning rate for each shrinkage.

    Args:
        narrow: what is widened.
        factor: width over narrow width.
        size: of the fresh weights.
        start: exponent of the learning rate at which searches begin.
        say: what happens meanwhile.
        shrinks: factors of the narrow weights.
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
                made = widened(narrow, wide, factor, power(exponent))
                batches = data.batches(task.batch_size, task.steps, seed)
                curves.append(train(*made, batches, task.steps, decay, data, {0, task.steps}))
            at_once[shrink] = tuple(curve.seen[0] for curve in curves)
            return tuple(curve.last for curve in curves), tuple(curve.held_out[task.steps] for curve in curves)

        grids[shrink] = search(losses, start, reach=1, walk=task.walk)
        start = grids[shrink].best
        say(f"x{factor} size {size} shrink {shrink}: {grids[shrink].told}")
    return Shrinking(factor, size, grids, at_once)
