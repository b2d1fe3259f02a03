"""What `mupscale widen` does, as functions: find, plan, convert, verify, publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mupscale_cli._version import __version__
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import tensor_digests
from mupscale_cli.checkpoints.formats.safetensors import INDEX
from mupscale_cli.checkpoints.header import replace_metadata
from mupscale_cli.checkpoints.journal import Journal
from mupscale_cli.checkpoints.reading import RECORD, Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.staging import LOCK, Staging, check_output, copy_file, exists_already, write_json
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.optimizers.carrying import plan_carried
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan, with_noise
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record.making import METADATA_KEY, make_record
from mupscale_cli.tasks.planning import default_output, plan_widening
from mupscale_cli.tasks.resume import resumable
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.writing import Output, write

if TYPE_CHECKING:
    from mupscale_cli.verification.options import VerifyOptions
    from mupscale_cli.verification.result import Verification


@dataclass(frozen=True)
class Widened:
    """The result of `widen`.

    Attributes:
        output: the file or directory that was written.
        plan: what was done.
        record: the content of its mupscale.json.
        verification: how equivalence was checked, None where it was not.
        skipped: why it was not verified, None where it was.
        left: files of the source that were left behind.
    """

    output: Path
    plan: Plan
    record: dict[str, Any]
    verification: Verification | None
    skipped: str | None
    left: tuple[Path, ...] = ()


def widen(
    checkpoint: str | Path | Source,
    output: str | Path | None = None,
    factor: int | None = None,
    axes: Mapping[str, int] | None = None,
    *,
    recipe: str | Path | None = None,
    max_shard_size: int = DEFAULT_SHARD_BYTES,
    tie: str | None = None,
    method: str | Method = MUPSCALE,
    perturbation: Perturbation | None = None,
    overwrite: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    verify: VerifyOptions | bool = True,
    state: StateOptions = StateOptions(),  # noqa: B008 (frozen)
    plan: Plan | None = None,
    events: Events = SILENT,
    ranks: Ranks = ALONE,
    processes: int | None = 1,
) -> Widened:
    """Widen a checkpoint: weights, config and everything else that loading it needs.

    The output appears under its name only when it is complete, flushed and, unless that was
    declined or is not possible, verified. A model that turns out different is not published.

    Args:
        checkpoint: a safetensors file, a model directory, or a Hub id. A file gives a file (with
            `NAME.config.json` beside it where there is a config), a directory gives a directory.
        output: where to; `NAME-x4` beside the input if not given.
        factor: target width over source width, for every axis that the recipe widens.
        axes: factors of single axes, which override or add to `factor`.
        recipe: name or file of the recipe; found by the checkpoint if not given.
        max_shard_size: largest output file of a directory, in bytes.
        tie: for a readout that shares the embedding, where its factor goes: `fold`, `config` or `untie`.
        method: how it grows: a name of `methods.METHODS`, or what `make_method` made with options.
        perturbation: noise that tells the copies apart; the method's own if not given.
        overwrite: replace an existing output that mupscale wrote.
        resume: go on where a run that was killed stopped: its finished shards are checked, and not made again.
        allow_nonfinite: copy NaNs and infinities, and count them; else they are refused.
        verify: whether, or with which options, to check that both models agree.
        state: what to do with the optimizer's state; by default it is widened if it lies beside the checkpoint.
        plan: the plan, if it was made before.
        events: for progress.
        ranks: the processes that share the work, each of which calls this with the same arguments; all of them
            return the same. See `ranks.joined`.
        processes: how many processes of this machine write the output: this one, and others that it forks; None for
            as many as are worth it. Fork only where no other thread of yours is at work.

    Raises:
        MupscaleError: something the user can fix; nothing was left under the output's name.
    """
    source = checkpoint if isinstance(checkpoint, Source) else find_source(checkpoint, headers_only=True)
    plan = plan or plan_widening(
        source,
        factor,
        axes,
        recipe=recipe,
        max_shard_size=max_shard_size,
        tie=tie,
        method=method,
        perturbation=perturbation,
    )
    target = Path(output) if output is not None else default_output(source, factor, axes or {})
    if not source.is_here:  # what can be refused by the headers is refused before anything is downloaded
        check_output(target, source.checkpoint.path, needed_bytes=plan.num_bytes, overwrite=overwrite)
    source = source.fetched(state)
    found = source.checkpoint
    carried = plan_carried(state, found, plan, max_shard_size)
    record = make_record(plan, found, source.origin(target, plan.recipe), __version__)
    planned = Output(plan, found, carried, found.carried_files, record, tensor_digests(found.specs), allow_nonfinite)
    check_output(target, found.path, needed_bytes=0 if resume else planned.num_bytes, overwrite=overwrite)
    if found.is_file and not overwrite and (config := beside(target, CONFIG)).exists():
        raise exists_already(config)
    if ranks.is_first:
        staged = resumable(planned, target, overwrite=overwrite, resume=resume, events=events)
        outcome = _lead(planned, staged, verify, events, ranks, processes)
    else:
        outcome = _follow(planned, events, ranks, processes)
    return Widened(target, with_noise(plan, outcome.record["noise"]), *outcome, planned.left)


class _Outcome(NamedTuple):
    """What the first process tells the others in the end."""

    record: dict[str, Any]
    verification: Verification | None
    skipped: str | None


def _lead(
    output: Output,
    staged: AbstractContextManager[tuple[Staging, Journal]],
    verify: VerifyOptions | bool,
    events: Events,
    ranks: Ranks,
    processes: int | None,
) -> _Outcome:
    """Do what the first process does: begin the output, write its part, verify the whole, publish it."""
    with staged as (staging, journal):
        record = write(output, ranks.broadcast(journal), events, ranks, processes)
        assert record is not None
        plan = with_noise(output.plan, record["noise"])
        _write_companions(output, staging.directory)
        verification, skipped = _verify(verify, output.source, plan, staging.directory, events)
        record["verification"] = verification.as_record() if verification else None
        if verification is None or verification.agrees:
            journal.clear()
            _publish(staging, plan, output.source, record)
    return ranks.broadcast(_Outcome(record, verification, skipped))


def _follow(output: Output, events: Events, ranks: Ranks, processes: int | None) -> _Outcome:
    """Do what every other process does: write its part where the first one says, and hear how it ended."""
    write(output, ranks.broadcast(None), events, ranks, processes)
    return ranks.broadcast(None)


def _write_companions(output: Output, directory: Path) -> None:
    """Write the config, the index and the files that a tokenizer or generation needs."""
    plan = output.plan
    if plan.config is not None:
        write_json(directory / CONFIG, plan.config)
    if output.source.is_file:
        return
    if len(plan.shards) > 1:
        weight_map = {tensor.target.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        write_json(directory / INDEX, {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map})
    for file in output.companions:
        copy_file(file, directory)


def _verify(
    verify: VerifyOptions | bool, source: Checkpoint, plan: Plan, directory: Path, events: Events
) -> tuple[Verification | None, str | None]:
    """Verify the staged output, or say why that is not possible."""
    if verify is False:
        return None, "it was not asked for (--no-verify)"
    from mupscale_cli.verification.comparing import verify_checkpoints
    from mupscale_cli.verification.options import VerifyOptions
    from mupscale_cli.verification.result import CannotVerify

    events.phase("verifying", 0)
    staged = open_checkpoint(directory)
    try:
        # What is written meanwhile goes when the staged folder goes, however this ends.
        return verify_checkpoints(source, staged, plan, VerifyOptions() if verify is True else verify, directory), None
    except CannotVerify as reason:
        return None, str(reason)


def _publish(staging: Staging, plan: Plan, source: Checkpoint, record: dict[str, Any]) -> None:
    """Give the staged output its final name, with its record."""
    if not source.is_file:
        write_json(staging.directory / RECORD, record)
        staging.publish_directory()
        return
    (shard,) = plan.shards
    replace_metadata(staging.directory / shard.file, {"format": "pt", METADATA_KEY: json.dumps(record)})
    names = (file.name for file in staging.directory.iterdir() if file.name not in (shard.file, LOCK))
    staging.publish_file(shard.file, {name: beside(staging.output, name) for name in names})


def beside(target: Path, name: str) -> Path:
    """What a file beside a single output is called: `NAME.config.json`, `NAME.optimizer.pt`."""
    return target.with_name(f"{target.stem}.{name}")
