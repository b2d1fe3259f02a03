"""Run `mupscale coordcheck`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mupscale_cli.cli import options, output
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.tasks.options import parse_axes
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import find_source
from mupscale_cli.text import counted

if TYPE_CHECKING:
    from mupscale_cli.optimizers.state_plan import Policy
    from mupscale_cli.plan.perturbation import Mode, Scale
    from mupscale_cli.sweep.coordinates import Coordinates

_STYLES = {True: "", None: "yellow", False: "bold red"}  # by `Kind.is_stable`


@options.with_reading
def coordcheck(
    checkpoint: options.Checkpoint,
    factor: Annotated[
        list[str] | None,
        typer.Option(
            "--factor", "-f", metavar="K", help="Width over that of CHECKPOINT. Repeatable. Default: 2, 4 and 8."
        ),
    ] = None,
    lr: Annotated[float, typer.Option(metavar="LR", help="Learning rate of the narrow run.")] = 1e-3,
    noise: Annotated[float, typer.Option(metavar="T", help="Size of the noise that makes copies differ.")] = 0.1,
    noise_mode: options.NoiseMode = "free",
    noise_scale: options.NoiseScale = "spectral",
    noise_on: options.NoiseOn = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Optimizer steps, all on one batch.")] = 4,
    seeds: Annotated[int, typer.Option(metavar="N", help="Number of random seeds to average over.")] = 2,
    one_lr: Annotated[
        bool,
        typer.Option(
            "--one-lr", help="Train with the narrow run's hyperparameters at every width, to see how a mistake looks."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Training data, as for `mupscale sweep`. Default: random tokens."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Sequences in the batch.")] = 8,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens per sequence.")] = 64,
    axis: options.AxisFactors = None,
    recipe: options.RecipeName = None,
    reading: Reading = AS_STORED,
    tie: options.Tie = None,
    optimizer: options.OptimizerState = "auto",
    optimizer_kind: options.OptimizerKind = None,
    optimizer_policy: options.OptimizerPolicy = "copy",
    key: options.StateKey = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Torch device. auto: the GPU if there is one.")] = "auto",
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Picture to write, .png or .svg.")] = Path(
        "coordcheck.png"
    ),
    picture: Annotated[bool, typer.Option(help="Draw the picture.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check that activations change equally much at every width, which shows wrong learning rates in a few steps.

    Widens CHECKPOINT to several widths, trains each for a few steps of AdamW with its mapped hyperparameters, and
    measures the outputs of all layers. Exits with 1 if a layer's change grows or shrinks with the width, and with 2 if
    noise hides whether it does.
    """
    from mupscale_cli.reports.pictures.canvas import check_matplotlib, check_picture, save, style
    from mupscale_cli.sweep.grid import make_grid
    from mupscale_cli.sweep.settings import Sweep, Training

    if picture:
        check_matplotlib("plot", "omit the picture with `--no-picture`")
        check_picture(out, overwrite=overwrite)
    source = find_source(checkpoint, reading, recipe=recipe, with_state=optimizer == "auto")
    factors = [options.parse_whole(text, "--factor") for each in factor or ["2,4,8"] for text in each.split(",")]
    axes = {name: options.whole(amount, f"--axis {name}") for name, amount in parse_axes(axis).items()}
    settings = Sweep(
        name=source.stem,
        checkpoint=source.checkpoint.path,
        directory=source.default_directory / source.stem,
        grid=make_grid(factors, [lr], [noise], seeds),
        axes=axes,
        reading=reading,
        recipe=recipe,
        tie=tie,
        state=StateOptions(optimizer, cast("Policy", optimizer_policy), key, tuple(optimizer_kind or ())),
        noise_mode=cast("Mode", noise_mode),
        noise_scale=cast("Scale", noise_scale),
        noise_on=tuple(noise_on or ()),
        training=Training(steps, batch_size, length, clip=0, device=device),
        data=data,
    )
    settings.perturbation(noise)
    from mupscale_cli.sweep.coordinates import check_coordinates, coordinates_document  # imports torch
    from mupscale_cli.sweep.coordinates_picture import draw_coordinates

    found = check_coordinates(
        settings, is_mapped=not one_lr, report=lambda point: output.note(f"training x{point.factor}, seed {point.seed}")
    )
    if picture:
        with style():
            save(draw_coordinates(found, settings.title), out)
    if as_json:
        output.print_document("coordcheck", coordinates_document(found, settings, out if picture else None))
    else:
        _print_table(found)
        output.stdout().print(f"\n{found.summary}", markup=False)
    if picture:
        output.note(f"wrote {out}")
    if not found.agrees:
        raise typer.Exit(1 if found.agrees is False else 2)


def _print_table(found: Coordinates) -> None:
    names = [f"x{factor}" for factor in found.factors]
    table = output.table("layer", *names, "width^", right=(*names, "width^"))
    for kind in found.kinds:
        power = "" if kind.slope is None else f"{kind.slope:+.2f}"
        changes = (f"{change:.3f}" for change in kind.changes(found.steps))
        table.add_row(kind.name, *changes, power, style=_STYLES[kind.is_stable])
    console = output.stdout()
    console.print(table)
    after = counted(found.steps, "step")
    console.print(f"mean change of an activation after {after}, relative to its size", markup=False)
    console.print(f"exponents are uncertain by {found.uncertainty:.2f}", markup=False)
