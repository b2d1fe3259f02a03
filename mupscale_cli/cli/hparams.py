"""`mupscale hparams`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mupscale_cli.cli import options, output, usage
from mupscale_cli.cli.completion import complete_widened
from mupscale_cli.optimizers.hyperparameters import Hyperparameters, Settings, hyperparameters
from mupscale_cli.optimizers.narrow_run import choose_settings, optimizers_of
from mupscale_cli.optimizers.rules.matrices import MUON_FACTORS
from mupscale_cli.optimizers.rules.powers import SYMBOLS
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.trainers.formats import (
    CODE_FORMATS,
    LAYOUT_FORMATS,
    TRAINER_FORMATS,
    Wide,
    document,
    render,
    render_several,
)
from mupscale_cli.record.reading import adapter_growth, read_record, recorded_method
from mupscale_cli.sweep.report import SweptHyperparameters, read_sweep
from mupscale_cli.tasks.source import find_source
from mupscale_cli.text import starred

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record


def hparams(
    wide: Annotated[str, typer.Argument(metavar="WIDE", help="A widened checkpoint.", autocompletion=complete_widened)],
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="LR", help="Learning rate of the narrow run. Default: that of the widened optimizer state."
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Optimizer: {', '.join(OPTIMIZERS)}. Default: the state's, else adamw."),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Weight decay of the narrow run. Default: the state's, else 0."),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Epsilon of the narrow run. Default: the state's, else the optimizer's."),
    ] = None,
    betas: Annotated[
        str | None,
        typer.Option(
            metavar="B1,B2", help="Decay rates of the narrow run's moments; widening keeps them. Default: the state's."
        ),
    ] = None,
    from_sweep: Annotated[
        Path | None,
        typer.Option(
            "--from-sweep",
            metavar="FILE",
            help="The sweep.json of `mupscale sweep`. Its values replace the defaults of the options above.",
        ),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Which parameters decay: matrices, all or none. Default: those of the state, else matrices.",
        ),
    ] = None,
    decoupled: Annotated[
        bool | None,
        typer.Option("--decoupled/--l2", help="Kind of weight decay. Default: the optimizer's."),
    ] = None,
    adjust_lr: Annotated[
        str | None,
        typer.Option(
            "--adjust-lr",
            metavar="MODE",
            help=f"Muon's factor for the shape of a matrix: {', '.join(MUON_FACTORS)}. Default: original.",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth",
            metavar="completep",
            help="Scale the blocks of a deeper model as CompleteP does (arXiv 2505.01618). Default: keep their values.",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="NAME", help="Print those of an adapter that was widened with the model."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORM", help=f"Output format: {', '.join(TRAINER_FORMATS)}.")
    ] = "table",
    as_json: options.Json = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the JSON document as YAML.")] = False,
) -> None:
    """Print the hyperparameters to continue training a widened model with."""
    checkpoint = find_source(wide, headers_only=True).checkpoint
    record = read_record(checkpoint)
    swept = None if from_sweep is None else read_sweep(from_sweep)
    given = {
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "eps": eps,
        "betas": None if betas is None else options.parse_betas(betas),
        "decoupled": decoupled,
        "decay": decay,
    }
    tuned = {field: getattr(swept, field, None) for field in given}
    kinds = () if adapter is not None else optimizers_of(record)
    if len(kinds) > 1 and form in CODE_FORMATS and not (as_json or as_yaml or _set(given) or swept):
        several = [hyperparameters(record, choose_settings(record, {"optimizer": kind}, {})) for kind in kinds]
        print(render_several(form, several, record, Wide(wide, frozenset(checkpoint.sizes))))  # noqa: T201
        return
    chosen = choose_settings(record, _set(given), _set(tuned), adapter=adapter is not None)
    settings = replace(chosen, depth=depth, adjust_lr=adjust_lr)
    growth = record if adapter is None else adapter_growth(record, adapter)
    result = hyperparameters(growth, settings, swept.proxy if swept else {})
    usage.refuse_idle(
        optimizer=result.rule.title,
        has_eps=result.rule.eps is not None,
        has_betas="betas" in result.rule.settings,
        has_shape_factor=result.rule.shape_factor is not None,
        decays=bool(settings.weight_decay),
        is_deeper=bool(record["blocks"]),
    )
    form = "json" if as_json else "yaml" if as_yaml else form
    if form == "table":
        state = record["optimizer_state"]
        _print_settings(settings, result, (state and state["file"]) or "the checkpoint")
        _print_table(result)
    elif form == "json":
        sweep = {} if swept is None else {"sweep": _sweep_document(swept)}
        output.print_document("hparams", {**document(result), **sweep})
    else:
        rendered = render(form, result, record, Wide(wide, frozenset(checkpoint.sizes)))
        print(rendered.text)  # noqa: T201 (must not be wrapped or styled)
        for missing in rendered.missing:
            output.note(f"{form}: {missing}")
    trainer = None if checkpoint.trained is None else checkpoint.trained.layout.name
    if form in LAYOUT_FORMATS and form != trainer:
        output.warn(f"these lines are for checkpoints that {form} wrote, and `{wide}` is not one; see `--format loop`")
    if form != "table":
        for warning in result.warnings:
            output.warn(warning)
    if swept is not None:
        _print_sweep(swept, settings, record)


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in values.items() if value is not None}


def _sweep_document(swept: SweptHyperparameters) -> dict[str, Any]:
    return {
        "lr": swept.lr,
        "noise": swept.noise.size,
        "noise_mode": swept.noise.mode,
        "noise_scale": swept.noise.scale,
        "noise_on": list(swept.noise.on),
        "warnings": list(swept.warnings),
    }


def _print_sweep(swept: SweptHyperparameters, settings: Settings, record: Record) -> None:
    """Print the sweep's learning rate and noise, and warn if the checkpoint was widened with other noise."""
    noise = replace(recorded_method(record)[1] or replace(swept.noise, size=0.0), seed=swept.noise.seed)
    is_same = noise == swept.noise
    options_text = shlex.join(swept.noise.options if swept.noise.size else swept.noise.options[:2])
    other = "" if settings.lr in (None, swept.lr) else f"; `--lr` sets {settings.lr:g}"
    output.note(f"the sweep found lr {swept.lr:g}{other}" + ("" if is_same else f"; widen with `{options_text}`"))
    if not is_same:
        output.warn(
            f"this model was widened with {noise.mode} noise {noise.size:g}, but the sweep found "
            f"{swept.noise.mode} noise {swept.noise.size:g}"
        )
    for warning in swept.warnings:
        output.warn(warning)


def _print_settings(settings: Settings, result: Hyperparameters, state: str) -> None:
    """Print the narrow run's hyperparameters and where each of them comes from."""
    texts = {
        "optimizer": result.rule.title,
        **({} if settings.lr is None else {"lr": f"lr {settings.lr:g}"}),
        "weight_decay": f"weight decay {settings.weight_decay:g}",
        **({} if result.rule.eps is None else {"eps": f"eps {settings.eps:g}"}),
        **({} if settings.betas is None else {"betas": f"betas {', '.join(f'{beta:g}' for beta in settings.betas)}"}),
    }
    words = {"option": "given", "sweep": "from the sweep", "state": f"from {state}", "default": "assumed"}
    parts = []
    for source, where in words.items():
        named = [text for field, text in texts.items() if settings.sources[field] == source]
        if named:
            parts.append(f"{', '.join(named)} ({where})")
    output.stdout().print(f"narrow run: {'; '.join(parts)}\n", markup=False)


def _print_table(result: Hyperparameters) -> None:
    console = output.stdout()
    decay = ("weight decay",) if result.settings.weight_decay else ()
    columns = ("n", "c", "m", "lr", "eps", *decay, "clip weight")
    table = output.table("tensors", *columns, right=columns)
    prefix = _common_prefix([name for group in result.groups for name in group.tensors])
    for group in result.groups:
        c, m = (output.number_text(group.scales[0]), str(group.scales[1])) if group.scales else ("", "")
        names = dict.fromkeys(starred(name.removeprefix(prefix)) for name in group.tensors)
        decayed = (f"{group.weight_decay:.4g}",) if decay else ()
        table.add_row(
            escape("\n".join(names)),
            str(len(group.tensors)),
            c,
            m,
            "its own" if group.lr is None else f"{group.lr:.4g}",
            "" if group.eps is None else f"{group.eps:.3g}",
            *decayed,
            output.number_text(group.clip_weight),
        )
    console.print(table)
    console.print()
    for key, formula in result.formulas.items():
        console.print(f"{key.replace('_', ' '):<12} = {formula}", markup=False)
    console.print(f"\n{_legend(result.formulas)}", markup=False)
    console.print(
        "\nSchedules multiply each group's lr, so they carry over; betas and step counts stay. Clip gradients by the "
        "weighted norm, sqrt(sum of clip weight x squared norm), as mupscale.clip_grad_norm_ does.",
        markup=False,
    )
    for warning in result.warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for advice in result.advice:
        console.print(f"[bold]advice:[/] {escape(advice)}")


def _legend(formulas: Mapping[str, str]) -> str:
    """Return what the symbols of the table and of its formulas mean."""
    used = " ".join(formulas.values())
    narrow = [name for name in ("lr", "eps", "wd") if re.search(rf"(?<!of )\b{name}\b", used)]
    symbols = {"n": "number of tensors", "c": SYMBOLS["c"], "m": SYMBOLS["m"]}
    symbols |= {name: text for name, text in SYMBOLS.items() if re.search(rf"\b{name}\b", used)}
    named = "; ".join(f"{name}: {text}" for name, text in symbols.items())
    return f"Right of `=`: {', '.join(narrow)} of the narrow run. {named} (`mupscale help glossary`)."


def _common_prefix(names: list[str]) -> str:
    """Return the first part of the names, with its dot, if all share it."""
    first, _, _ = names[0].partition(".")
    return f"{first}." if all(name.startswith(f"{first}.") for name in names) else ""
