"""Reading a config off the shapes of the tensors, for a checkpoint that has none.

The section `config` of a recipe gives the keys as expressions over the axes, so the sizes of the axes give the keys.
The sizes are whole numbers that satisfy every layout, every link and every key that the user states. If several
sets of numbers do, the user is asked for the first key in which they differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mupscale_cli.architecture.expressions import Expression, evaluate, look_up, names_in
from mupscale_cli.architecture.layouts import AxisRef, Dim, Layout, axis_refs
from mupscale_cli.architecture.matching import Match, match_rules
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.types import Choice, Link, Recipe
from mupscale_cli.architecture.wrappers import find_wrapping
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.axes import name_counts, used_axes
from mupscale_cli.plan.conditions import Values, choose, environment
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.depth import block_numbers
from mupscale_cli.plan.dims import LayoutError, solve_size
from mupscale_cli.plan.stated import sizes_in_tensors
from mupscale_cli.plan.tied import TIE_KEY

_MAX_SOLUTIONS = 64  # enough to say in which keys they differ
_Sizes = dict[str, int]


def read_config(recipe: Recipe, specs: Sequence[TensorSpec], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys that the shapes of the tensors give, without those that the config already has.

    Args:
        recipe: recipe of the architecture.
        specs: tensors of the checkpoint.
        config: what is known of its config.

    Raises:
        RecipeError: the recipe does not fit the tensors.
        PlanError: the shapes leave a choice, and the user must state a key.
    """
    if not recipe.config:
        return {}
    wrapping = find_wrapping(recipe, [spec.name for spec in specs])
    specs = [replace(spec, name=wrapping.plain(spec.name)) for spec in specs]
    names = [spec.name for spec in specs]
    matches = match_rules(recipe, names)
    values = environment(recipe, config, names)
    layouts = {name: choose(match.rule.choices, values, match) for name, match in matches.items()}
    equations = _Equations.of(recipe, specs, layouts, matches, values, config)
    sizes = list(islice(equations.solve({}), _MAX_SOLUTIONS))
    solutions = [_keys(recipe, one, values, config) for one in sizes]
    if not solutions:
        raise PlanError(
            f"the shapes of the tensors contradict `{recipe.name}` or the keys that are set",
            hint="name another recipe with `--recipe`, or correct `--set`",
        )
    for key in solutions[0]:
        options = sorted({keys[key] for keys in solutions if key in keys})
        if len(options) > 1:
            raise _unknown(key, f"could be {', '.join(map(str, options))}")
    found = {**solutions[0]}
    for rule in recipe.depths:
        numbers = block_numbers(recipe, rule, names)
        if numbers and look_up(rule.key, config) is None:
            found.setdefault(rule.key, max(numbers) + 1)
    axes = {name: Axis(name, size) for name, size in sizes[0].items()}
    found |= _stated_keys(specs, layouts, axes, environment(recipe, {**config, **found}, names))
    if recipe.tie and recipe.defaults.get(TIE_KEY) is False and TIE_KEY not in config and _lacks_readout(recipe, names):
        raise _unknown(TIE_KEY, "says whether the readout, which is not stored, shares the embedding")
    return found


def _keys(recipe: Recipe, sizes: _Sizes, values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that the sizes of the axes give."""
    keys = {}
    for rule in recipe.config:
        if rule.optional or look_up(rule.key, config) is not None:
            continue
        with suppress(LanguageError):  # of a key that another key scales, and that is absent as well
            value = evaluate(choose(rule.choices, values).value[0], {**values, **sizes})
            if value is not None:
                keys[rule.key] = value
    return keys


def _stated_keys(
    specs: Sequence[TensorSpec], layouts: Mapping[str, Choice[Any]], axes: Mapping[str, Axis], values: Values
) -> dict[str, Any]:
    """Return the keys of sizes that are no axes, such as the vocabulary's."""
    found: dict[str, Any] = {}
    for evidence in sizes_in_tensors(specs, layouts, axes):
        known = {**values, **found}
        unknown = {key.name for key in names_in(evidence.stated) if look_up(key.name, known) is None}
        if len(unknown) != 1:
            continue
        (key,) = unknown
        size = _solved(evidence.stated, key, evidence.size, known)
        if size is None:
            raise _unknown(key, f"gives {evidence.place} the size {evidence.size}")
        found[key] = size
    return found


def _lacks_readout(recipe: Recipe, names: Sequence[str]) -> bool:
    """Tell whether a checkpoint has the network below a head, and no head."""
    prefixes = tuple(words.get("prefix", "") for words in recipe.prefixes)
    return any(prefix and all(name.startswith(prefix) for name in names) for prefix in prefixes)


def _solved(expression: Expression, name: str, value: int, known: Mapping[str, Any]) -> int | None:
    """Return the whole number above 0 that gives an expression a value, if it is linear in it."""
    try:
        one, two = (evaluate(expression, {**known, name: number}) for number in (1, 2))
        if type(one) is not int or type(two) is not int or one == two or (value - one) % (two - one):
            return None
        number = (value - one) // (two - one) + 1
        return number if number > 0 and evaluate(expression, {**known, name: number}) == value else None
    except LanguageError:
        return None


@dataclass(frozen=True)
class _Equations:
    """What the sizes of axes must satisfy.

    Attributes:
        dims: dimensions of tensors and their sizes.
        keys: expressions over axes and the values that the user gives them.
        links: axes that are products of others.
        open: axes whose size is sought.
        counted: sizes of axes that are counted in the tensors' names.
        names: all axes.
    """

    dims: tuple[tuple[Dim, int], ...]
    keys: tuple[tuple[Expression, int], ...]
    links: tuple[Link, ...]
    open: tuple[str, ...]
    counted: _Sizes
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        specs: Sequence[TensorSpec],
        layouts: Mapping[str, Choice[Any]],
        matches: Mapping[str, Match],
        values: Values,
        config: Mapping[str, Any],
    ) -> _Equations:
        used = used_axes(layouts, matches)
        dims = [
            pair
            for spec in specs
            if isinstance(layout := layouts[spec.name].value, Layout) and len(layout.dims) == len(spec.shape)
            for pair in zip(layout.dims, spec.shape, strict=True)
        ]
        given = ((rule, look_up(rule.key, config)) for rule in recipe.config)
        keys = tuple((choose(rule.choices, values).value[0], value) for rule, value in given if type(value) is int)
        return cls(
            tuple(dict.fromkeys(dims)),
            tuple((expression, value) for expression, value in keys if _axes_in(expression, used)),
            tuple(link for link in recipe.links if {link.axis, *link.product} <= used),
            tuple(rule.name for rule in recipe.axes if rule.name in used and rule.size != "varies"),
            {name: count for name, count in name_counts(matches).items() if name in used},
            recipe.axis_names,
        )

    def solve(self, sizes: _Sizes) -> Iterator[_Sizes]:
        """Yield the sizes of all axes that satisfy every equation, given those of some."""
        known = self._followed({**self.counted, **sizes})
        if known is None:
            return
        name = next((name for name in self.open if name not in known), None)
        if name is None:
            yield known
            return
        nearby = [size for dim, size in self.dims if name in _axis_names(dim)]
        largest = min(nearby, default=1)
        for size in (size for size in range(1, largest + 1) if largest % size == 0):
            yield from self.solve({**known, name: size})

    def _followed(self, sizes: _Sizes) -> _Sizes | None:
        """Return the sizes with all that follow from them; None if they contradict an equation."""
        known, before = dict(sizes), -1
        while len(known) > before:
            before = len(known)
            axes = {name: Axis(name, known.get(name)) for name in self.names}
            for dim, size in self.dims:
                try:
                    names, solved = solve_size(dim, axes, size)
                except LayoutError:
                    return None
                if solved is not None and len(names) == 1 and names <= set(self.open):
                    known[name := names.pop()] = solved
                    axes[name] = Axis(name, solved)
            for expression, value in self.keys:
                unknown = sorted(_axes_in(expression, self.open) - known.keys())
                if not unknown and evaluate(expression, known) != value:
                    return None
                if len(unknown) == 1:
                    solved = _solved(expression, unknown[0], value, known)
                    if solved is None:
                        return None
                    known[unknown[0]] = solved
            for link in self.links:
                sides = (link.axis, *link.product)
                unknown = [name for name in sides if name not in known]
                product = math.prod(known.get(name, 1) for name in link.product)
                if unknown == [link.axis]:
                    known[link.axis] = product
                elif len(unknown) == 1 and known[link.axis] % product == 0:
                    known[unknown[0]] = known[link.axis] // product
                elif len(unknown) < 2 and known[link.axis] != product:
                    return None
        return known


def _axis_names(dim: Dim) -> set[str]:
    refs = axis_refs(Layout((dim,), (), 0, dim.span))
    return {ref.name for ref in refs if isinstance(ref, AxisRef)}


def _axes_in(expression: Expression, axes: Collection[str]) -> set[str]:
    return {name.name for name in names_in(expression) if name.name in axes}


def _unknown(key: str, why: str) -> PlanError:
    return PlanError(
        f"the checkpoint has no config.json, and the shapes of its tensors do not tell `{key}`, which {why}",
        hint=f"state it as the model was trained, `--set {key}=VALUE`; or put config.json beside the weights",
    )
