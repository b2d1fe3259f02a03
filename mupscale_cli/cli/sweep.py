"""`mupscale sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mupscale_cli.cli import options, output
from mupscale_cli.errors import Interrupted, SweepError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.tasks.options import WidenOptions, parse_axes, parse_factor
from mupscale_cli.tasks.planning import output_path
from mupscale_cli.tasks.source import Source, find_source

if TYPE_CHECKING:
    from mupscale_cli.optimizers.state_plan import Policy
    from mupscale_cli.plan.perturbation import Mode, Scale
    from mupscale_cli.sweep.grid import Grid
    from mupscale_cli.sweep.settings import Proxy, Schedule, Training

_DATA = "What is trained"
_GRID = "What is tried"
_TRAINER = "The built-in trainer (all values are the narrow run's)"


def sweep(
    checkpoint: options.Checkpoint,
    factor: Annotated[
        list[str] | None,
        typer.Option(
            "--factor",
            "-f",
            metavar="K",
            rich_help_panel=_GRID,
            help="A width to train at, over CHECKPOINT's (or the proxy's). Repeatable. [default: 2, 4]",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            rich_help_panel=_GRID,
            help="The width that you want in the end; not trained. [default: largest --factor]",
        ),
    ] = None,
    lr: Annotated[
        str,
        typer.Option(
            metavar="LR[,LR...]",
            rich_help_panel=_GRID,
            help="Learning rates of the narrow run; of a single one, powers of sqrt(2) around it.",
        ),
    ] = "1e-3",
    lr_steps: Annotated[int, typer.Option(rich_help_panel=_GRID, help="How many powers, if --lr is a single one.")] = 5,
    noise: Annotated[
        str,
        typer.Option(
            metavar="T[,T...]", rich_help_panel=_GRID, help="Sizes of the perturbation, relative to each tensor."
        ),
    ] = "0,0.05,0.1,0.2",
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=_GRID, help="Seeds of noise and batches; each point is tried with every one."
        ),
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=_DATA,
            help="Token ids (.bin, .npy, .safetensors, .pt), text (.txt, .jsonl) for the checkpoint's "
            "tokenizer, or the folder of a Hugging Face dataset. The last tenth is held out.",
        ),
    ] = None,
    data_type: Annotated[
        str,
        typer.Option(
            metavar="auto|uint16|uint32",
            rich_help_panel=_DATA,
            help="Of the numbers in a .bin file. auto: uint16 where it fits.",
        ),
    ] = "auto",
    command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            rich_help_panel=_DATA,
            help="Your own trainer instead of the built-in one, run without a shell, with {checkpoint}, {lr}, "
            "{noise}, {factor}, {seed}, {output} filled in. Its last line of JSON on stdout says the `loss`.",
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_DATA,
            help="Use a model that is R times narrower than CHECKPOINT, made and trained here.",
        ),
    ] = None,
    proxy_steps: Annotated[
        int | None, typer.Option(rich_help_panel=_DATA, help="Train the proxy for so long first. [default: --steps]")
    ] = None,
    axis: options.AxisFactors = None,
    recipe: options.RecipeName = None,
    tie: options.Tie = None,
    optimizer: options.OptimizerState = "auto",
    optimizer_policy: options.OptimizerPolicy = "copy",
    key: options.StateKey = None,
    allow_pickle: options.AllowPickle = False,
    noise_mode: options.NoiseMode = "free",
    noise_scale: options.NoiseScale = "spectral",
    steps: Annotated[int, typer.Option(rich_help_panel=_TRAINER, help="Optimizer steps of each trial.")] = 200,
    batch_size: Annotated[int, typer.Option(rich_help_panel=_TRAINER, help="Sequences a step.")] = 16,
    length: Annotated[int, typer.Option(rich_help_panel=_TRAINER, help="Tokens a sequence.")] = 128,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=_TRAINER, help="Decoupled, of matrices.")] = 0.0,
    betas: Annotated[str, typer.Option(metavar="B1,B2", rich_help_panel=_TRAINER, help="Of AdamW.")] = "0.9,0.95",
    eps: Annotated[float, typer.Option(rich_help_panel=_TRAINER, help="Of AdamW.")] = 1e-8,
    clip: Annotated[
        float,
        typer.Option(rich_help_panel=_TRAINER, help="Largest norm of the gradient, every unit counted once. 0: none."),
    ] = 1.0,
    schedule: Annotated[
        str,
        typer.Option(metavar="constant|cosine", rich_help_panel=_TRAINER, help="Of the learning rate, after warm-up."),
    ] = "constant",
    warmup: Annotated[int, typer.Option(rich_help_panel=_TRAINER, help="Steps of linear warm-up.")] = 0,
    device: Annotated[
        str, typer.Option(rich_help_panel=_TRAINER, help="As torch names it. auto: the GPU if there is one.")
    ] = "auto",
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Trials at a time. Several calls of the same command share the work too."
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The sweep's directory; NAME-sweep beside the "
            "checkpoint if not given. What is finished in it is kept.",
        ),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Draw loss against learning rate.")] = True,
    as_json: options.Json = False,
) -> None:
    """Find learning rate and noise on small widened models, for the large one.

    `mupscale sweep tiny --data text.txt --target 8` trains `tiny` widened 2 and 4 times over a grid of learning rates
    and noises. By muP transfer the best pair holds for every width: `mupscale hparams WIDE --from-sweep sweep.json`.
    """
    from mupscale_cli.cli import sweep_view
    from mupscale_cli.sweep.run import sweep as run_sweep
    from mupscale_cli.sweep.settings import Sweep

    source = find_source(checkpoint, with_state=optimizer == "auto")
    training = _training(steps, batch_size, length, weight_decay, betas, eps, clip, schedule, warmup, device)
    settings = Sweep(
        name=source.stem,
        checkpoint=source.checkpoint.path,
        directory=out or _default_directory(source),
        grid=_grid(factor, lr, lr_steps, noise, seeds),
        target=parse_factor(target, "--target"),
        axes=parse_axes(axis),
        recipe=recipe,
        tie=tie,
        state=StateOptions(optimizer, cast("Policy", optimizer_policy), key, allow_pickle),
        noise_mode=cast("Mode", noise_mode),
        noise_scale=cast("Scale", noise_scale),
        training=training,
        data=data,
        data_type=data_type,
        command=command,
        proxy=_proxy(proxy, proxy_steps, 0 if command and not data else steps),
    )
    try:
        with sweep_view.shown() as events:
            outcome = run_sweep(settings, jobs=jobs, picture=picture, events=events)
    except KeyboardInterrupt as error:
        where = settings.directory
        raise Interrupted(f"interrupted; finished trials are kept in {where}: the same command goes on") from error
    if as_json:
        output.print_document("sweep", outcome.document)
    else:
        shown = WidenOptions(factor=settings.target or settings.grid.factors[-1], axes=settings.axes)
        wide = output_path(source, shown)
        sweep_view.print_outcome(outcome, settings, checkpoint, str(wide))


def _default_directory(source: Source) -> Path:
    return source.default_directory / f"{source.stem}-sweep"


def _grid(factors: list[str] | None, lr: str, lr_steps: int, noise: str, seeds: int) -> Grid:
    from mupscale_cli.sweep.grid import learning_rates, make_grid, numbers

    texts = [part for text in factors or ["2", "4"] for part in text.split(",")]
    widths = [width for text in texts if (width := parse_factor(text)) is not None]
    return make_grid(widths, learning_rates(lr, lr_steps), numbers(noise, "--noise"), seeds)


def _training(
    steps: int,
    batch_size: int,
    length: int,
    weight_decay: float,
    betas: str,
    eps: float,
    clip: float,
    schedule: str,
    warmup: int,
    device: str,
) -> Training:
    from mupscale_cli.sweep.settings import Training

    return Training(
        steps,
        batch_size,
        length,
        weight_decay,
        options.parse_betas(betas),
        eps,
        clip,
        cast("Schedule", schedule),
        warmup,
        device,
    )


def _proxy(ratio: str | None, steps: int | None, default_steps: int) -> Proxy | None:
    from mupscale_cli.sweep.settings import Proxy

    number = parse_factor(ratio, "--proxy")
    if number is None:
        if steps is not None:
            raise SweepError("`--proxy-steps` is given, but no `--proxy`", hint="for instance `--proxy 4`")
        return None
    if number < 2:
        raise SweepError(f"`--proxy {number}` is not at least 2")
    if steps is not None and steps < 0:
        raise SweepError(f"`--proxy-steps {steps}` is not at least 0")
    return Proxy(number, default_steps if steps is None else steps)
