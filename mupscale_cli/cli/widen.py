"""`mupscale widen`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mupscale_cli import widening
from mupscale_cli.cli import options, output, render

if TYPE_CHECKING:
    from mupscale_cli.verification import VerifyOptions
    from mupscale_cli.widening import Widened


def widen(
    checkpoint: options.Checkpoint,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; NAME-x4 beside the input if not given.")
    ] = None,
    factor: options.Factor = None,
    axis: options.AxisFactors = None,
    recipe: options.RecipeName = None,
    tie: options.Tie = None,
    method: options.MethodName = "mupscale",
    noise: options.NoiseSize = None,
    noise_mode: options.NoiseMode = "free",
    noise_scale: options.NoiseScale = "spectral",
    seed: options.Seed = 0,
    shrink: options.Shrink = None,
    snr: options.Snr = None,
    optimizer: options.OptimizerState = "auto",
    optimizer_policy: options.OptimizerPolicy = "copy",
    key: options.StateKey = None,
    allow_pickle: options.AllowPickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of a directory.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that mupscale wrote.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run stopped; what it finished is checked.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Check at the end that both models agree.")] = True,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    as_json: options.Json = False,
) -> None:
    """Widen a checkpoint: weights, optimizer state, config, and everything that loading it needs.

    `mupscale widen tiny --factor 4` writes `tiny-x4`; `--axis ffn=8` widens one axis differently.
    """
    number, axes = options.parse_factor(factor), options.parse_axes(axis)
    made, perturbation = options.growth(method, shrink, snr, noise, noise_mode, noise_scale, seed)
    source = widening.find_source(checkpoint)
    plan = widening.plan_widening(
        source, number, axes, recipe=recipe, max_shard_size=options.parse_size(max_shard_size), tie=tie,
        method=made, perturbation=perturbation,
    )  # fmt: skip
    state = options.state_options(optimizer, optimizer_policy, key, allow_pickle)
    target = out or widening.default_output(source, number, axes)
    if dry_run:
        if as_json:
            output.print_json(render.plan_document(plan, str(target)))
        else:
            render.print_plan(output.stdout(), plan, str(target))
            render.print_guidance(output.stdout(), plan)
            path = state.find(source.checkpoint)
            output.stdout().print(f"optimizer state: {path or 'none found'}", markup=False, soft_wrap=True)
        return
    chosen: VerifyOptions | bool = False
    if verify:
        chosen = options.verify_options(dtype, device, model)
    try:
        with output.progress() as events:
            result = widening.widen(
                source, target, number, axes, overwrite=overwrite, resume=resume, verify=chosen, state=state, plan=plan,
                events=events,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit) as stop:
        if kept := getattr(stop, "kept", None):
            output.note(f"stopped; {kept}")
        raise
    failed = result.verification is not None and not result.verification.agrees
    if as_json:
        output.print_json({"schema_version": 1, "output": None if failed else str(target), **result.record})
    else:
        _report(result)
    if failed:
        output.note("nothing was written; `--no-verify` writes it all the same")
        raise typer.Exit(1)


def _report(result: Widened) -> None:
    console = output.stdout()
    console.print(render.axes_table(result.plan))
    before, after = result.plan.num_parameters
    size = output.bytes_text(result.plan.num_bytes)
    console.print(f"\n{output.count_text(before)} -> {output.count_text(after)} parameters, {size}", markup=False)
    if growth := render.growth_text(result.plan):
        console.print(growth, markup=False)
    console.print()
    if result.verification is not None:
        render.print_verification(console, result.verification)
        if advice := render.untying_advice(result.plan):
            output.note(advice)
        if not result.verification.agrees:
            return
    else:
        console.print(f"not verified: {result.skipped}", markup=False, soft_wrap=True)
    if state := result.record["optimizer_state"]:
        console.print(f"optimizer state widened: {state['file']} ({state['policy']})", markup=False)
        if state.get("copied"):
            output.note(f"copied from {state['file']} as they are: {', '.join(state['copied'])}")
    if result.left:
        names = ", ".join(file.name for file in result.left)
        output.note(f"left behind, as it describes the narrow model: {names}")
    console.print(f"wrote {result.output}", markup=False, soft_wrap=True)
