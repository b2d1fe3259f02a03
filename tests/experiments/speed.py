"""How fast a widened model trains, held against the narrow one and against one that begins at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from experiments.data import Data
from experiments.training import Checkpoint, Curve, Schedule, continued, decay, train, warm_up_and_decay
from experiments.transfer import Arm, Grid, Losses, final_losses, nearest_power, power, search, wide_model

_NUM_JUDGED = 20
_NOISE = -4  # exponent at which the search for the best noise begins


@dataclass(frozen=True)
class Speed:
    """Curves at one width, one of each seed.

    Attributes:
        factor: width over narrow width.
        lr: exponents of the learning rates by arm.
        noise: exponent of the widened models' noise.
        narrow: the narrow model, which goes on.
        widened: widened with noise, with hyperparameters that were tuned at the least factor.
        scratch: from random weights, with the best learning rate for this width.
    """

    factor: int
    lr: dict[str, int]
    noise: int
    narrow: tuple[Curve, ...]
    widened: tuple[Curve, ...]
    scratch: tuple[Curve, ...]

    @property
    def steps(self) -> int:
        return max(self.narrow[0].seen)

    @property
    def narrow_loss(self) -> float:
        """The loss of the narrow model when it is widened."""
        return self.narrow[0].seen[0]

    def steps_until(self, curves: tuple[Curve, ...], loss: Callable[[int], float]) -> list[float | None]:
        """After how many steps each seed's curve is down to a loss; None where it never is."""
        return [first_step(curve.seen, loss(seed)) for seed, curve in enumerate(curves)]

    @property
    def until_narrow(self) -> list[float | None]:
        """Steps of widened models until they are where the narrow one was."""
        return self.steps_until(self.widened, lambda _seed: self.narrow_loss)

    @property
    def scratch_until_narrow(self) -> list[float | None]:
        return self.steps_until(self.scratch, lambda _seed: self.narrow_loss)

    @property
    def until_scratch(self) -> list[float | None]:
        """Steps of widened models until they are where those from scratch end, on average."""
        end = fmean(curve.last for curve in self.scratch)
        return self.steps_until(self.widened, lambda _seed: end)

    @property
    def ratio(self) -> float | None:
        """Steps from scratch over steps of the widened model to the same loss; None if it never gets there."""
        found = self.until_scratch
        return None if None in found else self.steps / max(fmean(found), 1.0)

    @property
    def ratio_told(self) -> str:
        """The ratio in words where it is no finite number above zero."""
        if self.ratio is None:
            return "never"
        return "at once" if self.ratio >= self.steps else f"{self.ratio:.1f}"

    @property
    def told(self) -> str:
        """Last losses and the ratio, in a line."""
        last = ", ".join(f"{fmean(c.last for c in curves):.4f}" for curves in (self.narrow, self.widened, self.scratch))
        return f"narrow, widened, scratch end at {last}; ratio {self.ratio_told}"


def first_step(seen: dict[int, float], loss: float) -> float | None:
    """Where a curve first comes down to a loss, between judged steps on a straight line."""
    points = sorted(seen.items())
    for (before, high), (step, low) in zip([points[0], *points], points, strict=False):
        if low <= loss:
            return float(step) if high <= loss else before + (step - before) * (high - loss) / (high - low)
    return None


def tune(narrow: Checkpoint, factor: int) -> tuple[Grid, Grid]:
    """The best noise and the best learning rate of widened models at a width."""
    task = narrow.task
    data = task.data()

    def losses(lr: int, noise: int) -> tuple[Losses, Losses]:
        return final_losses(narrow, data, "mapped", factor, power(lr), power(noise), task.seeds)

    rate = nearest_power(narrow.lr)
    noises = search(partial(losses, rate), _NOISE, reach=1, walk=task.walk)
    return noises, search(lambda lr: losses(lr, noises.best), rate, reach=1, walk=task.walk)


def measure_speed(narrow: Checkpoint, factor: int, lr: int, noise: int, scratch_lr: int) -> tuple[Speed, Grid]:
    """Train the three side by side.

    Args:
        narrow: what is widened.
        factor: width over narrow width.
        lr: exponent for the widened model.
        noise: of the widened model.
        scratch_lr: exponent at which the search for the best learning rate from scratch begins.

    Returns:
        The curves, and the losses from scratch by learning rate.
    """
    task = narrow.task
    data = task.data()
    grid = search(
        lambda e: final_losses(narrow, data, "scratch-mapped", factor, power(e), 0.0, task.seeds),
        scratch_lr,
        reach=1,
        walk=task.walk,
    )

    def run(arm: Arm, rate: int, schedule: Schedule) -> tuple[Curve, ...]:
        return tuple(
            _judged(wide_model(narrow, arm, factor, power(rate), power(noise), seed), narrow, data, seed, schedule)
            for seed in task.seeds
        )

    going_on = tuple(_judged(continued(narrow, narrow.lr), narrow, data, seed, decay) for seed in task.seeds)
    return Speed(
        factor,
        {"narrow": nearest_power(narrow.lr), "widened": lr, "scratch": grid.best},
        noise,
        going_on,
        run("mapped", lr, decay),
        run("scratch-mapped", grid.best, warm_up_and_decay),
    ), grid


def _judged(made, narrow: Checkpoint, data: Data, seed: int, schedule: Schedule) -> Curve:
    task = narrow.task
    every = max(task.steps // _NUM_JUDGED, 1)
    # The first steps closer together: how soon noise is overcome shows there.
    judged = {*range(0, task.steps, every), *(2**i for i in range(10) if 2**i < every), task.steps}
    curve = train(*made, data.batches(task.batch_size, task.steps, seed), task.steps, schedule, data, judged)
    return replace(curve, losses=())  # those of single batches are of no use here
