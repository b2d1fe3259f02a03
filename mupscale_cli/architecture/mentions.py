"""Check that a recipe names only axes that it has."""

from __future__ import annotations

from collections.abc import Iterator

from mupscale_cli.architecture.document import Node, Text
from mupscale_cli.architecture.layouts import Layout, Power, axis_refs
from mupscale_cli.architecture.nodes import entries_of, texts_of
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.architecture.units import units_in
from mupscale_cli.text import suggest


def check_names(recipe: Recipe, sections: dict[str, Node]) -> None:
    """Check that a recipe names only axes that it has, and each of them.

    Args:
        recipe: the recipe.
        sections: its sections as nodes, where errors point.

    Raises:
        RecipeError: it names an unknown axis, has one that no tensor uses, or a name has two meanings.
    """
    axes = set(recipe.axis_names)

    def check_axis(name: str, text: Text, span: tuple[int, int] | None = None) -> None:
        if name not in axes:
            raise text.error(f"unknown axis `{name}`", span, suggest(name, axes))

    if "widen" in sections:
        for text in texts_of(sections["widen"]):
            if text.value in recipe.groups:
                continue
            check_axis(text.value, text)
            if text.value in recipe.fixed:
                raise text.error(f"the axis `{text.value}` is in both `widen` and `fixed`")
    for key in _fixed_axes(recipe, sections):
        check_axis(key.value, key)
    for key, _ in entries_of(sections.get("linked")):
        check_axis(key.value, key)
    for link in recipe.links:
        for name in link.product:
            check_axis(name, link.text)
    stacks = {rule.name for rule in recipe.depths}
    mentioned = set()
    for text, axis, span in _axis_mentions(recipe):
        if axis not in stacks:
            check_axis(axis, text, span)
        mentioned.add(axis)
    for key, _ in entries_of(sections["axes"]):
        if key.value not in mentioned:
            raise key.error(f"no tensor uses the axis `{key.value}`", hint="remove it, or use it in a tensor")


def _fixed_axes(recipe: Recipe, sections: dict[str, Node]) -> Iterator[Text]:
    """Yield the names in `fixed` that are no stacks of blocks."""
    stacks = {rule.name for rule in recipe.depths}
    for rule in recipe.depths:
        if rule.name in recipe.axis_names:
            raise rule.text.error(f"`{rule.name}` is the name of an axis")
    return (key for key, _ in entries_of(sections.get("fixed")) if key.value not in stacks)


def _axis_mentions(recipe: Recipe) -> Iterator[tuple[Text, str, tuple[int, int]]]:
    """Yield every axis or stack that a tensor or a value mentions, with its text and its span there."""
    for rule in recipe.tensors:
        for part in rule.pattern.axes:
            for name in part.names:
                yield rule.text, name, part.span
        for choice in rule.choices:
            if isinstance(choice.value, Layout):
                for ref in axis_refs(choice.value):
                    name = ref.axis if isinstance(ref, Power) else ref.name
                    yield choice.text, name, ref.span
    for config_rule in recipe.config:
        for config_choice in config_rule.choices:
            for power in config_choice.value[1]:
                yield config_choice.text, power.axis, power.span
    for units_rule in recipe.units:
        for unit in units_in(units_rule.template):
            yield units_rule.text, unit.name, unit.span
