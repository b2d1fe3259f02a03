"""The axes of a checkpoint and their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.plan.conditions import Values, evaluated
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import LayoutError, solve_size
from mupscale_cli.text import shown


def find_axes(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    layouts: Mapping[str, Choice[Any]],
    matches: Mapping[str, Match],
    values: Values,
    factors: Mapping[str, int],
    used: frozenset[str],
) -> dict[str, Axis]:
    """The axes with their sizes, from the config or, where the recipe says so, from the shapes."""
    sizes = sizes_from_config(recipe, values, used)
    uneven = {rule.name for rule in recipe.axes if rule.uneven}
    axes = {
        name: Axis(name, size, factors[name] if name in used else 1, uneven=name in uneven)
        for name, size in sizes.items()
    }
    open_names = {rule.name for rule in recipe.axes if rule.size == "shapes" and rule.name in used}
    for spec in specs:
        if not open_names:
            break
        layout = layouts[spec.name].value
        if not isinstance(layout, Layout) or len(layout.dims) != len(spec.shape):
            continue
        for dim, size in zip(layout.dims, spec.shape, strict=True):
            try:
                names, solved = solve_size(dim, axes, size)
            except LayoutError:
                continue  # told with the tensor's name when its dimensions are mapped
            if solved is not None and len(names) == 1 and names <= open_names:
                name = names.pop()
                axes[name] = replace(axes[name], size=solved)
                open_names.remove(name)
    for name, count in _counts(matches).items():
        if axes[name].size is None:
            axes[name] = replace(axes[name], size=count)
            open_names.discard(name)
    for name in {name for match in matches.values() for part in match.rule.pattern.axes for name in part.names}:
        if (axes[name].size or 0) > len(matches):
            rule = next(rule for rule in recipe.axes if rule.name == name)
            raise rule.text.error(
                f"the config makes the axis `{name}` {axes[name].size}, which counts tensors, and there are "
                f"{len(matches)} tensors",
                hint="config and tensors disagree, or this is not the recipe for them",
            )
    if open_names:
        rule = next(rule for rule in recipe.axes if rule.name in open_names)
        raise rule.text.error(f"no tensor of the checkpoint tells the size of the axis `{rule.name}`")
    return axes


def sizes_from_config(
    recipe: Recipe, values: Values, used: frozenset[str], *, lax: bool = False
) -> dict[str, int | None]:
    """The size of every axis that the config tells; `lax` also 0, which a config that does not fit may give."""
    sizes: dict[str, int | None] = {}
    known = dict(values)
    for rule in recipe.axes:
        if rule.size in ("shapes", "varies"):
            sizes[rule.name] = None
            continue
        size = evaluated(rule.size, known, rule.text.error)  # type: ignore[arg-type]
        if not size and rule.name not in used:  # some architectures say 0 of what they do not have
            sizes[rule.name] = None
            continue
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if type(size) is not int or size < (0 if lax else 1):
            raise rule.text.error(
                f"the config makes the axis `{rule.name}` {shown(size)}, expected a whole number above 0",
                hint=None if size is not None else "the config lacks the key; is this the right recipe?",
            )
        sizes[rule.name] = known[rule.name] = size
    return sizes


def used_axes(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match]) -> frozenset[str]:
    """The axes that some tensor of the checkpoint has."""
    seen = {id(choice): choice.value for choice in layouts.values() if isinstance(choice.value, Layout)}
    in_layouts = (ref.name for layout in seen.values() for ref in axis_refs(layout) if isinstance(ref, AxisRef))
    in_names = (name for match in matches.values() for part in match.rule.pattern.axes for name in part.names)
    return frozenset((*in_layouts, *in_names))


def _counts(matches: Mapping[str, Match]) -> dict[str, int]:
    """How many tensors each axis in a name counts."""
    counts: dict[str, int] = defaultdict(int)
    for match in matches.values():
        for part in match.rule.pattern.axes:
            if len(part.names) == 1:
                counts[part.names[0]] = max(counts[part.names[0]], int(match.groups[part.group]) + 1)
    return counts
