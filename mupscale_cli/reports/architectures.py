"""Write the page of architectures: every recipe, its model types, and what the config calls the sizes of its axes."""

from __future__ import annotations

from collections.abc import Iterator

from mupscale_cli.architecture.loading import load_recipe, recipe_files
from mupscale_cli.architecture.refusals import refusals
from mupscale_cli.architecture.types import AxisRule, Recipe

_INTRODUCTION = """# Architectures: every recipe, and what the config calls its axes

Search this page for a model type or a config key, for instance with `mupscale help architectures | grep mistral`. The
second column has the values of `model_type` in config.json, or of the key that the library uses instead. The third
lists the axes: first those that a bare `--factor` widens, then those that `--axis NAME=2` widens, each with its size
as the config states it. *Shapes* means that the size is read off the tensors. `mupscale recipes show NAME` explains a
recipe, and `mupscale recipes coverage` compares this list with the installed transformers.

For a model type that is not here, `widen` drafts a recipe (page `recipes`).

| recipe | for | axes |
|---|---|---|
"""
_REFUSED = """
## Model types without an exact map

| model types | what stands in the way | why | instead |
|---|---|---|---|
"""


def architectures_page() -> str:
    """Return the page in Markdown, made from the recipes and from refusals.yaml."""
    rows = (_row(load_recipe(file.stem)) for file in recipe_files())
    refused = (f"| {', '.join(each.types)} | {each.part} | {each.why} | {each.instead} |\n" for each in refusals())
    return _INTRODUCTION + "".join(rows) + _REFUSED + "".join(refused)


def _row(recipe: Recipe) -> str:
    matched = "; ".join(
        ("" if key == "model_type" else f"{key}: ") + ", ".join(values) for key, values in recipe.keys.items()
    )
    return f"| {recipe.name} | {_cell(matched) or 'by name'} | {_cell('; '.join(_axes(recipe)))} |\n"


def _axes(recipe: Recipe) -> Iterator[str]:
    """Yield the axes that can be widened, with their sizes; the parts of a composite recipe instead of their axes."""
    for part, members in recipe.groups.items():
        yield f"`{part}`: its {len(members)} axes"
    inside = {name for members in recipe.groups.values() for name in members}
    free = [axis for axis in recipe.axes if axis.name not in recipe.fixed and axis.name not in inside]
    for axis in sorted(free, key=lambda axis: axis.name not in recipe.widen):
        yield f"`{axis.name}` {_size(axis)}"


def _size(axis: AxisRule) -> str:
    text = axis.text.value
    return {"shapes": "*shapes*", "varies": "*varies*"}.get(text, text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
