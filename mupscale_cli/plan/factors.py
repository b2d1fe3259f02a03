"""Resolving `--factor` and `--axis` to the factor of every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mupscale_cli.architecture.types import Link, Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.text import suggest

MAX_FACTOR = 4096


def resolve_factors(recipe: Recipe, factor: int | None, axes: Mapping[str, int]) -> dict[str, int]:
    """Return the factor of every axis.

    Args:
        recipe: recipe of the architecture.
        factor: factor of the axes that the recipe widens by default.
        axes: factors of single axes or groups of axes by name; they override `factor`.

    Raises:
        PlanError: an axis is unknown or fixed, a factor is below 1 or above `MAX_FACTOR`, every factor is 1, or the
            factors of linked axes contradict each other.
    """
    for name, value in (("--factor", factor), *((f"--axis {axis}", value) for axis, value in axes.items())):
        if value is not None and not 1 <= value <= MAX_FACTOR:
            shown = (
                value if abs(value) < 10**18 else "a number of many digits"
            )  # Python refuses to convert thousands of digits
            raise PlanError(f"`{name}` is {shown}, expected a whole number from 1 to {MAX_FACTOR}")
    for name in axes:
        if name not in recipe.axis_names and name not in recipe.groups:
            near = suggest(name, (*recipe.groups, *recipe.axis_names))
            raise PlanError(
                f"`{recipe.name}` has no axis `{name}`",
                hint=f"{near + '; ' if near else ''}`mupscale recipes show {recipe.name}` explains the axes",
            )
    factors = dict.fromkeys(recipe.axis_names, 1)
    if factor is not None:
        factors.update(dict.fromkeys(recipe.widen, factor))
    for name, members in recipe.groups.items():
        if name in axes:
            factors.update(dict.fromkeys(members, axes[name]))
    factors.update({name: value for name, value in axes.items() if name not in recipe.groups})
    for name, reason in recipe.fixed.items():
        if factors[name] != 1:
            raise PlanError(f"cannot widen the axis `{name}` of `{recipe.name}`: {reason}")
    if all(value == 1 for value in factors.values()):
        raise PlanError(
            "nothing is widened: the factor is 1 on every axis",
            hint="use `--factor 2`, or `--axis NAME=2` for a single axis",
        )
    for link in recipe.links:
        product = math.prod(factors[name] for name in link.product)
        if factors[link.axis] != product:
            terms = " x ".join(f"{name} {factors[name]}" for name in link.product)
            raise PlanError(
                f"the factors of linked axes do not match: in `{recipe.name}`, {link.axis} is {link.text.value}, "
                f"but the factors are {link.axis} {factors[link.axis]} and {terms}",
                hint=_suggest_factors(recipe, factors, link),
            )
    return factors


def _suggest_factors(recipe: Recipe, factors: Mapping[str, int], link: Link) -> str:
    """Suggest factors that satisfy a link and are close to the requested ones."""
    product = math.prod(factors[name] for name in link.product)
    changed = dict(factors)
    movable = next((name for name in link.product if name not in recipe.fixed), link.axis)
    if product > 1 or movable == link.axis:
        changed[link.axis] = product
    else:
        changed[movable] = factors[link.axis]
    options = " ".join(f"--axis {name}={factor}" for name, factor in changed.items() if factor > 1)
    return f"for instance, `{options}`" if options else f"do not widen {link.axis}"
