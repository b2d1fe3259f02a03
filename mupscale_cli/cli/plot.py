"""Run `mupscale plot`: draw a widening, a verification or a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mupscale_cli.checkpoints.reading import TORCH_SUFFIXES
from mupscale_cli.cli import options, output, usage
from mupscale_cli.cli.completion import complete_tensor, complete_widened
from mupscale_cli.tasks.recorded import replan_widening

if TYPE_CHECKING:
    from mupscale_cli.record.types import Verification

app = typer.Typer(
    help="Draw a widening, a verification or a sweep as PNG or SVG. Needs the extra `plot`.",
)
Wide = Annotated[str, typer.Argument(metavar="WIDE", help="A widened checkpoint.", autocompletion=complete_widened)]
Verified = Annotated[
    str,
    typer.Argument(
        metavar="WIDE|FILE",
        help="A widened checkpoint, or the saved output of `mupscale verify WIDE --json`.",
        autocompletion=complete_widened,
    ),
]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Output file, .png or .svg.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")]


@app.command("weights")
def plot_weights(
    wide: Wide,
    narrow: Annotated[
        str | None,
        typer.Argument(metavar="NARROW", help="The narrow checkpoint. Default: the source that WIDE records."),
    ] = None,
    tensor: Annotated[
        str | None,
        typer.Option(
            "--tensor",
            "-t",
            metavar="NAME",
            help="Name of the tensor, or its end. Default: the first matrix that grows in both dimensions.",
            autocompletion=complete_tensor,
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=1, metavar="N", help="Number of rows and columns of W' to show.")] = 48,
    out: Out = Path("weights.png"),
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw the widening of one tensor: corners of W and W' side by side, with lines between copied units."""
    _check(out, overwrite=overwrite)
    widening = replan_widening(wide, narrow, hashed=False)
    from mupscale_cli.reports.pictures.weights import choose_tensor, draw_weights, read_blocks

    blocks = read_blocks(widening, choose_tensor(widening.plan, tensor), size)
    _draw(lambda: draw_weights(blocks), out, as_json=as_json)


@app.command("errors")
def plot_errors(
    source: Verified,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    out: Out = Path("errors.png"),
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw the error of every module and the tolerance; a checkpoint is verified first."""
    _check(out, overwrite=overwrite)
    from mupscale_cli.reports.pictures.verification import draw_errors, module_errors, read_verification

    is_verified = _is_document(source)
    usage.refuse_idle(is_verified=is_verified)
    if is_verified:
        document = read_verification(Path(source))
    else:
        from mupscale_cli.tasks import verify as task

        result = task.verify(source, only=("function",), dtype=dtype, device=device, model=model, store=False)
        document = result.as_document()
    modules = module_errors(document, source)
    _draw(lambda: draw_errors(modules, f"{source}: {len(modules.names)} modules"), out, as_json=as_json)


@app.command("steps")
def plot_steps(
    source: Verified,
    out: Out = Path("steps.png"),
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw the training curves of `mupscale verify --steps`: both models' losses and their relative difference."""
    _check(out, overwrite=overwrite)
    from mupscale_cli.reports.pictures.verification import draw_losses, read_verification, step_losses

    document = read_verification(Path(source)) if _is_document(source) else _recorded_verification(source)
    steps = step_losses(document, source)
    _draw(lambda: draw_losses(steps, f"{source}: {len(steps.narrow)} steps of {steps.optimizer}"), out, as_json=as_json)


@app.command("sweep")
def plot_sweep(
    sweep: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep.json of `mupscale sweep`, or its folder.")],
    out: Out = Path("sweep.png"),
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw loss against learning rate, one curve per width, one panel per noise size."""
    _check(out, overwrite=overwrite)
    from mupscale_cli.sweep.picture import draw_sweep
    from mupscale_cli.sweep.report import read_findings

    findings, title, loss = read_findings(sweep)
    _draw(lambda: draw_sweep(findings, title, loss), out, as_json=as_json)


def _is_document(source: str) -> bool:
    path = Path(source)
    return path.is_file() and path.suffix not in (".safetensors", *TORCH_SUFFIXES)


def _recorded_verification(wide: str) -> Verification | None:
    """Return the last verification in a checkpoint's record."""
    from mupscale_cli.record.reading import read_record
    from mupscale_cli.tasks.source import find_source

    return read_record(find_source(wide, headers_only=True).checkpoint)["verification"]


def _check(out: Path, *, overwrite: bool) -> None:
    from mupscale_cli.reports.pictures.canvas import check_picture

    check_picture(out, overwrite=overwrite)


def _draw(draw: Callable[[], Any], out: Path, *, as_json: bool) -> None:
    from mupscale_cli.reports.pictures.canvas import save, style

    with style():
        save(draw(), out)
    output.note(f"wrote {out}")
    if as_json:
        output.print_document("plot", {"output": str(out)})
