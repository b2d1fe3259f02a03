"""`mupscale widen`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mupscale_cli.checkpoints.hub.publishing import require_login
from mupscale_cli.checkpoints.target import check_output
from mupscale_cli.cli import explain, files, options, output, render, summary, usage, verification_view
from mupscale_cli.cli import push as push_command
from mupscale_cli.engine.memory import WIDENING_BYTES, free_memory
from mupscale_cli.engine.ranks import ALONE, join_ranks, launched_ranks
from mupscale_cli.errors import MupscaleError, PlanError
from mupscale_cli.optimizers.fates import why_no_state
from mupscale_cli.optimizers.rules.table import kinds_text
from mupscale_cli.tasks import widen as task
from mupscale_cli.tasks.adapters import PlannedAdapter, plan_adapters, with_adapters
from mupscale_cli.tasks.duration import widening_duration
from mupscale_cli.tasks.options import WidenOptions, parse_axes, parse_count, parse_factor, parse_size
from mupscale_cli.tasks.planning import comparison_memory, output_path, plan_shapes, require_class
from mupscale_cli.tasks.push import PushOptions, prepare_push, push_target
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.space import Disk, disks, narrow_state_bytes, wide_state_bytes
from mupscale_cli.text import listed, time_text

if TYPE_CHECKING:
    from mupscale_cli.checkpoints.hub.ids import HubId
    from mupscale_cli.plan import Plan
    from mupscale_cli.tasks.widen import Widened


@options.with_reading
def widen(
    checkpoint: options.Checkpoint,
    factor: options.Factor = None,
    axis: options.AxisFactors = None,
    to: options.Target = None,
    layers: options.Layers = None,
    layers_at: options.LayersAt = None,
    params: options.Parameters = None,
    recipe: options.RecipeName = None,
    infer: options.Infer = True,
    reading: Reading = AS_STORED,
    tie: options.Tie = None,
    method: options.MethodName = "mupscale",
    noise: options.NoiseSize = None,
    noise_mode: options.NoiseMode = None,
    noise_scale: options.NoiseScale = None,
    noise_on: options.NoiseOn = None,
    seed: options.Seed = 0,
    fresh: options.Fresh = None,
    spread: options.Spread = None,
    shrink: options.Shrink = None,
    snr: options.Snr = None,
    adapter: options.Adapters = None,
    optimizer: options.OptimizerState = "auto",
    optimizer_kind: options.OptimizerKind = None,
    optimizer_policy: options.OptimizerPolicy = "copy",
    key: options.StateKey = None,
    out: Annotated[
        Path | None,
        options.output_option(
            "--output", "-o", metavar="PATH", help="Output path. Default: NAME-xK next to the input."
        ),
    ] = None,
    dry_run: Annotated[bool, options.output_option("--dry-run", help="Show the plan. Writes nothing.")] = False,
    tensor: explain.TensorName = None,
    max_shard_size: Annotated[
        str, options.output_option(metavar="SIZE", help="Largest size of a weight file.")
    ] = "5GB",
    clean_names: options.CleanNames = False,
    overwrite: Annotated[
        bool, options.output_option("--overwrite", help="Replace an output that mupscale wrote.")
    ] = False,
    resume: Annotated[
        bool,
        options.output_option(
            "--resume", help="Continue a run that was killed. Checks its finished files and keeps them."
        ),
    ] = False,
    allow_large_factor: Annotated[
        bool,
        options.size_option("--allow-large-factor", help="Accept factors above 16, which are mostly meant as sizes."),
    ] = False,
    allow_nonfinite: Annotated[
        bool,
        options.reading_option(
            "--allow-nonfinite", help="Copy NaNs and infinities and report them, instead of failing."
        ),
    ] = False,
    processes: Annotated[
        int | None,
        options.output_option(
            min=1, metavar="N", help="Number of processes that write. Default: one per core, up to 4."
        ),
    ] = None,
    verify: Annotated[
        bool, options.verification_option(help="Verify that both models agree before the output appears.")
    ] = True,
    dtype: options.VerifyDtype = "auto",
    device: options.VerifyDevice = "auto",
    model: options.VerifyModel = None,
    push_to_hub: Annotated[
        str | None,
        options.publishing_option(
            "--push-to-hub", metavar="ORG/NAME", help="Then publish the output as `mupscale push` does."
        ),
    ] = None,
    private: options.Private = False,
    push_revision: Annotated[
        str | None,
        options.publishing_option("--push-revision", metavar="BRANCH", help="Branch to publish to. Default: main."),
    ] = None,
    create_pr: options.CreatePr = False,
    commit_message: options.CommitMessage = None,
    with_optimizer: options.WithOptimizer = False,
    as_json: options.Json = False,
) -> None:
    """Widen a checkpoint: weights, optimizer state, config, and everything that loading it needs.

    `mupscale widen tiny --factor 4` writes `tiny-x4`; `--axis ffn=8` widens one axis differently.
    """
    if dry_run and not launched_ranks().is_first:
        return  # the first process shows the plan
    with nullcontext(ALONE) if dry_run else join_ranks() as ranks:
        with ranks.fail_together():
            chosen = WidenOptions(
                out,
                None if factor is None else parse_factor(factor),
                parse_axes(axis),
                to=to,
                layers=layers,
                layers_at=layers_at,
                params=None if params is None else parse_count(params),
                recipe=recipe,
                infer=infer,
                tie=tie,
                clean_names=clean_names,
                method=method,
                noise=noise,
                noise_mode=noise_mode,
                noise_scale=noise_scale,
                noise_on=tuple(noise_on or ()),
                seed=seed,
                fresh=fresh,
                spread=spread,
                shrink=shrink,
                snr=snr,
                adapter=tuple(adapter or ()),
                **vars(reading),
                optimizer=optimizer,
                optimizer_kind=tuple(optimizer_kind or ()),
                optimizer_policy=optimizer_policy,
                key=key,
                max_shard_size=parse_size(max_shard_size),
                overwrite=overwrite,
                allow_large_factor=allow_large_factor,
                allow_nonfinite=allow_nonfinite,
                verify=verify,
                dtype=dtype,
                device=device,
                model=model,
            )
            if processes is not None and not ranks.is_alone:
                raise PlanError("torchrun sets the number of processes", hint="omit `--processes`")
            pushing = PushOptions(private, push_revision, create_pr, commit_message, with_optimizer)
            repository = None if push_to_hub is None else push_target(push_to_hub, pushing)
            source = find_source(checkpoint, chosen.reading, recipe=recipe, headers_only=True)
            plan, *others = plan_shapes(source, chosen)
            if ranks.is_first:
                output.note_found(source.found, source.assumed)
            target = output_path(source, chosen)
            trained = source.checkpoint.trained  # its container may have the state, and stays one
            usage.refuse_idle(
                state=source.find_state(chosen.state) or trained,
                is_sharded=not source.checkpoint.is_file and trained is None,
            )
            if dry_run:
                shapes = () if chosen.params is None else (plan, *others)
                adapters = plan_adapters(source.checkpoint, plan, chosen.adapter, str(target))
                _show_plan(source, plan, shapes, adapters, tensor, chosen, target, repository, as_json=as_json)
                return
            if repository is not None:  # fail now rather than after the work
                require_login(repository)
            _note_shape(plan, chosen, is_first=ranks.is_first)
            began = time.monotonic()
            source = _fetch(source, chosen, plan, target)
        with output.progress(quiet=not ranks.is_first) as events:
            result = task.widen(
                source,
                **vars(chosen),
                resume=resume,
                plan=plan,
                events=events,
                ranks=ranks,
                processes=processes,
            )
    failed = result.verification is not None and not result.verification.agrees
    if not ranks.is_first:  # the first process reports for all
        raise typer.Exit(1 if failed else 0)
    if not as_json:
        _report(result, time.monotonic() - began, chosen, source.assumed, is_pushed=push_to_hub is not None)
        if output.is_quiet() and not failed:
            output.stdout().print(result.output, markup=False, soft_wrap=True)
    pushed = None
    if push_to_hub is not None and not failed:
        pushed = _push(result.output, push_to_hub, pushing, quiet=as_json)
    if as_json:
        output.print_document(
            "widen", {"output": None if failed else str(target), **result.record, "pushed": None, **(pushed or {})}
        )
    if failed:
        written = "nothing was written; `--no-verify` skips verification and writes the output"
        output.note(written if result.is_new else f"{result.output} exists and is left as it is")
        raise typer.Exit(1)


def _fetch(source: Source, chosen: WidenOptions, plan: Plan, target: Path) -> Source:
    """Download missing files of the source, before our progress bar starts: the Hub's client shows its own."""
    if missing := sum(source.downloads(chosen.state).values()):
        check_output(target, source.checkpoint.path, needed_bytes=plan.num_bytes, overwrite=chosen.overwrite)
        require_class(source, plan, chosen)
        output.note(f"downloading {source.hub} ({output.bytes_text(missing)})")
    return source.fetched(chosen.state)


def _note_shape(plan: Plan, chosen: WidenOptions, *, is_first: bool) -> None:
    """Say which shape was chosen if only the number of parameters was given."""
    if chosen.params is not None and is_first:
        output.note(f"`--params` chooses {render.shape_text(plan)}; `--dry-run` lists others")


def _show_plan(
    source: Source,
    plan: Plan,
    shapes: Sequence[Plan],
    adapters: Sequence[PlannedAdapter],
    tensor: str | None,
    chosen: WidenOptions,
    target: Path,
    repository: HubId | None,
    *,
    as_json: bool,
) -> None:
    """Print the proposed shapes, if any, and the plan of the first; or explain one tensor of it."""
    if tensor is not None:
        explain.show_tensor(plan, tensor, as_json=as_json)
        return
    require_class(source, plan, chosen)
    state = chosen.state
    planned = with_adapters(source.plan_files(plan, state), source.checkpoint, adapters)
    kinds = source.optimizer_kinds(plan, state)
    state_bytes = (narrow_state_bytes(source, state, {}), wide_state_bytes(source, plan, state, {}))
    downloads = source.downloads(state)
    needs = tuple(disks([(target, plan.num_bytes + state_bytes[1]), *downloads.items()]))
    duration = widening_duration(plan, state_bytes, verify=chosen.verify)
    memory = max(WIDENING_BYTES, round(comparison_memory(plan, chosen.model)) if chosen.verify else 0)
    if as_json:
        document = {**render.plan_document(plan, str(target)), "proposals": render.shapes_document(shapes)}
        document["fates"] = files.files_document(planned)
        document["optimizer_kinds"] = list(kinds)
        document["disks"] = [disk.as_record() for disk in needs]
        document["memory"] = {"needed": memory, "free": free_memory()}
        document["seconds"] = duration.as_record()
        output.print_document("plan", document)
        _require_room(needs)
        return
    console = output.stdout()
    render.print_shapes(console, shapes)
    render.print_plan(console, plan, str(target))
    render.print_guidance(console, plan)
    console.print()
    files.print_plan(console, planned)
    found = source.find_state(state) or why_no_state(planned, state.optimizer)
    of_kind = f", {kinds_text(kinds)}" if kinds else ""
    console.print(f"optimizer state: {found}{of_kind}", markup=False, soft_wrap=True)
    free = free_memory()
    available = "" if free is None else f", {output.bytes_text(free)} free"
    what = "running both models in float64" if chosen.verify else "writing"
    console.print(f"memory: about {output.bytes_text(memory)} for {what}{available}", markup=False)
    parts = ", ".join(f"{time_text(seconds)} {what}" for what, seconds in duration.parts.items())
    console.print(
        f"time: about {time_text(sum(duration.parts.values()))} on a fast disk ({parts}), without downloads",
        markup=False,
        soft_wrap=True,
    )
    for disk in needs:
        shortage = "" if disk.has_room else ": NOT enough"
        amounts = f"{output.bytes_text(disk.needed)} needed, {output.bytes_text(disk.free)} free"
        console.print(f"disk: {amounts} at {disk.place}{shortage}", markup=False, soft_wrap=True)
    if missing := sum(downloads.values()):
        console.print(f"download: {output.bytes_text(missing)}", markup=False)
    if repository is not None:
        console.print(f"publish as: {repository}", markup=False)
    _require_room(needs)


def _require_room(needs: Sequence[Disk]) -> None:
    if not all(disk.has_room for disk in needs):
        raise typer.Exit(2)


def _push(wide: Path, target: str, chosen: PushOptions, *, quiet: bool) -> dict[str, Any]:
    """Publish the output; if this fails, the output stays."""
    retry_command = push_command.command_line(str(wide), target, chosen)
    try:
        prepared = prepare_push(wide, target, chosen)
        push_command.print_warnings(prepared)
        published = push_command.send(prepared, retry_command)
    except MupscaleError as error:
        hint = f"{wide} is written; to publish it, run `{retry_command}`"
        error.hint = hint if error.hint is None or retry_command in error.hint else f"{error.hint}; {hint}"
        raise
    if not quiet:
        push_command.print_published(published)
    return {"pushed": {"repo": prepared.repository.id.repo, "url": published.url, "commit": published.commit}}


def _report_complete(result: Widened) -> None:
    """Say that the output exists and is complete, and what its verification found if it had none."""
    console = output.report()
    if result.verification is not None:
        verification_view.print_function(console, result.verification)
    console.print(
        f"{result.output} is complete, from the same input with the same options; nothing was written",
        markup=False,
        soft_wrap=True,
    )
    if result.skipped is not None:
        output.note(f"it is not verified: {result.skipped}")


def _report(
    result: Widened, seconds: float, chosen: WidenOptions, assumed: Mapping[str, Any], *, is_pushed: bool
) -> None:
    """Print the axes, the verification, notes, the summary and the next commands."""
    if not result.is_new:
        _report_complete(result)
        return
    console = output.report()
    render.print_goal(console, result.plan)
    console.print(render.axes_table(result.plan))
    console.print()
    if result.verification is not None:
        verification_view.print_function(console, result.verification)
        if advice := render.untying_advice(result.plan):
            output.note(advice)
        if not result.verification.agrees:
            return
        console.print()
    if (state := result.record["optimizer_state"]) and state.get("copied"):
        where = "" if state["file"] is None else f" from {state['file']}"
        output.note(f"copied unchanged{where}: {listed(state['copied'], 12)}")
    _note_nonfinite(result.record)
    growth = render.growth_text(result.plan.method, result.plan.perturbation)
    summary.print_summary(console, result, seconds, growth, chosen.optimizer, assumed)
    summary.print_next(console, result, chosen.model, chosen.optimizer, is_pushed=is_pushed)


def _note_nonfinite(record: dict[str, Any]) -> None:
    """Report NaNs and infinities that were copied or produced, by tensor."""
    state = record["optimizer_state"] or {}
    for place, counts in (("the source", record["nonfinite"]), ("the optimizer state", state.get("nonfinite"))):
        if counts:
            named = ", ".join(f"{name} ({count})" for name, count in counts.items())
            output.note(f"NaNs or infinities of {place} were copied unchanged: {named}")
    if record["overflowed"]:
        output.note(f"scaling overflowed to infinity in {', '.join(record['overflowed'])}")
