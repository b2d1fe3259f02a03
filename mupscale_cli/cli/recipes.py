"""`mupscale recipes`: list, show, check, infer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mupscale_cli import widening
from mupscale_cli.cli import options, output
from mupscale_cli.errors import MupscaleError, OutputError
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


@app.command("infer")
def infer_recipe(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_TYPE|CONFIG|FILE:FUNCTION",
            help="A model type of transformers, a config.json (or its folder), or your own function from a config to "
            "an nn.Module.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the recipe here. Default: stdout.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The config, as JSON, of a small model for FILE:FUNCTION. Default: `config`, a dict in its module.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="causal-lm, masked-lm, seq2seq-lm, image-classification or base. Default: what there is."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Draft a recipe for an architecture that has none, and prove it on tiny random models."""
    from mupscale_cli.inferring.infer import infer_target
    from mupscale_cli.inferring.tiny import TASKS

    if task is not None and task not in TASKS:
        raise MupscaleError(f"there is no task `{task}`", hint=f"known: {', '.join(TASKS)}")
    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"`{out}` exists already", hint="give another name, or `--overwrite`")
    found = infer_target(target, task, config, note=output.note)
    for axis, reason in found.fixed.items():
        output.note(f"not widened: {axis}: {reason}")
    output.note(f"verified from disk to disk in float64: largest relative difference {found.worst:.1e}")
    if out is None:
        sys.stdout.write(found.text)
        return
    try:
        out.write_text(found.text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write `{out}`: {error.strerror or error}") from None
    output.note(f"written to {out}; use it with `mupscale widen CKPT --recipe {out}`")
