"""`mupscale verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mupscale_cli.cli import options, output, render
from mupscale_cli.cli.completion import complete_checkpoint
from mupscale_cli.errors import MupscaleError

if TYPE_CHECKING:
    from mupscale_cli.verification.result import Verification


def verify(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NARROW] [WIDE]",
            help="NARROW: the source that WIDE records. WIDE: the newest widened checkpoint here.",
            autocompletion=complete_checkpoint,
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
        Path | None,
        typer.Option(metavar="PATH", help="The narrow optimizer's state, if not beside NARROW; none: leave it out."),
    ] = None,
    allow_pickle: options.AllowPickle = False,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights",
            help="Run no model: compare every byte, also of the optimizer's state, with what "
            "source, rule and noise make of it.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Also write a report with pictures: one HTML file that needs nothing else. Needs `mupscale[plot]`.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check that the wide model computes the same function as the narrow one. Exit code 1 if not."""
    from mupscale_cli.tasks import verify as task

    given = checkpoints or []
    if len(given) > 2:
        raise MupscaleError(f"`verify` takes a narrow and a wide checkpoint, not {len(given)}")
    wide = given[-1] if given else str(task.newest_widened(Path()))
    if not given:
        output.note(f"verifying {wide}, the newest widened checkpoint here")
    narrow = given[0] if len(given) == 2 else None
    if weights and steps:
        raise MupscaleError("`--weights` runs no model, `--steps` trains two; give one of them")
    if report is not None:
        check_report(report, weights=weights, overwrite=overwrite)
    if weights:
        _weights(wide, narrow, recipe, optimizer, allow_pickle=allow_pickle, as_json=as_json)
        return
    found = task.verify(
        wide,
        narrow,
        dtype=dtype,
        device=device,
        model=model,
        recipe=recipe,
        seed=seed,
        steps=steps,
        optimizer=optimizer,
        allow_pickle=allow_pickle,
    )
    if as_json:
        output.print_document("verify", {"wide": wide, **found.as_document()})
    else:
        render.print_verification(output.report(), found)
    if report is not None:  # of models that differ, it is wanted most
        write_report(report, wide, narrow, found)
    if not found.agrees:
        _tell_quietly(render.why_not(found))
        raise typer.Exit(1)


def _tell_quietly(why: str) -> None:
    """What is wrong, where no report says it."""
    if output.is_quiet():
        output.stderr().print(why, markup=False, soft_wrap=True)


def check_report(file: Path, *, weights: bool, overwrite: bool) -> None:
    """Refuse a report that could not be written, before anything is verified.

    Raises:
        MupscaleError: it has nothing to show, exists, or cannot be drawn.
    """
    from mupscale_cli.reports.pictures.canvas import check_file, check_matplotlib

    if weights:
        raise MupscaleError("`--report` shows what models compute, and `--weights` runs none; give one of them")
    if file.suffix.lower() not in (".html", ".htm"):
        raise MupscaleError(f"the report `{file}` is a HTML file", hint="end its name in .html")
    check_file(file, overwrite=overwrite)
    check_matplotlib()


def write_report(file: Path, wide: str, narrow: str | None, found: Verification) -> None:
    """Write the report of a verification."""
    from mupscale_cli.reports.pictures.canvas import publish, style
    from mupscale_cli.reports.pictures.report import report
    from mupscale_cli.reports.pictures.weights import choose_tensor, read_blocks
    from mupscale_cli.tasks.verify import replan_widening

    widening = replan_widening(wide, narrow, hashed=False)
    blocks = read_blocks(widening, choose_tensor(widening.plan, None))
    with style():
        publish(file, report(wide, widening.record, found.as_document(), blocks).encode())
    output.note(f"wrote {file}")


def _weights(
    wide: str, narrow: str | None, recipe: str | None, optimizer: Path | None, *, allow_pickle: bool, as_json: bool
) -> None:
    from mupscale_cli.tasks import verify as task

    with output.progress() as events:
        found = task.verify_weights(
            wide, narrow, recipe=recipe, optimizer=optimizer, allow_pickle=allow_pickle, events=events, processes=None
        )
    if as_json:
        output.print_document("verify-weights", {"wide": wide, **found.as_record()})
    else:
        render.print_weights(output.report(), found)
    if not found.agrees:
        _tell_quietly("\n".join((*found.differences, *(found.state.differences if found.state else ()))))
        raise typer.Exit(1)
