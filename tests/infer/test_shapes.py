"""Sizes as polynomials of axes, and configs with scaled keys."""

import pytest

from mupscale_cli.infer.shapes import CandidateAxis, Monomial, fit_polynomial, scaled_config


def test_fit_polynomial_finds_a_sum_of_products():
    units = {"h": 4, "d": 3, "n": 5}

    def size(doubled):
        h, d, n = (units[name] * (2 if name in doubled else 1) for name in ("h", "d", "n"))
        return 2 * h * d + 3 * n + 7

    monomials = fit_polynomial(size, units, units)
    assert set(monomials) == {Monomial(("d", "h"), 2), Monomial(("n",), 3), Monomial((), 7)}


def test_fit_polynomial_refuses_other_sizes():
    with pytest.raises(ValueError, match="not a multiple"):
        fit_polynomial(lambda doubled: 10 if doubled else 7, {"h"}, {"h": 4})


def test_scaled_config_multiplies_keys_by_powers_of_the_factor():
    axes = (
        CandidateAxis("h", 4, (("hidden", 1), ("heads", 1)), "heads"),
        CandidateAxis("embed", 48, (("hidden", 1), ("expand", -1)), "hidden"),
    )
    config = {"hidden": 48, "heads": 4, "expand": 2, "list": [1]}
    assert scaled_config(config, axes, {"h": 3, "embed": 2}) == {"hidden": 288, "heads": 12, "expand": 1, "list": [1]}
