"""The command line: thin commands, and one boundary that turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from mupscale_cli.errors import MupscaleError, PlanError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Widen a trained network without retraining it.")


def _factor(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PlanError(f"`{name}` is `{text}`; a factor is a whole number of at least 1") from None


@app.command()
def widen(
    checkpoint: Annotated[str, typer.Argument(help="A safetensors file, a model directory, or a Hub id.")],
    output: Annotated[Optional[Path], typer.Option("-o", "--output", help="Where to; NAME-x4 beside the input.")] = None,
    factor: Annotated[Optional[str], typer.Option(help="Target width over source width.")] = None,
    axis: Annotated[Optional[list[str]], typer.Option(help="NAME=K, the factor of one axis.")] = None,
    recipe: Annotated[Optional[str], typer.Option(help="Name or file of the recipe.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an output that mupscale wrote.")] = False,
    verify: Annotated[bool, typer.Option(help="Check that both models agree.")] = True,
) -> None:
    """Widen weights and config."""
    from mupscale_cli.widening import widen as run

    axes = {}
    for text in axis or ():
        name, _, value = text.partition("=")
        axes[name] = _factor(value, f"--axis {text}")
    number = _factor(factor, "--factor") if factor is not None else None
    result = run(checkpoint, output, number, axes, recipe=recipe, overwrite=overwrite, verify=verify)
    if result.verification and not result.verification.agrees:
        typer.echo(f"the models differ, nothing was written; first: {result.verification.first_difference}", err=True)
        raise typer.Exit(1)
    if result.verification:
        typer.echo(f"{result.output}: same function, {result.verification.max_rel:.1e} relative in {result.verification.dtype}")
    else:
        typer.echo(f"{result.output}: not verified: {result.skipped}")


@app.command()
def verify(
    checkpoints: Annotated[list[str], typer.Argument(help="[NARROW] WIDE")],
    dtype: Annotated[str, typer.Option(help="auto, float64, float32, bfloat16, float16")] = "auto",
    device: Annotated[str, typer.Option(help="auto, or a device of torch")] = "auto",
    model: Annotated[Optional[str], typer.Option(help="path/to/module.py:build")] = None,
) -> None:
    """Check that the wide model computes the same function as the narrow one."""
    from mupscale_cli.verify import VerifyOptions
    from mupscale_cli.verifying import verify as run

    narrow = checkpoints[0] if len(checkpoints) > 1 else None
    result = run(checkpoints[-1], narrow, options=VerifyOptions(dtype, device, model))
    for comparison in result.comparisons:
        typer.echo(f"{comparison.what}: {comparison.max_rel:.1e} relative, {comparison.max_abs:.1e} absolute")
    typer.echo(f"tolerance {result.tolerance:.1e} = {result.tolerance_reason}")
    if not result.agrees:
        typer.echo(f"the models differ; first: {result.first_difference}", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what the user can fix ends in one message and exit code 2."""
    try:
        app()
    except MupscaleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
