"""`mupscale hparams`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mupscale_cli.cli import options, output
from mupscale_cli.cli.completion import complete_widened
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.hyperparameters import Hyperparameters, Settings, hyperparameters
from mupscale_cli.optimizers.rules import OPTIMIZERS
from mupscale_cli.optimizers.trainers import TRAINER_FORMATS, document, render
from mupscale_cli.record.reading import read_record
from mupscale_cli.sweep.report import SweptHyperparameters, read_sweep
from mupscale_cli.tasks.source import find_source
from mupscale_cli.text import starred

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record


def hparams(
    wide: Annotated[str, typer.Argument(help="A widened checkpoint.", autocompletion=complete_widened)],
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the narrow run; needed unless --from-sweep says it.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(OPTIMIZERS)}. [default: adamw]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the narrow run. [default: 0]")] = None,
    eps: Annotated[float | None, typer.Option(help="Of the narrow run. [default: 1e-8]")] = None,
    betas: Annotated[str | None, typer.Option(metavar="B1,B2", help="Carried as they are.")] = None,
    from_sweep: Annotated[
        Path | None,
        typer.Option(
            "--from-sweep",
            metavar="FILE",
            help="The sweep.json of `mupscale sweep`: what is not given here is what it found.",
        ),
    ] = None,
    decay: Annotated[str, typer.Option(metavar="WHICH", help="What is decayed: matrices, all or none.")] = "matrices",
    decoupled: Annotated[
        bool | None,
        typer.Option("--decoupled/--l2", help="How weight decay works; the optimizer's default if not given."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORM", help=f"One of {', '.join(TRAINER_FORMATS)}.")
    ] = "table",
    as_json: options.Json = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="The same as YAML.")] = False,
) -> None:
    """Show the hyperparameters with which a widened model trains as the narrow one did."""
    record = read_record(find_source(wide, headers_only=True).checkpoint)
    swept = None if from_sweep is None else read_sweep(from_sweep)
    settings = _settings(swept, lr, optimizer, weight_decay, eps, betas, decoupled, decay)
    result = hyperparameters(record, settings, swept.proxy if swept else {})
    form = "json" if as_json else "yaml" if as_yaml else form
    if form == "table":
        _print_table(result)
    elif form == "json":
        told = {} if swept is None else {"sweep": _sweep_document(swept)}
        output.print_document("hparams", {**document(result), **told})
    else:
        rendered = render(form, result, record)
        print(rendered.text)  # noqa: T201 (the result, as it is)
        for missing in rendered.missing:
            output.note(f"{form}: {missing}")
    if form != "table":
        for warning in result.warnings:
            output.warn(warning)
    if swept is not None:
        _tell_sweep(swept, settings, record)


def _settings(
    swept: SweptHyperparameters | None,
    lr: float | None,
    optimizer: str | None,
    weight_decay: float | None,
    eps: float | None,
    betas: str | None,
    decoupled: bool | None,
    decay: str,
) -> Settings:
    """The narrow run's hyperparameters: what is given, else what the sweep found, else the defaults.

    Raises:
        PlanError: nothing says the learning rate.
    """
    if lr is None and swept is None:
        raise PlanError(
            "the learning rate of the narrow run is not given",
            hint="`--lr 3e-4`, or `--from-sweep sweep.json` with what `mupscale sweep` found",
        )
    given = {
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "eps": eps,
        "betas": None if betas is None else options.parse_betas(betas),
    }
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        said = value if value is not None else getattr(swept, name, None)
        if said is not None:
            chosen[name] = said
    return Settings(**chosen, decoupled=decoupled, decay=decay)


def _sweep_document(swept: SweptHyperparameters) -> dict[str, Any]:
    return {
        "lr": swept.lr,
        "noise": swept.noise,
        "noise_mode": swept.noise_mode,
        "noise_scale": swept.noise_scale,
        "warnings": list(swept.warnings),
    }


def _tell_sweep(swept: SweptHyperparameters, settings: Settings, record: Record) -> None:
    """What of the sweep no group can say: the noise with which the checkpoint is to be widened."""
    noise = record["perturbation"] or {"size": 0.0, "mode": swept.noise_mode, "scale": swept.noise_scale}
    is_same = (noise["size"], noise["mode"], noise["scale"]) == (swept.noise, swept.noise_mode, swept.noise_scale)
    options_text = f"--noise {swept.noise:g}" + (
        ""
        if (swept.noise_mode, swept.noise_scale) == ("free", "spectral") or not swept.noise
        else f" --noise-mode {swept.noise_mode} --noise-scale {swept.noise_scale}"
    )
    other = "" if settings.lr == swept.lr else f", here it is {settings.lr:g}"
    output.note(f"the sweep found lr {swept.lr:g}{other}" + ("" if is_same else f"; widen with `{options_text}`"))
    if not is_same:
        output.warn(
            f"this model was widened with {noise['mode']} noise {noise['size']:g}, the sweep found "
            f"{swept.noise_mode} noise {swept.noise:g}"
        )
    for warning in swept.warnings:
        output.warn(warning)


def _print_table(found: Hyperparameters) -> None:
    console = output.stdout()
    decay = ("weight decay",) if found.settings.weight_decay else ()
    columns = ("n", "c", "m", "lr", "eps", *decay, "clip weight")
    result = output.table("tensors", *columns, right=columns)
    prefix = _common_prefix([name for group in found.groups for name in group.tensors])
    for group in found.groups:
        c, m = (output.number_text(group.scales[0]), str(group.scales[1])) if group.scales else ("", "")
        names = dict.fromkeys(starred(name.removeprefix(prefix)) for name in group.tensors)
        decayed = (f"{group.weight_decay:.4g}",) if decay else ()
        result.add_row(
            escape("\n".join(names)),
            str(len(group.tensors)),
            c,
            m,
            f"{group.lr:.4g}",
            "" if group.eps is None else f"{group.eps:.3g}",
            *decayed,
            output.number_text(group.clip_weight),
        )
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
