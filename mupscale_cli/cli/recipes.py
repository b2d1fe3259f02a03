"""`mupscale recipes`: list, show, check."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from mupscale_cli import widening
from mupscale_cli.cli import options, output
from mupscale_cli.recipe import load_recipe, recipe_files

app = typer.Typer(no_args_is_help=True, help="The architectures that mupscale knows.")
RecipeArgument = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A built-in recipe or a file.")]


@app.command("list")
def list_recipes(as_json: options.Json = False) -> None:
    """List the built-in recipes."""
    recipes = [load_recipe(file.stem) for file in recipe_files()]
    if as_json:
        rows = [
            {"name": r.name, "model_types": list(r.model_types), "about": r.about, "axes": list(r.axis_names)}
            for r in recipes
        ]
        output.print_json({"schema_version": 1, "recipes": rows})
        return
    result = output.table("recipe", "model types", "axes", "what")
    for recipe in recipes:
        types = ", ".join(recipe.model_types) or "(no config)"
        result.add_row(recipe.name, types, " ".join(recipe.axis_names), recipe.about)
    output.stdout().print(result)


@app.command("show")
def show_recipe(recipe: RecipeArgument) -> None:
    """Explain a recipe: its axes and the layout of every tensor."""
    found = load_recipe(recipe)
    console = output.stdout()
    types = ", ".join(found.model_types) or "(no config)"
    console.print(f"{found.name}: {found.about}\nfor model types: {types}\nread from {found.file}\n", markup=False)
    axes = output.table("axis", "size", "widened by", "what")
    for axis in found.axes:
        how = "never" if axis.name in found.fixed else f"--axis {axis.name}=K"
        how = "--factor" if axis.name in found.widen else how
        axes.add_row(axis.name, escape(axis.text.value), how, escape(found.fixed.get(axis.name) or axis.about))
    console.print(axes)
    console.print()
    rules = output.table("tensors", "layout", "when")
    for rule in found.tensors:
        pattern = rule.text.value
        for choice in rule.choices:
            condition = choice.condition.value if choice.condition else "otherwise" if len(rule.choices) > 1 else ""
            rules.add_row(escape(pattern), escape(choice.text.value), escape(condition))
            pattern = ""
    console.print(rules)
    for name, _, text in found.definitions:
        console.print(f"\n{name} = {text.value}", markup=False)


@app.command("check")
def check_recipe(
    recipe: RecipeArgument,
    checkpoint: Annotated[str | None, typer.Argument(help="A checkpoint to check it against.")] = None,
) -> None:
    """Check a recipe for itself and, where one is given, against a checkpoint."""
    found = load_recipe(recipe)
    text = (
        f"{found.name}: {output.counted(len(found.axes), 'axis', 'axes')}, {output.counted(len(found.tensors), 'rule')}"
    )
    if checkpoint is not None:
        plan = widening.describe(widening.find_source(checkpoint).checkpoint, recipe)
        text += f"; every one of {len(plan.tensors)} tensors matches one rule and has its shape"
    output.stdout().print(f"{text}: no mistakes found", markup=False)
