"""`mupscale verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mupscale_cli.cli import options, output, verification_view
from mupscale_cli.cli.completion import complete_checkpoint
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.recorded import RecordedWidening, newest_widened, replan_widening
from mupscale_cli.verification.options import VerifyOptions

if TYPE_CHECKING:
    from mupscale_cli.verification.result import Verification


def verify(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NARROW] [WIDE]",
            help="The two checkpoints. Default for NARROW: the source that WIDE records; for WIDE: the newest widened "
            "checkpoint in the current folder.",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        options.verification_option(
            metavar="PART",
            help="Verify only this part; repeat it for several. function: run both models. weights: every element. "
            "config: every key of config.json. files: all other files and the optimizer state. Default: all.",
        ),
    ] = None,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    recipe: options.RecipeName = None,
    seed: Annotated[int, options.verification_option(metavar="N", help="Random seed of the inputs.")] = 0,
    steps: Annotated[
        int,
        options.verification_option(
            min=0,
            metavar="N",
            help="Also train both models for N optimizer steps in float64, from the widened state, and compare. The "
            "allowance for rounding is measured: how far a narrow model comes from a copy of it whose parameters move "
            "to a neighboring number before each step, times 8 sqrt(n) for sums of n products.",
        ),
    ] = 0,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Optimizer state of the narrow model. Default: the state next to NARROW. none: skip it.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Also write a report with pictures as one self-contained HTML file. Needs the extra `plot`.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check that the wide model is what the plan makes of its source. Exits with 1 if anything differs.

    Exits with 2 if the models cannot run; `--only weights --only config --only files` needs no model.
    """
    given = checkpoints or []
    if len(given) > 2:
        raise MupscaleError(f"`verify` takes at most two checkpoints, NARROW and WIDE; {len(given)} are given")
    wide = given[-1] if given else str(newest_widened(Path()))
    if not given:
        output.note(f"verifying {wide}, the newest widened checkpoint in this folder")
    narrow = given[0] if len(given) == 2 else None
    if report is not None:
        from mupscale_cli.reports.pictures.canvas import check_report

        check_report(report, overwrite=overwrite)
    chosen = VerifyOptions(
        narrow,
        only=tuple(only or ()),
        dtype=dtype,
        device=device,
        model=model,
        recipe=recipe,
        seed=seed,
        steps=steps,
        optimizer=optimizer,
    )
    widening = replan_widening(wide, narrow, recipe, with_state=chosen.reads_state)
    from mupscale_cli.tasks import verify as task  # imports torch, for which a mistake in the command does not wait

    with output.progress() as events:
        result = task.verify(widening, **vars(chosen), events=events, processes=None)
    if as_json:
        output.print_document("verify", {"wide": wide, **result.as_document()})
    else:
        verification_view.print_verification(output.report(), result)
    if report is not None:  # also if the models differ: that is when it is needed most
        write_report(report, wide, widening, result)
    if not result.agrees:
        _fail(verification_view.failure_text(result))
    if error := result.incomplete:
        output.print_error(error)
        raise typer.Exit(error.exit_code)


def _fail(reason: str) -> None:
    """Exit with 1; under `--quiet`, which silences the report, print the reason first."""
    if output.is_quiet():
        output.stderr().print(reason, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def write_report(file: Path, wide: str, widening: RecordedWidening, verification: Verification) -> None:
    """Write the report of a verification."""
    from mupscale_cli.reports.pictures.canvas import publish, style
    from mupscale_cli.reports.pictures.report import report
    from mupscale_cli.reports.pictures.weights import choose_tensor, read_blocks

    blocks = read_blocks(widening, choose_tensor(widening.plan, None))
    with style():
        publish(file, report(wide, widening.record, verification.as_document(), blocks).encode())
    output.note(f"wrote {file}")
