"""Run `mupscale sweep`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mupscale_cli.cli import options, output, usage
from mupscale_cli.errors import Interrupted, MupscaleError, SweepError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.tasks.options import WidenOptions, parse_axes
from mupscale_cli.tasks.planning import output_path, plan_source
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import Source, find_source

if TYPE_CHECKING:
    from mupscale_cli.optimizers.state_plan import Policy
    from mupscale_cli.plan.perturbation import Mode, Scale
    from mupscale_cli.sweep.grid import Grid
    from mupscale_cli.sweep.settings import Proxy, Schedule

_OPTIMIZER = "adamw"  # of the built-in trainer
_PROXY_STEPS = 10  # training steps of a proxy, in steps of a trial
_grid_option = partial(typer.Option, rich_help_panel="Grid")
_data_option = partial(typer.Option, rich_help_panel="Training data")
_trainer_option = partial(typer.Option, rich_help_panel="Built-in trainer (all values are the narrow run's)")


@options.with_reading
def sweep(
    checkpoint: options.Checkpoint,
    factor: Annotated[
        list[str] | None,
        _grid_option(
            "--factor",
            "-f",
            metavar="K",
            help="Width to train at, over that of CHECKPOINT or the proxy. Repeatable. Default: the target's with a "
            "proxy, 2 and 4 without one.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        _grid_option(
            metavar="K", help="Width of the large model, which is not trained. Default: largest --factor, or 2."
        ),
    ] = None,
    lr: Annotated[
        str,
        _grid_option(
            metavar="LR[,LR...]",
            help="Learning rates of the narrow run. A single rate expands to powers of sqrt(2) around it.",
        ),
    ] = "1e-3",
    lr_steps: Annotated[int, _grid_option(metavar="N", help="Number of learning rates if --lr is a single rate.")] = 5,
    noise: Annotated[
        str, _grid_option(metavar="T[,T...]", help="Sizes of the noise, relative to each tensor.")
    ] = "0,0.05,0.1,0.2",
    seeds: Annotated[
        int, _grid_option(metavar="N", help="Number of random seeds for noise and batches at each point of the grid.")
    ] = 1,
    data: Annotated[
        Path | None,
        _data_option(
            metavar="PATH",
            help="Token ids (.bin, .npy, .safetensors, .pt), text (.txt, .jsonl) for the checkpoint's "
            "tokenizer, or the folder of a Hugging Face dataset. The last tenth is held out.",
        ),
    ] = None,
    data_type: Annotated[
        str,
        _data_option(
            metavar="auto|uint16|uint32", help="Number type of a .bin file. auto: uint16 if the vocabulary fits."
        ),
    ] = "auto",
    command: Annotated[
        str | None,
        _data_option(
            metavar="COMMAND",
            help="Your own trainer instead of the built-in one, run without a shell. {checkpoint}, {lr}, {noise}, "
            "{factor}, {seed} and {output} are filled in. The last line of JSON on stdout holds the `loss`.",
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        _data_option(
            metavar="R",
            help="Create and train a model R times narrower than CHECKPOINT, and sweep that one. Default: 4 or 2, "
            "unless --factor is given or there is no --data.",
        ),
    ] = None,
    proxy_steps: Annotated[
        int | None,
        _data_option(metavar="N", help="Training steps of the proxy before the sweep. Default: 10 * --steps."),
    ] = None,
    axis: options.AxisFactors = None,
    recipe: options.RecipeName = None,
    reading: Reading = AS_STORED,
    tie: options.Tie = None,
    optimizer: options.OptimizerState = "auto",
    optimizer_kind: options.OptimizerKind = None,
    optimizer_policy: options.OptimizerPolicy = "copy",
    key: options.StateKey = None,
    noise_mode: options.NoiseMode = "free",
    noise_scale: options.NoiseScale = "spectral",
    noise_on: options.NoiseOn = None,
    steps: Annotated[int, _trainer_option(metavar="N", help="Optimizer steps per trial.")] = 200,
    batch_size: Annotated[int, _trainer_option(metavar="N", help="Sequences per step.")] = 16,
    length: Annotated[int, _trainer_option(metavar="N", help="Tokens per sequence.")] = 128,
    weight_decay: Annotated[
        float | None,
        _trainer_option(
            metavar="NUMBER", help="Decoupled weight decay of matrices. Default: what the AdamW state has, or 0."
        ),
    ] = None,
    betas: Annotated[str, _trainer_option(metavar="B1,B2", help="AdamW's betas.")] = "0.9,0.95",
    eps: Annotated[float, _trainer_option(metavar="NUMBER", help="AdamW's eps.")] = 1e-8,
    clip: Annotated[
        float,
        _trainer_option(metavar="NUMBER", help="Maximum gradient norm, with every narrow unit counted once. 0: none."),
    ] = 1.0,
    schedule: Annotated[
        str, _trainer_option(metavar="constant|cosine", help="Learning rate schedule after warm-up.")
    ] = "constant",
    warmup: Annotated[int, _trainer_option(metavar="N", help="Steps of linear warm-up.")] = 0,
    device: Annotated[
        str, _trainer_option(metavar="NAME", help="Torch device. auto: the GPU if there is one.")
    ] = "auto",
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            help="Trials to run in parallel. Several runs of the same command also share the trials.",
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory of the sweep; finished trials in it are kept. Default: NAME-sweep beside the checkpoint.",
        ),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Draw loss against learning rate.")] = True,
    as_json: options.Json = False,
) -> None:
    """Find learning rate and noise on small widened models, for the large one.

    `mupscale sweep tiny --data text.txt --target 8` trains a narrower `tiny`, widens it 8 times over a grid of learning
    rates and noises, and trains each on. By muP transfer the best pair holds for every width: `mupscale hparams WIDE
    --from-sweep sweep.json`. `--factor 2,4` widens `tiny` itself, by less than the target.
    """
    from mupscale_cli.cli import sweep_view
    from mupscale_cli.sweep.run import sweep as run_sweep
    from mupscale_cli.sweep.settings import Sweep, Training

    source = find_source(checkpoint, reading, recipe=recipe, with_state=optimizer == "auto")
    state = StateOptions(optimizer, cast("Policy", optimizer_policy), key, tuple(optimizer_kind or ()))
    if weight_decay is None:
        weight_decay = 0.0 if command else _weight_decay(source, WidenOptions(factor=2, recipe=recipe, tie=tie), state)
    training = Training(
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
    axes = {name: options.whole(amount, f"--axis {name}") for name, amount in parse_axes(axis).items()}
    large = None if target is None else options.parse_whole(target, "--target")
    ratio = None if proxy is None else options.parse_whole(proxy, "--proxy")
    if ratio is None and factor is None and data is not None:
        from mupscale_cli.sweep.proxy import usual_ratio  # imports torch

        ratio = usual_ratio(source.checkpoint, recipe, tie, axes)
    chosen = _proxy(ratio, proxy_steps, 0 if command and not data else _PROXY_STEPS * steps)
    grid = _grid(factor or ([str(large or 2)] if chosen else ["2", "4"]), lr, lr_steps, noise, seeds)
    usage.refuse_idle(
        ratio=ratio,
        trains=command is None or chosen is not None,
        is_raw=data is not None and data.suffix == ".bin",
        has_one_lr="," not in lr,
        largest_noise=grid.noises[-1],
    )
    settings = Sweep(
        name=source.stem,
        checkpoint=source.checkpoint.path,
        directory=out or source.default_directory / f"{source.stem}-sweep",
        grid=grid,
        target=large,
        axes=axes,
        reading=reading,
        recipe=recipe,
        tie=tie,
        state=state,
        noise_mode=cast("Mode", noise_mode),
        noise_scale=cast("Scale", noise_scale),
        noise_on=tuple(noise_on or ()),
        training=training,
        data=data,
        data_type=data_type,
        command=command,
        proxy=chosen,
    )
    try:
        with sweep_view.progress() as events:
            outcome = run_sweep(settings, jobs=jobs, picture=picture, events=events)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; finished trials are kept in {settings.directory}: run the same command to continue"
        ) from error
    if as_json:
        output.print_document("sweep", outcome.document)
    else:
        target_options = WidenOptions(factor=settings.largest, axes=settings.axes)
        wide = output_path(source, target_options)
        sweep_view.print_outcome(outcome, settings, checkpoint, str(wide))


def _weight_decay(source: Source, widened: WidenOptions, state: StateOptions) -> float:
    """Return the weight decay of the narrow run, as far as its AdamW state has one, and say so; else 0."""
    try:
        groups = source.about_state(plan_source(source, widened), state).get("groups", ())
    except MupscaleError:  # of a state that only a proxy-less sweep needs, which then says why
        return 0.0
    decays = {
        float(group["settings"].get("weight_decay") or 0.0)
        for group in groups
        if group["optimizer"] == _OPTIMIZER and group["decoupled_weight_decay"]
    } - {0.0}  # of what is not decayed
    if len(decays) != 1:
        return 0.0
    (decay,) = decays
    output.note(f"weight decay {decay:g}, as in {source.find_state(state)}; `--weight-decay` sets another")
    return decay


def _grid(factors: list[str], lr: str, lr_steps: int, noise: str, seeds: int) -> Grid:
    from mupscale_cli.sweep.grid import learning_rates, make_grid, numbers

    texts = [part for text in factors for part in text.split(",")]
    return make_grid(
        [options.parse_whole(text, "--factor") for text in texts],
        learning_rates(lr, lr_steps),
        numbers(noise, "--noise"),
        seeds,
    )


def _proxy(ratio: int | None, steps: int | None, default_steps: int) -> Proxy | None:
    from mupscale_cli.sweep.settings import Proxy

    if ratio is None:
        return None
    if ratio < 2:
        raise SweepError(f"`--proxy {ratio}` is not at least 2")
    if steps is not None and steps < 0:
        raise SweepError(f"`--proxy-steps {steps}` is not at least 0")
    return Proxy(ratio, default_steps if steps is None else steps)
