"""Links between axes: the config derives one axis from others, so their factors multiply."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction

from mupscale_cli.architecture.types import Link, Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.copies import Axis


def with_links(
    recipe: Recipe, axes: Mapping[str, Axis], used: Collection[str], ratios: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """Return the ratios of all axes; the one axis of a link that is not asked for follows from the others.

    Args:
        recipe: recipe of the architecture.
        axes: every axis by name, not widened.
        used: axes that occur in some tensor.
        ratios: wide size over narrow size of each axis that is asked for.

    Raises:
        PlanError: the ratios of linked axes contradict each other, and the linked one occurs in a tensor.
    """
    solved = dict(ratios)
    for link in recipe.links:
        open_names = [name for name in (link.axis, *link.product) if name not in solved and name not in recipe.fixed]
        if len(open_names) == 1 and (ratio := _solve(link, solved, open_names[0])) >= 1:
            size = axes[open_names[0]].size
            if ratio.denominator == 1 or (size is not None and (size * ratio).denominator == 1):
                solved[open_names[0]] = ratio
    complete = {name: solved.get(name, Fraction(1)) for name in recipe.axis_names}
    for link in recipe.links:
        product = math.prod((complete[name] for name in link.product), start=Fraction(1))
        if link.axis in used and complete[link.axis] != product:
            terms = " x ".join(f"{name} {complete[name]}" for name in link.product)
            changed = _satisfying(recipe, complete, link)
            options = " ".join(f"--axis {name}={factor}" for name, factor in (complete | changed).items() if factor > 1)
            raise PlanError(
                f"the factors of linked axes do not match: in `{recipe.name}`, {link.axis} is {link.text.value}, "
                f"but the factors are {link.axis} {complete[link.axis]} and {terms}",
                hint=f"for instance, `{options}`" if options else f"do not widen {link.axis}",
                instead=changed,
            )
    return complete


def _solve(link: Link, ratios: Mapping[str, Fraction], name: str) -> Fraction:
    """Return the ratio that one axis of a link must have, given those of the others."""
    others = math.prod((ratios.get(other, Fraction(1)) for other in link.product if other != name), start=Fraction(1))
    return others if name == link.axis else ratios[link.axis] / others


def _satisfying(recipe: Recipe, ratios: Mapping[str, Fraction], link: Link) -> dict[str, Fraction]:
    """Return another ratio of one axis that satisfies a link."""
    product = math.prod((ratios[name] for name in link.product), start=Fraction(1))
    movable = next((name for name in link.product if name not in recipe.fixed), link.axis)
    if product > 1 or movable == link.axis:
        return {link.axis: product}
    return {movable: ratios[link.axis]}


def linked_ratios(
    recipe: Recipe, ratios: Mapping[str, Fraction], wanted: Mapping[str, int | Fraction]
) -> dict[str, Fraction]:
    """Return other ratios of some axes, and of the axes that the config ties to them.

    An axis that has the ratio of one that it is tied to, directly or by a third axis, keeps having it. So links still
    hold if one axis of each product grows.

    Args:
        recipe: recipe of the architecture.
        ratios: wide size over narrow size of each axis.
        wanted: the other ratios, by axis.
    """
    changed = {name: Fraction(ratio) for name, ratio in wanted.items()}
    for name, ratio in wanted.items():
        if (before := ratios[name]) != 1:
            changed |= {other: Fraction(ratio) for other in _tied(recipe, name) if ratios.get(other) == before}
    return {name: changed[name] for name in recipe.axis_names if name in changed}


def next_ratios(recipe: Recipe, axes: Mapping[str, Axis], names: Iterable[str]) -> dict[str, Fraction]:
    """Return the next whole ratios of some axes, 1 for those that have one, and of the axes that are tied to them."""
    ratios = {name: axis.ratio for name, axis in axes.items()}
    wanted = {name: 1 if ratios[name].denominator == 1 else math.ceil(ratios[name]) for name in names}
    return linked_ratios(recipe, ratios, wanted)


def _tied(recipe: Recipe, name: str) -> set[str]:
    """Return the axes that links connect to an axis."""
    tied, before = {name}, set[str]()
    while tied != before:
        before = set(tied)
        for link in recipe.links:
            if not tied.isdisjoint(members := {link.axis, *link.product}):
                tied |= members
    return tied
