"""Finding the axes of a checkpoint and their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.expressions import look_up, names_in
from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import RecipeError
from mupscale_cli.plan.conditions import Values, evaluate_located
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import LayoutError, solve_size
from mupscale_cli.text import shown

_TRAITS = ("uneven", "rotary", "sinusoidal", "order")  # what a recipe says of an axis and a plan needs


def find_axes(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    layouts: Mapping[str, Choice[Any]],
    matches: Mapping[str, Match],
    values: Values,
    used: frozenset[str],
) -> dict[str, Axis]:
    """Return every axis with its size, not widened.

    Sizes come from the config or, if the recipe says so, from the shapes of the tensors.

    Args:
        recipe: recipe of the architecture.
        specs: tensors of the checkpoint.
        layouts: chosen layout of each tensor by its name.
        matches: matched rule of each tensor by its name.
        values: names and values, as `environment` returns them.
        used: axes that occur in some tensor.

    Raises:
        RecipeError: the size of an axis is missing, is not a whole number, or contradicts the number of tensors.
    """
    sizes = sizes_from_config(recipe, values, used)
    rules = {rule.name: rule for rule in recipe.axes}
    axes = {
        name: Axis(name, size, **{trait: getattr(rules[name], trait) for trait in _TRAITS})
        for name, size in sizes.items()
    }
    open_names = {rule.name for rule in recipe.axes if rule.size == "shapes" and rule.name in used}
    if open_names:
        for name, solved in _solved_sizes(specs, layouts, axes):
            if name in open_names:
                axes[name] = replace(axes[name], size=solved)
                open_names.remove(name)
    for name, count in name_counts(matches).items():
        if axes[name].size is None:
            axes[name] = replace(axes[name], size=count)
            open_names.discard(name)
    for name in {name for match in matches.values() for part in match.rule.pattern.axes for name in part.names}:
        if (axes[name].size or 0) > len(matches):
            rule = next(rule for rule in recipe.axes if rule.name == name)
            raise rule.text.error(
                f"the axis `{name}` counts tensors and has size {axes[name].size} in the config, "
                f"but the checkpoint has {len(matches)} tensors",
                hint="check that config.json and the recipe belong to these tensors",
            )
    if open_names:
        rule = next(rule for rule in recipe.axes if rule.name in open_names)
        raise rule.text.error(f"cannot infer the size of the axis `{rule.name}` from the shapes of the tensors")
    return axes


def varied_sizes(
    specs: Iterable[TensorSpec], layouts: Mapping[str, Choice[Any]], axes: Mapping[str, Axis], name: str
) -> set[int]:
    """Return the sizes of an axis that differs between tensors, as far as their shapes show them."""
    return {size for axis, size in _solved_sizes(specs, layouts, axes) if axis == name}


def _solved_sizes(
    specs: Iterable[TensorSpec], layouts: Mapping[str, Choice[Any]], axes: Mapping[str, Axis]
) -> Iterator[tuple[str, int]]:
    """Yield the only axis without a size of each dimension, and the size that it has there."""
    for spec in specs:
        layout = layouts[spec.name].value
        if not isinstance(layout, Layout) or len(layout.dims) != len(spec.shape):
            continue
        for dim, size in zip(layout.dims, spec.shape, strict=True):
            try:
                names, solved = solve_size(dim, axes, size)
            except LayoutError:
                continue  # `TensorPlanner` reports it with the tensor's name
            if solved is not None and len(names) == 1:
                yield names.pop(), solved


def sizes_from_config(
    recipe: Recipe, values: Values, used: frozenset[str], *, lax: bool = False
) -> dict[str, int | None]:
    """Return the size of every axis by name, None if the config does not give it.

    Args:
        recipe: recipe of the architecture.
        values: names and values, as `environment` returns them.
        used: axes that occur in some tensor.
        lax: whether to accept 0 as the size of a used axis, which a widened config can give.

    Raises:
        RecipeError: the size of a used axis is missing or is not a whole number above 0.
    """
    sizes: dict[str, int | None] = {}
    known = dict(values)
    for rule in recipe.axes:
        if rule.size in ("shapes", "varies"):
            sizes[rule.name] = None
            continue
        try:
            size = evaluate_located(rule.size, known, rule.text.error)  # type: ignore[arg-type]
        except RecipeError:  # a model without some part has no section with its sizes
            if rule.name in used:
                raise
            size = None
        if not size and rule.name not in used:  # some architectures give size 0 to parts that they do not have
            sizes[rule.name] = None
            continue
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if type(size) is not int or size < (0 if lax else 1):
            raise rule.text.error(
                f"the axis `{rule.name}` has size {shown(size)} in the config, expected a whole number above 0"
                if size is not None
                else f"the config lacks a key that gives the size of the axis `{rule.name}`",
                hint=f"config.json sets {settings_text(keys)}"
                if (keys := config_keys(recipe, (rule.name,), values))
                else "check that the recipe belongs to this model",
            )
        sizes[rule.name] = known[rule.name] = size
    return sizes


def config_keys(recipe: Recipe, names: Iterable[str], values: Values) -> dict[str, int]:
    """Return the whole numbers of the config that axes, definitions and keys depend on.

    Args:
        recipe: recipe of the architecture.
        names: names of axes, definitions and config keys.
        values: names and values, as `environment` returns them.
    """
    expressions = {name: expression for name, expression, _ in recipe.definitions}
    expressions |= {rule.name: rule.size for rule in recipe.axes if not isinstance(rule.size, str)}
    keys, seen, open_names = {}, set(), list(names)
    while open_names:
        name = open_names.pop()
        if name in expressions and name not in seen:
            seen.add(name)
            open_names += [inner.name for inner in names_in(expressions[name])]
        elif name not in expressions and type(value := look_up(name, values)) is int:
            keys[name] = value
    return dict(sorted(keys.items()))


def settings_text(keys: Mapping[str, int]) -> str:
    """Format keys of config.json for a sentence: "`num_attention_heads` to 4, `head_dim` to 8"."""
    return ", ".join(f"`{key}` to {value}" for key, value in keys.items())


def used_axes(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match]) -> frozenset[str]:
    """Return the axes that occur in the layout or the name of some tensor."""
    seen = {id(choice): choice.value for choice in layouts.values() if isinstance(choice.value, Layout)}
    in_layouts = (ref.name for layout in seen.values() for ref in axis_refs(layout) if isinstance(ref, AxisRef))
    in_names = (name for match in matches.values() for part in match.rule.pattern.axes for name in part.names)
    return frozenset((*in_layouts, *in_names))


def name_counts(matches: Mapping[str, Match]) -> dict[str, int]:
    """Return the number of tensors that each axis in a name counts."""
    counts: dict[str, int] = defaultdict(int)
    for match in matches.values():
        for part in match.rule.pattern.axes:
            if len(part.names) == 1:
                counts[part.names[0]] = max(counts[part.names[0]], int(match.groups[part.group]) + 1)
    return counts
