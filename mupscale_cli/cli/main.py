"""The command line: thin commands, and one boundary that turns errors into messages and exit codes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mupscale_cli._version import __version__
from mupscale_cli.cli import options, output, render
from mupscale_cli.errors import MupscaleError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Widen a trained network without retraining it: the wide model computes the same function.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="The architectures that mupscale knows.")
app.add_typer(recipes_app, name="recipes")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Widen a trained network without retraining it: the wide model computes the same function."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def widen(
    checkpoint: options.Checkpoint,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; NAME-x4 beside the input if not given.")
    ] = None,
    factor: options.Factor = None,
    axis: options.AxisFactors = None,
    recipe: options.RecipeName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of a directory.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that mupscale wrote.")] = False,
    verify: Annotated[bool, typer.Option(help="Check at the end that both models agree.")] = True,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    as_json: options.Json = False,
) -> None:
    """Widen a checkpoint: weights, config, and everything that loading it needs."""
    from mupscale_cli import widening

    number, axes = options.parse_factor(factor), options.parse_axes(axis)
    source = widening.find_source(checkpoint)
    plan = widening.plan_widening(
        source, number, axes, recipe=recipe, max_shard_size=options.parse_size(max_shard_size)
    )
    target = out or widening.default_output(source, number, axes)
    if dry_run:
        if as_json:
            output.print_json(render.plan_document(plan, str(target)))
        else:
            render.print_plan(output.stdout(), plan, str(target))
        return
    chosen: Any = False
    if verify:
        from mupscale_cli.verify import VerifyOptions

        chosen = VerifyOptions(dtype, device, model)
    with output.progress() as events:
        result = widening.widen(
            source, target, number, axes, overwrite=overwrite, verify=chosen, plan=plan, events=events
        )
    failed = result.verification is not None and not result.verification.agrees
    if as_json:
        output.print_json({"schema_version": 1, "output": None if failed else str(target), **result.record})
    else:
        _report(result, source.checkpoint.left_files)
    if failed:
        output.note("nothing was written; `--no-verify` writes it all the same")
        raise typer.Exit(1)


def _report(result: Any, left: tuple[Path, ...]) -> None:
    console = output.stdout()
    console.print(render.axes_table(result.plan))
    before, after = result.plan.num_parameters
    console.print(
        f"\n{output.count_text(before)} -> {output.count_text(after)} parameters, "
        f"{output.bytes_text(result.plan.num_bytes)}\n",
        markup=False,
    )
    if result.verification is not None:
        render.print_verification(console, result.verification)
        if not result.verification.agrees:
            return
    else:
        console.print(f"not verified: {result.skipped}", markup=False, soft_wrap=True)
    if left:
        output.note(f"left behind, as it describes the narrow model: {', '.join(file.name for file in left)}")
    console.print(f"wrote {result.output}", markup=False, soft_wrap=True)


@app.command()
def verify(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NARROW] [WIDE]",
            help="NARROW: the source that WIDE records. WIDE: the newest widened checkpoint here.",
        ),
    ] = None,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    recipe: options.RecipeName = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Check that the wide model computes the same function as the narrow one. Exit code 1 if not."""
    from mupscale_cli.verify import VerifyOptions
    from mupscale_cli.verifying import newest_widened
    from mupscale_cli.verifying import verify as run

    given = checkpoints or []
    if len(given) > 2:
        raise MupscaleError(f"`verify` takes a narrow and a wide checkpoint, not {len(given)}")
    wide = given[-1] if given else str(newest_widened(Path()))
    if not given:
        output.note(f"verifying {wide}, the newest widened checkpoint here")
    narrow = given[0] if len(given) == 2 else None
    found = run(wide, narrow, options=VerifyOptions(dtype, device, model, seed), recipe=recipe)
    if as_json:
        output.print_json({"schema_version": 1, "wide": wide, **found.as_record()})
    else:
        render.print_verification(output.stdout(), found)
    if not found.agrees:
        raise typer.Exit(1)


@app.command()
def inspect(checkpoint: options.Checkpoint, recipe: options.RecipeName = None, as_json: options.Json = False) -> None:
    """Show what is in a checkpoint: recipe, axes, tensors."""
    from mupscale_cli import widening

    source = widening.find_source(checkpoint)
    found = source.checkpoint
    plan = widening.describe(found, recipe)
    if as_json:
        output.print_json(
            {**render.plan_document(plan, ""), "output": None, "path": str(found.path), "record": found.record}
        )
        return
    console = output.stdout()
    console.print(render.axes_table(plan))
    console.print()
    console.print(render.rules_table(plan.tensors))
    console.print(
        f"\nrecipe {plan.recipe.name}, {output.count_text(plan.num_parameters[0])} parameters, "
        f"{len(found.tensors)} tensors, "
        f"{output.bytes_text(found.num_bytes)} in {len(found.files)} file{'s' * (len(found.files) > 1)}",
        markup=False,
    )
    if found.record is not None:
        console.print(
            f"widened by mupscale {found.record.get('mupscale_version')} from {found.record.get('source')}",
            markup=False,
        )


@recipes_app.command("list")
def list_recipes(as_json: options.Json = False) -> None:
    """List the built-in recipes."""
    from mupscale_cli.recipe import load_recipe, recipe_files

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
        result.add_row(
            recipe.name, ", ".join(recipe.model_types) or "(no config)", " ".join(recipe.axis_names), recipe.about
        )
    output.stdout().print(result)


@recipes_app.command("show")
def show_recipe(recipe: Annotated[str, typer.Argument(help="Name or file.")]) -> None:
    """Explain a recipe: its axes and the layout of every tensor."""
    from rich.markup import escape

    from mupscale_cli.recipe import load_recipe

    found = load_recipe(recipe)
    console = output.stdout()
    console.print(
        f"{found.name}: {found.about}\nfor model types: {', '.join(found.model_types) or '(no config)'}\n", markup=False
    )
    axes = output.table("axis", "size", "widened by", "what")
    for axis in found.axes:
        how = (
            "--factor" if axis.name in found.widen else "never" if axis.name in found.fixed else f"--axis {axis.name}=K"
        )
        axes.add_row(axis.name, escape(axis.text.value), how, escape(found.fixed.get(axis.name) or axis.about))
    console.print(axes)
    console.print()
    rules = output.table("tensors", "layout", "when")
    for rule in found.tensors:
        for choice in rule.choices:
            rules.add_row(
                escape(rule.text.value), escape(choice.text.value), "" if choice.when is None else "condition"
            )
    console.print(rules)


@recipes_app.command("check")
def check_recipe(
    recipe: Annotated[str, typer.Argument(help="Name or file.")],
    checkpoint: Annotated[str | None, typer.Argument(help="A checkpoint to check it against.")] = None,
) -> None:
    """Check a recipe for itself and, where one is given, against a checkpoint."""
    from mupscale_cli import widening
    from mupscale_cli.recipe import load_recipe

    found = load_recipe(recipe)
    text = f"{found.name}: {len(found.axes)} axes, {len(found.tensors)} rules"
    if checkpoint is not None:
        plan = widening.describe(widening.find_source(checkpoint).checkpoint, recipe)
        text += f"; every one of {len(plan.tensors)} tensors matches one rule and has its shape"
    output.stdout().print(f"{text}: no mistakes found", markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; what the user can fix ends in one message and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except MupscaleError as error:
        output.print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        output.note("interrupted; nothing was written")
        sys.exit(130)


def _terminate(*_: object) -> None:
    """End as after Ctrl-C, so that what was begun is removed."""
    sys.exit(143)
