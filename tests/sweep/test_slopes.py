"""Exponents of the width, and their standard error."""

import math
import random
from statistics import NormalDist, stdev

import pytest

from mupscale_cli.sweep.slopes import _quantile, fit, is_decidable, uncertainty

WIDTHS = (2, 4, 8)


def test_the_slope_is_the_power_of_the_width():
    assert fit(WIDTHS, [[3.0], [6.0], [12.0]]).slope == pytest.approx(1)
    assert fit(WIDTHS, [[0.0], [0.0], [0.0]]) is None
    assert math.isnan(fit((2, 4), [[1.0], [math.nan]]).slope)


def test_seeds_may_differ_by_a_factor():
    """A seed has a batch of its own, which changes all widths alike and leaves no residual."""
    found = fit(WIDTHS, [[3.0, 1.0], [6.0, 2.0], [12.0, 4.0]])
    assert found.slope == pytest.approx(1)
    assert found.squares == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("widths", "seeds", "decidable"), [(2, 1, False), (3, 1, True), (2, 2, True), (3, 2, True)])
def test_residuals_need_more_than_two_points(widths, seeds, decidable):
    assert is_decidable(widths, seeds) is decidable


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_uncertainty_is_a_quantile_of_the_slopes(num_seeds):
    """Slopes of layers that differ only by noise scatter by the standard error that their residuals give."""
    draw = random.Random(0)
    layers = [
        fit(WIDTHS, [[math.exp(draw.gauss(0, 0.1)) for _ in range(num_seeds)] for _ in WIDTHS]) for _ in range(4000)
    ]
    spread = stdev(found.slope for found in layers)
    quantile = NormalDist().inv_cdf(1 - 0.01 / len(layers) / 2)
    assert uncertainty(layers, WIDTHS, num_seeds) == pytest.approx(quantile * spread, rel=0.05)  # 3 sigma of `spread`
    assert spread == pytest.approx(0.1 / (math.sqrt(2 * num_seeds) * math.log(2)), rel=0.05)


@pytest.mark.parametrize(("level", "freedom", "table"), [(0.05, 10, 2.228), (0.01, 30, 2.750), (0.001, 60, 3.460)])
def test_quantiles_agree_with_tables(level, freedom, table):
    assert _quantile(level, freedom) == pytest.approx(table, rel=0.02)
