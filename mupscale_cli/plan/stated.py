"""Sizes that the config states although no axis has them: vocabularies, positions, labels, kernels, numbers of blocks.

A layout names the key, as in `.vocab_size, embed`, and the tensor shows the size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mupscale_cli.architecture.expressions import Expression, Name, Operation, evaluate, look_up, names_in
from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs, stated_sizes
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import ConfigError
from mupscale_cli.plan.axes import config_keys, settings_text
from mupscale_cli.plan.conditions import Values
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.depth import block_numbers
from mupscale_cli.plan.dims import LayoutError, solve_size
from mupscale_cli.plan.types import ConfigChange
from mupscale_cli.text import counted


@dataclass(frozen=True, slots=True)
class Evidence:
    """The size of a dimension that the config states.

    Attributes:
        stated: the expression over the config that gives it.
        names: the axes, definitions and config keys in the dimension.
        size: the size in the tensor.
        place: the dimension and the tensor, as part of a sentence.
    """

    stated: Expression
    names: tuple[str, ...]
    size: int
    place: str

    def value(self, values: Values) -> int | None:
        """Return the size according to the config, None if the config does not say."""
        try:
            value = evaluate(self.stated, values)
        except LanguageError:  # of a config that lacks a key
            return None
        return value if type(value) is int else None


def sizes_in_tensors(
    specs: Iterable[TensorSpec], layouts: Mapping[str, Choice[Any]], axes: Mapping[str, Axis]
) -> Iterator[Evidence]:
    """Yield every size that the config states, as the tensors show it.

    Args:
        specs: tensors of the checkpoint.
        layouts: chosen layout of each tensor by its name.
        axes: every axis by name.
    """
    for spec in specs:
        layout = layouts[spec.name].value
        if not isinstance(layout, Layout) or len(layout.dims) != len(spec.shape):
            continue
        for number, stated in stated_sizes(layout):
            with suppress(LayoutError):  # `TensorPlanner` reports it with its place in the recipe
                names, size = solve_size(layout.dims[number], axes, spec.shape[number])
                if size is not None and not names:
                    shape = " x ".join(map(str, spec.shape))
                    refs = axis_refs(Layout((layout.dims[number],), (), 0, layout.span))
                    keys = [key.name for key in names_in(stated)]
                    keys += [ref.name for ref in refs if isinstance(ref, AxisRef)]
                    yield Evidence(stated, tuple(keys), size, f"dimension {number} of `{spec.name}` ({shape})")


def check_stated(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    layouts: Mapping[str, Choice[Any]],
    axes: Mapping[str, Axis],
    values: Values,
    restated: Iterable[ConfigChange],
) -> None:
    """Check that the config states the sizes that the tensors have, and no block that they lack.

    A key that the config lacks contradicts nothing. Blocks beyond the stated number do not either: models ignore them.

    Args:
        recipe: recipe of the architecture.
        specs: tensors of the checkpoint.
        layouts: chosen layout of each tensor by its name.
        axes: every axis by name.
        values: names and values, as `environment` returns them.
        restated: changes of the config if no axis grows, as `widen_config` returns them.

    Raises:
        ConfigError: some keys contradict the tensors; it names each of them with both numbers.
    """
    wrong: dict[tuple[str, int], str] = {}
    for found in sizes_in_tensors(specs, layouts, axes):
        value = found.value(values)
        if value is not None and value != found.size:
            keys = settings_text(config_keys(recipe, found.names, values))
            text = f"config.json sets {keys}, but {found.place} has size {found.size}"
            text += "" if isinstance(found.stated, Name) and len(found.names) == 1 else f" where that makes {value}"
            wrong.setdefault((keys, found.size), text)
    names = [spec.name for spec in specs]
    for rule in recipe.depths:
        numbers, count = block_numbers(recipe, rule, names), look_up(rule.key, values)
        if numbers and type(count) is int and (missing := set(range(count)) - numbers):
            wrong[rule.key, len(numbers)] = (
                f"config.json sets `{rule.key}` to {count}, but the checkpoint has "
                f"{counted(len(numbers), 'block')} `{rule.blocks.text}`, and none with the number {min(missing)}"
            )
    for change in restated:
        if divisors := _divisors(recipe, change.key, values):
            named = ", ".join(f"`{other}` {value}" for other, value in divisors.items())
            wrong[change.key, 0] = (
                f"config.json sets `{change.key}` to {change.before}, which is not a multiple of {named}"
            )
    if wrong:
        first, *others = wrong.values()
        raise ConfigError(
            first,
            excerpt="\n".join(others) or None,
            hint="config.json and the tensors belong to different models, or config.json is wrong: correct it",
        )


def _divisors(recipe: Recipe, key: str, values: Values) -> dict[str, int]:
    """Return the keys that a key is divided by: it is a product of axes, and gives the size of one of them."""
    for rule in recipe.config:
        expression = rule.choices[0].value[0]
        if rule.key == key and isinstance(expression, Operation) and expression.operator == "*":
            keys = config_keys(recipe, rule.names, values)
            return {other: value for other, value in keys.items() if other != key} if key in keys else {}
    return {}
