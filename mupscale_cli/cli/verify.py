"""`mupscale verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mupscale_cli.cli import options, output, render
from mupscale_cli.errors import MupscaleError


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
    steps: Annotated[
        int, typer.Option(min=0, help="Also take so many optimizer steps on both, with the carried state, in float64.")
    ] = 0,
    optimizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The narrow optimizer's state, if it is not beside NARROW.")
    ] = None,
    allow_pickle: options.AllowPickle = False,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Run no model: compare every byte with what source, rule and noise make of it."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check that the wide model computes the same function as the narrow one. Exit code 1 if not."""
    from mupscale_cli import verifying

    given = checkpoints or []
    if len(given) > 2:
        raise MupscaleError(f"`verify` takes a narrow and a wide checkpoint, not {len(given)}")
    wide = given[-1] if given else str(verifying.newest_widened(Path()))
    if not given:
        output.note(f"verifying {wide}, the newest widened checkpoint here")
    narrow = given[0] if len(given) == 2 else None
    if weights and steps:
        raise MupscaleError("`--weights` runs no model, `--steps` trains two; give one of them")
    if weights:
        _weights(wide, narrow, recipe, as_json=as_json)
        return
    found = verifying.verify(
        wide, narrow, options=options.verify_options(dtype, device, model, seed, steps), recipe=recipe,
        optimizer=optimizer, allow_pickle=allow_pickle,
    )  # fmt: skip
    if as_json:
        output.print_document("verify", {"wide": wide, **found.as_record()})
    else:
        render.print_verification(output.report(), found)
    if not found.agrees:
        raise typer.Exit(1)


def _weights(wide: str, narrow: str | None, recipe: str | None, *, as_json: bool) -> None:
    from mupscale_cli import verifying

    with output.progress() as events:
        found = verifying.verify_weights(wide, narrow, recipe=recipe, events=events)
    if as_json:
        output.print_document("verify-weights", {"wide": wide, **found.as_record()})
    else:
        render.print_weights(output.report(), found)
    if not found.agrees:
        raise typer.Exit(1)
