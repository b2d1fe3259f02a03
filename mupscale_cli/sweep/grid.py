"""The grid: which learning rates, sizes of noise, widths and seeds are tried. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mupscale_cli.errors import SweepError

_DIGITS = 4  # significant digits of a generated learning rate: what the table shows is what was used
_STEP = math.sqrt(2)


@dataclass(frozen=True, order=True)
class Point:
    """One trial. Ordered so that those of one widened checkpoint come one after the other.

    Attributes:
        factor: width of the trained model over that of the narrow one.
        noise: t, the size of the perturbation relative to each tensor (dimensionless).
        seed: of noise and batches.
        lr: learning rate in the narrow run's terms.
    """

    factor: int
    noise: float
    seed: int
    lr: float


@dataclass(frozen=True)
class Grid:
    """Every combination of these is tried.

    Attributes:
        factors: widths of the proxies, over that of the narrow model; ascending.
        lrs: learning rates in the narrow run's terms; ascending.
        noises: sizes of the perturbation; ascending.
        seeds: of noise and batches.
    """

    factors: tuple[int, ...]
    lrs: tuple[float, ...]
    noises: tuple[float, ...]
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[Point]:
        """The points by seed, then by width: a first picture of every width appears early."""
        for seed in self.seeds:
            for factor in self.factors:
                for noise in self.noises:
                    for lr in self.lrs:
                        yield Point(factor, noise, seed, lr)

    def __len__(self) -> int:
        return len(self.factors) * len(self.lrs) * len(self.noises) * len(self.seeds)


def make_grid(factors: Sequence[int], lrs: Sequence[float], noises: Sequence[float], num_seeds: int) -> Grid:
    """A grid without repetitions, in ascending order.

    Raises:
        SweepError: it is empty, or a value is impossible.
    """
    if not factors:
        raise SweepError("no width is given to train at", hint="for instance `--factor 2 --factor 4`")
    if num_seeds < 1:
        raise SweepError(f"`--seeds {num_seeds}` is not at least 1")
    for option, values, least in (("lr", lrs, "above"), ("noise", noises, "at least")):
        for value in values:
            if not (0 < value < math.inf or (least == "at least" and value == 0)):
                raise SweepError(f"`--{option}` has {value:g}; it must be a number {least} 0")
    seeds = tuple(range(num_seeds))
    return Grid(tuple(sorted(set(factors))), tuple(sorted(set(lrs))), tuple(sorted(set(noises))), seeds)


def learning_rates(text: str, steps: int) -> tuple[float, ...]:
    """The learning rates of a grid: a list as it is, a single one as the centre of powers of sqrt(2).

    Args:
        text: `3e-4,1e-3,3e-3`, or `1e-3`.
        steps: how many powers; an even number has one more below the centre than above it.

    Raises:
        SweepError: it is no number.
    """
    values = numbers(text, "--lr")
    if len(values) > 1:
        return values
    if steps < 1:
        raise SweepError(f"`--lr-steps {steps}` is not at least 1")
    return tuple(float(f"{values[0] * _STEP ** (i - steps // 2):.{_DIGITS}g}") for i in range(steps))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        SweepError: one of them is none.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SweepError(
            f"`{option} {text}` is not a number or a list of numbers",
            hint=f"for instance `{option} 1e-3` or `{option} 3e-4,1e-3,3e-3`",
        ) from error
    return values
