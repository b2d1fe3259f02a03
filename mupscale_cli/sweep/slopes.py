"""Exponents of the width, and how certain they are.

The logarithm of a layer's change is fitted by a line in the logarithm of the width, with an intercept for each seed,
because all widths of a seed share their batch. Multipliers are powers of the width with exponents that are multiples of
1/2, so the slope is 0 if all are right, and otherwise at least 1/2 away from 0. A check may decide for one of these
only if it rules the other one out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

LEAST = 0.5  # the least slope that a wrong multiplier makes
_LEVEL = 0.01  # probability that noise decides any layer of a check wrongly


@dataclass(frozen=True)
class Fit:
    """A line through logarithms.

    Attributes:
        slope: the exponent of the width; NaN if a value is not a positive number.
        squares: sum of the squared residuals.
    """

    slope: float
    squares: float


def fit(factors: Sequence[int], values: Sequence[Sequence[float]]) -> Fit | None:
    """Fit values by multiples of factor^p, one multiple for each seed; return None if all values are zero.

    Args:
        factors: the widths.
        values: values by width and seed.
    """
    flat = [value for seeds in values for value in seeds]
    if not any(flat):
        return None
    if not all(0 < value < math.inf for value in flat):
        return Fit(math.nan, 0.0)
    x = _centered(list(map(math.log, factors)))
    by_seed = [_centered(list(map(math.log, column))) for column in zip(*values, strict=True)]
    slope = fmean(_dot(x, y) for y in by_seed) / _dot(x, x)
    residuals = (value - slope * at for y in by_seed for at, value in zip(x, y, strict=True))
    return Fit(slope, sum(residual**2 for residual in residuals))


def is_decidable(num_widths: int, num_seeds: int) -> bool:
    """Return whether a fit leaves residuals, from which the noise can be estimated."""
    return _freedom(num_widths, num_seeds) > 0


def uncertainty(fits: Sequence[Fit | None], factors: Sequence[int], num_seeds: int) -> float:
    """Return how far any of the slopes may be from its true value.

    The standard error of a slope from s seeds is sigma / sqrt(s sum (x - mean x)^2), where x are the logarithms of the
    widths (Draper and Smith, Applied Regression Analysis, section 1.4). The residuals of all layers together give
    sigma. With L layers, the standard error is multiplied by the quantile of Student's distribution at 1 % / L
    (Bonferroni).

    Args:
        fits: the fits of all layers.
        factors: the widths.
        num_seeds: number of seeds.
    """
    known = [found for found in fits if found is not None and not math.isnan(found.slope)]
    if not known:
        return 0.0
    freedom = len(known) * _freedom(len(factors), num_seeds)
    sigma = math.sqrt(sum(found.squares for found in known) / freedom)
    x = _centered(list(map(math.log, factors)))
    return _quantile(_LEVEL / len(known), freedom) * sigma / math.sqrt(num_seeds * _dot(x, x))


def _freedom(num_widths: int, num_seeds: int) -> int:
    """Return a layer's degrees of freedom: an intercept for each seed and one slope are fitted."""
    return num_seeds * (num_widths - 1) - 1


def _centered(values: Sequence[float]) -> list[float]:
    mean = fmean(values)
    return [value - mean for value in values]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _quantile(level: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t, within 2 % from ten degrees of freedom on.

    Abramowitz and Stegun, equation 26.7.5.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
