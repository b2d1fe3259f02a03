"""Resolving what a user asks for, factors and sizes of axes and config keys, to the growth of every axis."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, Union

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.blocks import BlockMap
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.links import linked_ratios, with_links
from mupscale_cli.text import listed, suggest

MAX_FACTOR = 4096  # of one axis
_MAX_SIZES = 4  # in a message
USUAL_FACTOR = 16  # a larger one needs the user's consent
Sizes = Callable[[Mapping[str, Any]], Mapping[str, "int | None"]]


@dataclass(frozen=True, slots=True)
class Size:
    """The size that an axis or a config key is to have, as opposed to a factor of its present size."""

    units: int


Amount = Union[int, Fraction, Size]


@dataclass(frozen=True)
class Request:
    """What to grow, and how far.

    Attributes:
        factor: factor of the axes that the recipe widens by default.
        axes: factors or sizes by the name of an axis, of a group of axes or of a config key; they override `factor`.
        sizes: sizes by axis, of another model; `factor` and `axes` override them.
        most: largest factor; a larger one is more likely to be meant as a size.
        layers: factor or size of the only stack of blocks; `axes` can name any stack.
        layers_at: where new blocks go, see `place_blocks`; None for the default.
        blocks: the blocks of every stack that grows, if they are already known.
    """

    factor: int | Fraction | None = None
    axes: Mapping[str, Amount] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    most: int = MAX_FACTOR
    layers: Amount | None = None
    layers_at: str | None = None
    blocks: Mapping[str, BlockMap] = field(default_factory=dict)


IDENTITY = Request()


class _Asked(NamedTuple):
    """The amount that is asked of an axis, and the option that asks for it."""

    amount: Amount
    option: str


def grow_axes(
    recipe: Recipe,
    request: Request,
    axes: Mapping[str, Axis],
    used: frozenset[str],
    config: Mapping[str, Any],
    sizes: Sizes,
    varied: Callable[[str], Iterable[int]] = lambda _: (),
) -> dict[str, Axis]:
    """Return every axis with its growth.

    Of several amounts for an axis, the most specific one counts: that of the axis itself, of a config key, of a group
    of axes, of the factor, of another model. If all but one of the axes of a link are asked for, the last one follows.

    Args:
        recipe: recipe of the architecture.
        request: what to grow.
        axes: every axis by name, not widened.
        used: axes that occur in some tensor; the others stay as they are.
        config: config of the source, with every key that the recipe writes.
        sizes: returns the size of every axis in a config.
        varied: returns the sizes of an axis that differs between tensors, for messages.

    Raises:
        PlanError: an axis is unknown or fixed, an amount is no whole number of units or too large, an axis
            would shrink, or linked axes contradict each other.
    """
    _check_factors(request)
    asked = {name: _Asked(Size(size), "--to") for name, size in request.sizes.items()}
    if request.factor is not None:
        asked |= dict.fromkeys(recipe.widen, _Asked(request.factor, "--factor"))
    groups, keys, single = _sorted_by_kind(recipe, request.axes, config)
    for name, amount in groups.items():
        asked |= _asked_of_group(recipe.groups[name], amount, name)
    if keys:
        asked |= _asked_of_keys(recipe, keys, config, sizes)
    asked |= {name: _Asked(amount, f"--axis {name}") for name, amount in single.items()}
    ratios = _ratios(recipe, axes, used, asked, varied)
    ratios = with_links(recipe, axes, used, ratios)
    for name, reason in recipe.fixed.items():
        if ratios.get(name, 1) != 1:
            raise PlanError(f"cannot widen the axis `{name}` of `{recipe.name}`: {reason}")
    return {name: _grown(axis, ratios[name]) if name in used else axis for name, axis in axes.items()}


def _ratios(
    recipe: Recipe,
    axes: Mapping[str, Axis],
    used: frozenset[str],
    asked: Mapping[str, _Asked],
    varied: Callable[[str], Iterable[int]],
) -> dict[str, Fraction]:
    """Return the wide size of each axis that is asked for, divided by its size."""
    ratios = {name: _nominal_ratio(axes[name], amount) for name, (amount, _) in asked.items()}

    def instead(name: str, amount: Amount, option: str) -> Mapping[str, Fraction]:
        """Return the next larger ratios that leave no axis a fraction of a unit."""
        alike = [name for name, one in asked.items() if one == (amount, option) and name in used]
        names = alike if option == "--factor" else [name]
        common = math.gcd(*(axes[name].size or 1 for name in names))
        return linked_ratios(recipe, ratios, dict.fromkeys(names, Fraction(math.ceil(ratios[name] * common), common)))

    for name, (amount, option) in asked.items():
        axis = axes[name]
        if name not in used:
            continue
        if axis.size is None and (isinstance(amount, Size) or ratios[name].denominator != 1):
            raise PlanError(
                f"the axis `{name}` has different sizes in different tensors{_examples(varied(name))}, so it needs a "
                "whole factor",
                hint=f"for instance `--axis {name}=2`",
                instead=linked_ratios(recipe, ratios, {name: math.ceil(ratios[name])}),
            )
        ratios[name] = Fraction(
            grown(f"the axis `{name}`", axis.size or 1, amount, option, partial(instead, name, amount, option)),
            axis.size or 1,
        )
    return ratios


def _check_factors(request: Request) -> None:
    amounts = {"--factor": request.factor, **{f"--axis {name}": amount for name, amount in request.axes.items()}}
    for option, amount in amounts.items():
        if amount is None or isinstance(amount, Size) or not request.most < amount <= MAX_FACTOR:
            continue
        factor, name = _shown(Fraction(amount)), option.removeprefix("--axis ")
        spelled = f"{option} {factor}" if name == option else f"{option}={factor}"
        raise PlanError(
            f"`{spelled}` would make {'every axis' if name == option else f'`{name}`'} {factor} times as large",
            hint=("" if name == option else f"for a size of {factor}, write `--axis {name}:{factor}`; ")
            + "if you mean the factor, add `--allow-large-factor`",
        )


def _sorted_by_kind(
    recipe: Recipe, amounts: Mapping[str, Amount], config: Mapping[str, Any]
) -> tuple[dict[str, Amount], dict[str, Amount], dict[str, Amount]]:
    """Return the amounts of groups, of config keys and of axes."""
    kinds: tuple[dict[str, Amount], ...] = ({}, {}, {})
    known = {*recipe.groups, *recipe.axis_names}
    unknown = [name for name in amounts if name not in known and type(look_up(name, config)) is not int]
    if unknown:
        near = suggest(unknown[0], known) if len(unknown) == 1 else f"known: {', '.join(sorted(known))}"
        raise PlanError(
            f"`{recipe.name}` has no axis {listed(unknown)}, nor has config.json a whole number of that name",
            hint=f"{near + '; ' if near else ''}`mupscale recipes show {recipe.name}` explains the axes",
        )
    for name, amount in amounts.items():
        kinds[0 if name in recipe.groups else 2 if name in recipe.axis_names else 1][name] = amount
    groups, keys, single = kinds
    return groups, keys, single


def _asked_of_group(members: Iterable[str], amount: Amount, name: str) -> dict[str, _Asked]:
    if isinstance(amount, Size):
        raise PlanError(
            f"`{name}` is a part of the model, which has no size of its own",
            hint=f"give it a factor, `--axis {name}=2`, or give its axes sizes: {', '.join(members)}",
        )
    return dict.fromkeys(members, _Asked(amount, f"--axis {name}"))


def _asked_of_keys(
    recipe: Recipe, amounts: Mapping[str, Amount], config: Mapping[str, Any], sizes: Sizes
) -> dict[str, _Asked]:
    """Return the sizes of the axes that depend on some keys of the config, after these have changed."""
    values = {
        key: grown(f"the key `{key}`", look_up(key, config), amount, f"--axis {key}")  # type: ignore[arg-type]
        for key, amount in amounts.items()
    }
    before = sizes(config)
    asked: dict[str, _Asked] = {}
    for key, value in values.items():
        named = {name for rule in recipe.config if rule.key == key for name in rule.names & before.keys()}
        after = sizes(_with_keys(config, {key: value}))
        dependent = named | {name for name, size in after.items() if size != before[name]}
        if not dependent:
            raise PlanError(
                f"no axis of `{recipe.name}` has its size from `{key}` in config.json",
                hint=f"`mupscale recipes show {recipe.name}` explains the axes",
            )
        asked |= dict.fromkeys(dependent, _Asked(1, f"--axis {key}"))
    after = sizes(_with_keys(config, values))
    return {name: one._replace(amount=Size(size)) for name, one in asked.items() if (size := after[name])}


def _with_keys(config: Mapping[str, Any], values: Mapping[str, int]) -> dict[str, Any]:
    """Return a config with other values of some keys, which may be dotted."""
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = (key,) if key in changed else key.split(".")
        section = changed
        for part in path:
            section = section[part]
        section[last] = value
    return changed


def _examples(sizes: Iterable[int]) -> str:
    """Return some sizes in parentheses, for the middle of a sentence; empty if there are not several."""
    found = sorted(set(sizes))
    return f" ({', '.join(map(str, found[:_MAX_SIZES]))}{', ...' * (len(found) > _MAX_SIZES)})" if found[1:] else ""


def _nominal_ratio(axis: Axis, amount: Amount) -> Fraction:
    """Return the wide size of an axis divided by its size, which may leave a fraction of a unit."""
    if isinstance(amount, Size):
        return Fraction(amount.units, axis.size or amount.units)
    return Fraction(amount)


def grown(
    what: str, size: int, amount: Amount, option: str, instead: Callable[[], Mapping[str, Fraction]] = dict
) -> int:
    """Return a size after it grows by an amount.

    Args:
        what: the name of the size in messages.
        size: the size.
        amount: what it grows by or to.
        option: the option that asks for it.
        instead: returns ratios of axes that fit if the new size is not a whole number.

    Raises:
        PlanError: the new size is smaller, is too large, or is not a whole number.
    """
    if isinstance(amount, Size):
        if not 1 <= Fraction(amount.units, size) <= MAX_FACTOR:
            raise PlanError(
                f"{what} has size {size} and cannot become {_shown(Fraction(amount.units))} (`{option}`)",
                hint=f"sizes can only grow, and to at most {MAX_FACTOR} times what they are; `mupscale help "
                "limits` says what makes models smaller",
            )
        return amount.units
    factor = Fraction(amount)
    if not 1 <= factor <= MAX_FACTOR:
        raise PlanError(
            f"`{option}` is {_shown(factor)}, expected a number from 1 to {MAX_FACTOR}",
            hint="`mupscale help limits` says what makes models smaller" if factor < 1 else None,
        )
    wide = size * factor
    if wide.denominator != 1:
        raise PlanError(
            f"{what} has size {size}, and {_shown(factor)} times that is {_shown(wide)}, which is not a whole number",
            hint=f"give it a size, such as `--axis {what.split('`')[1]}:{math.ceil(wide)}`",
            instead=instead(),
        )
    return int(wide)


def ratio_text(ratio: Fraction | int) -> str:
    """Format a factor as it can be typed: `1.5` or `4/3`."""
    decimal = f"{float(ratio):g}"
    return decimal if Fraction(decimal) == ratio else str(ratio)


def _shown(number: Fraction) -> str:
    if abs(number) >= 10**18:  # Python refuses to convert thousands of digits
        return "a number of many digits"
    return str(number) if number.denominator == 1 else f"{float(number):.6g}"


def _grown(axis: Axis, ratio: Fraction) -> Axis:
    """Return an axis with as many whole copies of its units as fit, and the rest of its wide size as fresh units."""
    copies = 1 if axis.is_spread else int(ratio)
    return replace(axis, factor=copies, fresh=0 if axis.size is None else int(axis.size * (ratio - copies)))
