"""Compare the training speed of a widened model with the narrow one and with one from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from experiments.data import Data
from experiments.training import Checkpoint, Curve, Schedule, continued, decay, train, warm_up_and_decay
from experiments.transfer import Arm, Grid, Losses, final_losses, nearest_power, power, search, wide_model

_NUM_EVALUATIONS = 20
_NOISE = -4  # exponent at which the search for the best noise starts


@dataclass(frozen=True)
class Speed:
    """Training curves at one width, one per seed.

    Attributes:
        factor: width over narrow width.
        lr: exponents of the learning rates by arm.
        noise: exponent of the widened models' noise.
        narrow: curves of the narrow model, which continues training.
        widened: curves of models widened with noise, with hyperparameters tuned at the smallest factor.
        scratch: curves of models from random weights, with the best learning rate for this width.
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
        """The loss of the narrow model at the time of widening."""
        return self.narrow[0].seen[0]

    def steps_until(self, curves: tuple[Curve, ...], loss: Callable[[int], float]) -> list[float | None]:
        """Return the number of steps after which each seed's curve reaches a loss, None if it never does."""
        return [first_step(curve.seen, loss(seed)) for seed, curve in enumerate(curves)]

    @property
    def until_narrow(self) -> list[float | None]:
        """Steps until widened models regain the loss of the narrow one."""
        return self.steps_until(self.widened, lambda _seed: self.narrow_loss)

    @property
    def scratch_until_narrow(self) -> list[float | None]:
        return self.steps_until(self.scratch, lambda _seed: self.narrow_loss)

    @property
    def until_scratch(self) -> list[float | None]:
        """Steps until widened models reach the mean final loss from scratch."""
        end = fmean(curve.last for curve in self.scratch)
        return self.steps_until(self.widened, lambda _seed: end)

    @property
    def ratio(self) -> float | None:
        """Steps from scratch over steps of the widened model to the same loss; None if it never reaches that loss."""
        steps = self.until_scratch
        return None if None in steps else self.steps / max(fmean(steps), 1.0)

    @property
    def ratio_text(self) -> str:
        """The ratio as text: a number, `never` or `at once`."""
        if self.ratio is None:
            return "never"
        return "at once" if self.ratio >= self.steps else f"{self.ratio:.1f}"

    @property
    def summary(self) -> str:
        """The final losses and the ratio, in one line."""
        last = ", ".join(f"{fmean(c.last for c in curves):.4f}" for curves in (self.narrow, self.widened, self.scratch))
        return f"narrow, widened, scratch end at {last}; ratio {self.ratio_text}"


def first_step(seen: dict[int, float], loss: float) -> float | None:
    """Return when a curve first reaches a loss, interpolating between evaluated steps; None if it never does."""
    points = sorted(seen.items())
    for (before, high), (step, low) in zip([points[0], *points], points, strict=False):
        if low <= loss:
            return float(step) if high <= loss else before + (step - before) * (high - loss) / (high - low)
    return None


def tune(narrow: Checkpoint, factor: int) -> tuple[Grid, Grid]:
    """Search for the best noise and then for the best learning rate of widened models at a width."""
    task = narrow.task
    data = task.data()

    def losses(lr: int, noise: int) -> tuple[Losses, Losses]:
        return final_losses(narrow, data, "mapped", factor, power(lr), power(noise), task.seeds)

    rate = nearest_power(narrow.lr)
    noises = search(partial(losses, rate), _NOISE, reach=1, walk=task.walk)
    return noises, search(lambda lr: losses(lr, noises.best), rate, reach=1, walk=task.walk)


def measure_speed(narrow: Checkpoint, factor: int, lr: int, noise: int, scratch_lr: int) -> tuple[Speed, Grid]:
    """Train the narrow model, widened ones and ones from scratch on the same batches.

    Args:
        narrow: the narrow checkpoint.
        factor: width over narrow width.
        lr: exponent of the widened models' learning rate.
        noise: exponent of the widened models' noise.
        scratch_lr: exponent at which the search for the best learning rate from scratch starts.

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
            _curve(wide_model(narrow, arm, factor, power(rate), power(noise), seed), narrow, data, seed, schedule)
            for seed in task.seeds
        )

    narrow_curves = tuple(_curve(continued(narrow, narrow.lr), narrow, data, seed, decay) for seed in task.seeds)
    return Speed(
        factor,
        {"narrow": nearest_power(narrow.lr), "widened": lr, "scratch": grid.best},
        noise,
        narrow_curves,
        run("mapped", lr, decay),
        run("scratch-mapped", grid.best, warm_up_and_decay),
    ), grid


def _curve(model_and_optimizer, narrow: Checkpoint, data: Data, seed: int, schedule: Schedule) -> Curve:
    task = narrow.task
    every = max(task.steps // _NUM_EVALUATIONS, 1)
    # The first steps are closer together, because they show how soon noise is overcome.
    evaluated = {*range(0, task.steps, every), *(2**i for i in range(10) if 2**i < every), task.steps}
    curve = train(
        *model_and_optimizer, data.batches(task.batch_size, task.steps, seed), task.steps, schedule, data, evaluated
    )
    return replace(curve, losses=())  # the losses of single batches are not used
