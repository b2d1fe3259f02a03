"""Widening the config, and checking that it describes the widened tensors."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from mupscale_cli.architecture.composite import FRESH_PREFIX, NEW_PREFIX
from mupscale_cli.architecture.expressions import Expression, look_up, names_in
from mupscale_cli.architecture.matching import DRAFT, Match
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.checkpoints.config import set_key
from mupscale_cli.errors import ConfigError, PlanError, SizeError
from mupscale_cli.plan.axes import sizes_from_config
from mupscale_cli.plan.conditions import Values, choose, environment, evaluate_located
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import power_scale
from mupscale_cli.plan.links import next_ratios
from mupscale_cli.plan.types import ConfigChange
from mupscale_cli.text import shortened, shown

_MAX_VALUE = 60  # characters of a value in a message
NO_EPS: Mapping[str, Fraction] = MappingProxyType({})
NO_KEYS: Mapping[str, Any] = MappingProxyType({})
_OTHER_SIZES = "choose others; `--params N --dry-run` alone lists shapes that fit"


def widen_config(
    recipe: Recipe,
    config: Mapping[str, Any],
    values: Values,
    axes: Mapping[str, Axis],
    eps: Mapping[str, Fraction] = NO_EPS,
    others: Mapping[str, Any] = NO_KEYS,
) -> tuple[dict[str, Any], tuple[ConfigChange, ...]]:
    """Return the config of the wide model and its changes.

    Args:
        recipe: recipe of the architecture; its `config` section has the rules.
        config: config.json of the source.
        values: names and values of the source, as `environment` returns them.
        axes: every axis by name.
        eps: factor of the eps in each key that changes, as `eps_factors` returns them.
        others: values of other keys that change, as `rotary_keys` returns them.

    Raises:
        RecipeError: a rule cannot be evaluated.
        PlanError: a section of the config is not an object, or a list is too short.
    """
    known = {**values, **{axis.name: axis.wide_size for axis in axes.values() if axis.wide_size is not None}}
    unsized = axes.keys() - known.keys()  # no tensor has a unit of these, so the keys of their sizes stay as they are
    changes = []
    for rule in recipe.config:
        *path, last = rule.key.split(".")
        key, _, place = last.partition("[")
        section = config
        for name in path:
            section = section.get(name) or {}
            if not isinstance(section, Mapping):
                raise PlanError(f"`{name}` in config.json is {shown(section)}, expected an object with `{key}`")
        if rule.optional and key not in section:
            continue
        choice = choose(rule.choices, values)
        expression, powers = choice.value
        if not unsized.isdisjoint(name.name for name in names_in(expression)):
            continue
        after = _scale(evaluate_located(expression, known, choice.text.error), power_scale(powers, axes), choice)
        before = look_up(rule.key, config)
        if place and before is None:
            raise PlanError(f"config.json has no item `{rule.key}`, which widening changes")
        changes.append(ConfigChange(rule.key, before, after))
    factors = {name: float(look_up(name, values) * factor) for name, factor in eps.items()}  # type: ignore[operator]
    for name, after in {**factors, **others}.items():
        changes.append(ConfigChange(name, look_up(name, config), after))
    changes = [change for change in changes if change.before != change.after]
    return with_changes(config, changes), tuple(changes)


def with_changes(config: Mapping[str, Any], changes: Iterable[ConfigChange]) -> dict[str, Any]:
    """Return a config with other values; sections that are missing or null are created."""
    changed = copy.deepcopy(dict(config))
    for change in changes:
        set_key(changed, change.key, change.after)
    return changed


def _scale(value: Any, scale: float, choice: Choice[Any]) -> Any:
    if scale == 1 or value is None:
        return value
    if isinstance(value, list):
        return [_scale(item, scale, choice) for item in value]
    if isinstance(value, Mapping):
        return {key: _scale(item, scale, choice) for key, item in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise choice.text.error(f"cannot scale `{shown(value)}` in the config, which is not a number")
    try:
        scaled = value * scale
    except OverflowError as error:
        raise choice.text.error("the value in the config is too large to scale") from error
    return int(scaled) if isinstance(value, int) and float(scaled).is_integer() else scaled


def check_sizes(recipe: Recipe, wide_values: Values, axes: Mapping[str, Axis], used: frozenset[str]) -> None:
    """Check that the axes have the same sizes in the widened config as in the widened tensors.

    Args:
        recipe: recipe of the architecture.
        wide_values: names and values of the widened config, as `environment` returns them.
        axes: every axis by name.
        used: axes that occur in some tensor.

    Raises:
        ConfigError: an axis has another size in the config.
    """
    sizes = sizes_from_config(recipe, wide_values, used, lax=True)
    for rule in recipe.axes:
        expected = axes[rule.name].wide_size
        if rule.name in used and sizes[rule.name] not in (None, expected):
            error = rule.text.error(
                f"the axis `{rule.name}` has size {sizes[rule.name]} in the widened config, "
                f"but {expected} in the widened tensors"
            )
            raise ConfigError(
                error.message,
                excerpt=error.excerpt,
                hint="also widen the axes that the config links to it; in a recipe of your own, let the `config` "
                "section change the keys that give its size",
            )


def check_requirements(recipe: Recipe, values: Values, wide_values: Values, axes: Mapping[str, Axis]) -> None:
    """Check the conditions that the recipe sets for the widened config; those that the source breaks do not count.

    Args:
        recipe: recipe of the architecture.
        values: names and values of the source, as `environment` returns them.
        wide_values: names and values of the widened config, as `environment` returns them.
        axes: every axis by name.

    Raises:
        SizeError: one of them does not hold.
    """
    counts = _new_units(axes)
    before, after = {**values, **dict.fromkeys(counts, 0)}, {**wide_values, **counts}
    for requirement in recipe.requires:
        kept = (evaluate_located(requirement.condition, each, requirement.text.error) for each in (after, before))
        if not next(kept) and next(kept):
            named = [name.name.removeprefix(FRESH_PREFIX) for name in names_in(requirement.condition)]
            partial = [axes[name] for name in named if name in axes and axes[name].fresh + axes[name].extra]
            raise SizeError(
                f"`{recipe.name}` cannot have these sizes: {requirement.reason}",
                hint=_whole(partial) or _OTHER_SIZES,
                instead=next_ratios(recipe, axes, [axis.name for axis in partial]),
            )


def _whole(axes: Sequence[Axis]) -> str:
    """Say that axes grow by whole factors only, with the next ones."""
    return "; ".join(
        f"`{axis.name}` has {axis.size} units and grows by whole factors: `--axis {axis.name}={math.ceil(axis.ratio)}`"
        for axis in axes
    )


def check_covered(recipe: Recipe, config: Mapping[str, Any], names: Iterable[str], tie: str | None) -> None:
    """Check the conditions that the recipe sets for the source, which no sizes can make up for.

    Args:
        recipe: recipe of the architecture.
        config: config.json of the source.
        names: names of its tensors.
        tie: how a tied readout is treated.

    Raises:
        PlanError: one of them does not hold.
    """
    if not recipe.covers:
        return
    values = environment(recipe, config, names, tie)
    for cover in recipe.covers:
        if not evaluate_located(cover.condition, values, cover.text.error):
            raise PlanError(
                f"`{recipe.name}` does not cover this model{_settings(cover.condition, config)}: {cover.reason}",
                hint=f"{DRAFT} drafts another recipe by experiment, if one is exact",
            )


def _settings(condition: Expression, config: Mapping[str, Any]) -> str:
    """Return the keys of config.json in a condition with their values, as a clause; empty if it has none."""
    values = {name.name: look_up(name.name, config) for name in names_in(condition)}
    known = {key: json.dumps(value) for key, value in values.items() if value is not None}
    settings = " and ".join(f"`{key}: {shortened(value, _MAX_VALUE)}`" for key, value in known.items())
    return f", whose config has {settings}" if settings else ""


def find_notes(recipe: Recipe, wide_values: Values, axes: Mapping[str, Axis]) -> tuple[str, ...]:
    """Return what the recipe says about this widening.

    Args:
        recipe: recipe of the architecture.
        wide_values: names and values of the widened config, as `environment` returns them.
        axes: every axis by name.
    """
    after = {**wide_values, **_new_units(axes)}
    return tuple(note.reason for note in recipe.notes if evaluate_located(note.condition, after, note.text.error))


def _new_units(axes: Mapping[str, Axis]) -> dict[str, int]:
    """Return how many units of each axis are new, and how many of these are beyond whole copies, by name."""
    counts = {f"{FRESH_PREFIX}{axis.name}": axis.fresh + axis.extra for axis in axes.values()}
    return counts | {
        f"{NEW_PREFIX}{axis.name}": axis.wide_size - axis.size
        for axis in axes.values()
        if axis.size is not None and axis.wide_size is not None  # they are None where they vary
    }


def check_layouts(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match], wide_values: Values) -> None:
    """Check that the widened config chooses the same layouts as the source's config.

    It could choose others, for instance when embeddings become as wide as the residual stream.

    Args:
        layouts: chosen layout of each tensor by its name.
        matches: matched rule of each tensor by its name.
        wide_values: names and values of the widened config, as `environment` returns them.

    Raises:
        ConfigError: the widened config chooses another layout for a tensor.
    """
    checked: set[tuple[int, tuple[str, ...]]] = set()
    for name, match in matches.items():
        if (id(match.rule), match.block) in checked:
            continue
        checked.add((id(match.rule), match.block))
        wide = choose(match.rule.choices, wide_values, match)
        if wide is not layouts[name]:
            error = match.rule.text.error(
                f"the widened config describes another structure: `{name}` would be `{wide.text.value}` instead of "
                f"`{layouts[name].text.value}`"
            )
            raise ConfigError(error.message, excerpt=error.excerpt, hint="use another factor")
