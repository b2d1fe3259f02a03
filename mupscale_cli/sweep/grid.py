"""Define the grid of learning rates, noise sizes, widths and seeds that a sweep tries. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mupscale_cli.errors import SweepError

_DIGITS = 4  # significant digits of a generated learning rate: the table shows exactly the value used
_STEP = math.sqrt(2)


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        factor: width of the trained model over that of the narrow one.
        noise: size t of the perturbation relative to each tensor (dimensionless).
        seed: random seed for noise and batches.
        lr: learning rate in the narrow run's terms.
    """

    factor: int
    noise: float
    seed: int
    lr: float


@dataclass(frozen=True)
class Grid:
    """A sweep tries every combination of these values.

    Attributes:
        factors: widths of the trained models over that of the narrow one; ascending.
        lrs: learning rates in the narrow run's terms; ascending.
        noises: sizes of the perturbation; ascending.
        seeds: random seeds for noise and batches.
    """

    factors: tuple[int, ...]
    lrs: tuple[float, ...]
    noises: tuple[float, ...]
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[Point]:
        """Yield the points by seed, then by width, so that early trials cover every width."""
        for seed in self.seeds:
            for factor in self.factors:
                for noise in self.noises:
                    for lr in self.lrs:
                        yield Point(factor, noise, seed, lr)

    def __len__(self) -> int:
        return len(self.factors) * len(self.lrs) * len(self.noises) * len(self.seeds)


def make_grid(factors: Sequence[int], lrs: Sequence[float], noises: Sequence[float], num_seeds: int) -> Grid:
    """Make a grid: sort the values and drop repetitions.

    Raises:
        SweepError: the grid is empty, or a value is out of range.
    """
    if not factors:
        raise SweepError("no width to train at", hint="for instance `--factor 2 --factor 4`")
    if num_seeds < 1:
        raise SweepError(f"`--seeds {num_seeds}` is not at least 1")
    for option, values, least in (("lr", lrs, "above"), ("noise", noises, "at least")):
        for value in values:
            if not (0 < value < math.inf or (least == "at least" and value == 0)):
                raise SweepError(f"`--{option}` contains {value:g}; it must be {least} 0")
    seeds = tuple(range(num_seeds))
    return Grid(tuple(sorted(set(factors))), tuple(sorted(set(lrs))), tuple(sorted(set(noises))), seeds)


def learning_rates(text: str, steps: int) -> tuple[float, ...]:
    """Parse a list of learning rates; expand a single rate to powers of sqrt(2) around it.

    Args:
        text: `3e-4,1e-3,3e-3`, or `1e-3`.
        steps: number of rates for a single one; an even number has one more below it than above.

    Raises:
        SweepError: the text is not a number or a list of numbers.
    """
    values = numbers(text, "--lr")
    if len(values) > 1:
        return values
    if steps < 1:
        raise SweepError(f"`--lr-steps {steps}` is not at least 1")
    return tuple(float(f"{values[0] * _STEP ** (i - steps // 2):.{_DIGITS}g}") for i in range(steps))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Parse comma-separated numbers.

    Args:
        text: the numbers.
        option: name of the option, for messages.

    Raises:
        SweepError: one of them is not a number.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SweepError(
            f"`{option} {text}` is not a number or a list of numbers",
            hint=f"for instance `{option} 1e-3` or `{option} 3e-4,1e-3,3e-3`",
        ) from error
    return values
