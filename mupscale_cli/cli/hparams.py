"""`mupscale hparams`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from mupscale_cli.cli import options, output
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.formats import FORMS, document, render
from mupscale_cli.hyperparameters import Hyperparameters, Settings, hyperparameters
from mupscale_cli.record import check_record
from mupscale_cli.scaling import OPTIMIZERS
from mupscale_cli.widening import find_source


def hparams(
    wide: Annotated[str, typer.Argument(help="A widened checkpoint.")],
    lr: Annotated[float, typer.Option(help="Learning rate of the narrow run.")],
    optimizer: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(OPTIMIZERS)}.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Of the narrow run.")] = 0.0,
    eps: Annotated[float, typer.Option(help="Of the narrow run.")] = 1e-8,
    betas: Annotated[str | None, typer.Option(metavar="B1,B2", help="Carried as they are.")] = None,
    decay: Annotated[str, typer.Option(metavar="WHICH", help="What is decayed: matrices, all or none.")] = "matrices",
    decoupled: Annotated[
        bool | None,
        typer.Option("--decoupled/--l2", help="How weight decay works; the optimizer's default if not given."),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORM", help=f"One of {', '.join(FORMS)}.")] = "table",
    as_json: options.Json = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="The same as YAML.")] = False,
) -> None:
    """Show the hyperparameters with which a widened model trains as the narrow one did."""
    found = find_source(wide).checkpoint
    if found.record is None:
        raise CheckpointError(f"`{wide}` was not written by mupscale: it has no record of its widening")
    check_record(found.record, found.path)
    settings = Settings(lr, optimizer, weight_decay, eps, _betas(betas), decoupled, decay)
    result = hyperparameters(found.record, settings)
    form = "json" if as_json else "yaml" if as_yaml else form
    if form == "table":
        _print_table(result)
    elif form == "json":
        output.print_json(document(result))
    else:
        rendered = render(form, result, found.record)
        print(rendered.text)  # noqa: T201 (the result, as it is)
        for missing in rendered.missing:
            output.note(f"{form}: {missing}")
    if form != "table":
        for warning in result.warnings:
            output.note(f"warning: {warning}")


def _betas(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"`--betas {text}` is not two numbers", hint="for instance `--betas 0.9,0.95`") from None
    return first, second


def _print_table(found: Hyperparameters) -> None:
    console = output.stdout()
    decay = ("weight decay",) if found.settings.weight_decay else ()
    columns = ("n", "c", "m", "lr", "eps", *decay, "clip weight")
    result = output.table("tensors", *columns, right=columns)
    prefix = _common_prefix([name for group in found.groups for name in group.tensors])
    for group in found.groups:
        c, m = (output.number_text(group.scales[0]), str(group.scales[1])) if group.scales else ("", "")
        names = dict.fromkeys(_short(name.removeprefix(prefix)) for name in group.tensors)
        decayed = (f"{group.weight_decay:.4g}",) if decay else ()
        result.add_row(
            escape("\n".join(names)), str(len(group.tensors)), c, m, f"{group.lr:.4g}",
            "" if group.eps is None else f"{group.eps:.3g}", *decayed, output.number_text(group.clip_weight),
        )  # fmt: skip
    console.print(result)
    console.print()
    for key, formula in found.formulas.items():
        console.print(f"{key:<12} = {formula}", markup=False)
    console.print(
        "\nSchedules multiply each group's lr and carry over; betas and step counts stay. Clip by the weighted norm, "
        "the square root of the sum of clip weight x squared norm (mupscale_cli.clip_grad_norm_).",
        markup=False,
    )
    for warning in found.warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for advice in found.advice:
        console.print(f"[bold]advice:[/] {escape(advice)}")


def _common_prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot: it tells nothing."""
    first, _, _ = names[0].partition(".")
    return f"{first}." if all(name.startswith(f"{first}.") for name in names) else ""


def _short(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
