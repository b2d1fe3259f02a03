"""The config of the wide model, and whether it means what the tensors are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.errors import ConfigError, PlanError
from mupscale_cli.plan.axes import sizes_from_config
from mupscale_cli.plan.conditions import Values, choose, evaluated
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import power_scale
from mupscale_cli.plan.types import ConfigChange
from mupscale_cli.text import shown


def widen_config(
    recipe: Recipe, config: Mapping[str, Any], values: Values, axes: Mapping[str, Axis]
) -> tuple[dict[str, Any], tuple[ConfigChange, ...]]:
    """The config of the wide model, and what changed."""
    known = {**values, **{axis.name: axis.wide_size for axis in axes.values() if axis.wide_size is not None}}
    widened = copy.deepcopy(dict(config))
    changes = []
    for rule in recipe.config:
        *path, key = rule.key.split(".")
        section, new_section = config, widened
        for name in path:
            section, new_section = section.get(name) or {}, new_section.setdefault(name, {})
            if not isinstance(section, Mapping) or not isinstance(new_section, dict):
                raise PlanError(f"config.json: `{name}` is {shown(section)}, expected an object with `{key}`")
        if rule.optional and key not in section:
            continue
        choice = choose(rule.choices, values)
        expression, powers = choice.value
        after = _scaled(evaluated(expression, known, choice.text.error), power_scale(powers, axes), choice)
        if key not in section or section[key] != after:
            changes.append(ConfigChange(rule.key, section.get(key), after))
            new_section[key] = after
    return widened, tuple(changes)


def _scaled(value: Any, scale: float, choice: Choice[Any]) -> Any:
    if scale == 1 or value is None:
        return value
    if isinstance(value, list):
        return [_scaled(item, scale, choice) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise choice.text.error(f"`{shown(value)}` in the config cannot be scaled")
    try:
        scaled = value * scale
    except OverflowError as error:
        raise choice.text.error("the value in the config is too large to be scaled") from error
    return int(scaled) if isinstance(value, int) and float(scaled).is_integer() else scaled


def check_sizes(recipe: Recipe, wide_values: Values, axes: Mapping[str, Axis], used: frozenset[str]) -> None:
    """Whoever reads the new config must derive the sizes that the new tensors have."""
    sizes = sizes_from_config(recipe, wide_values, used, lax=True)
    for rule in recipe.axes:
        expected = axes[rule.name].wide_size
        if rule.name in used and sizes[rule.name] not in (None, expected):
            error = rule.text.error(
                f"the widened config makes the axis `{rule.name}` {sizes[rule.name]}, "
                f"the widened tensors make it {expected}"
            )
            raise ConfigError(
                error.message,
                excerpt=error.excerpt,
                hint="widen the axes that the config ties to it as well; or, if the recipe is yours, set in its "
                "`config` section what the axis is computed from",
            )


def check_layouts(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match], wide_values: Values) -> None:
    """The new config must not mean another structure, as embeddings that grow as wide as the residual stream do."""
    checked: set[int] = set()
    for name, match in matches.items():
        if id(match.rule) in checked:
            continue
        checked.add(id(match.rule))
        wide = choose(match.rule.choices, wide_values, match)
        if wide is not layouts[name]:
            error = match.rule.text.error(
                f"with the widened config, `{name}` would be `{wide.text.value}` instead of "
                f"`{layouts[name].text.value}`: that config means another structure"
            )
            raise ConfigError(error.message, excerpt=error.excerpt, hint="widen by another factor")
