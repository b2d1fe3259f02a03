"""What `mupscale widen` does, as functions: find, plan, convert, verify, publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mupscale_cli._version import __version__
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.formats.safetensors import INDEX
from mupscale_cli.checkpoints.header import METADATA_KEY, replace_metadata
from mupscale_cli.checkpoints.reading import RECORD, Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.staging import LOCK, Staging, check_output, copy_file, output_exists, write_json
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.optimizers.carrying import plan_carried_state
from mupscale_cli.plan import Plan, with_noise
from mupscale_cli.record.changes import identities, require_unchanged, source_files
from mupscale_cli.record.making import hash_source_files, make_record
from mupscale_cli.tasks.options import WidenOptions, called_with
from mupscale_cli.tasks.planning import output_path, plan_source
from mupscale_cli.tasks.resume import resumable
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.writing import Output, write

if TYPE_CHECKING:
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
        left_files: files of the source that were left behind.
    """

    output: Path
    plan: Plan
    record: dict[str, Any]
    verification: Verification | None
    skipped: str | None
    left_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class WidenCall(WidenOptions):
    """What a call of `widen` may say: what to make, and how to go about it.

    Attributes:
        resume: continue where a run that was killed stopped: its finished shards are checked, and not made again.
        plan: the plan, if it was made before.
        events: for progress.
        ranks: the processes that share the work, each of which calls this with the same arguments; all of them
            return the same. See `ranks.joined`.
        processes: how many processes of this machine write the output: this one, and others that it forks; None for
            as many as are worth it. Fork only where no other thread of yours is at work.
    """

    _: KW_ONLY
    resume: bool = False
    plan: Plan | None = None
    events: Events = SILENT
    ranks: Ranks = ALONE
    processes: int | None = 1


@called_with(WidenCall)
def widen(checkpoint: str | Path | Source, call: WidenCall) -> Widened:
    """Widen a checkpoint: weights, config and everything else that loading it needs.

    The output appears under its name only when it is complete, flushed and, unless that was
    declined or is not possible, verified. A model that turns out different is not published.

    Args:
        checkpoint: a safetensors file, a model directory, or a Hub id. A file gives a file (with
            `NAME.config.json` beside it where there is a config), a directory gives a directory.
        call: the fields of `WidenOptions` and `WidenCall`, each an argument.

    Raises:
        MupscaleError: something the user can fix; nothing was left under the output's name.

    Example:
        >>> widen("tiny", factor=4, noise=0.1).output  # doctest: +SKIP
        PosixPath('tiny-x4')
    """
    source = find_source(checkpoint, headers_only=True)
    plan = call.plan or plan_source(source, call)
    target = output_path(source, call)
    if not source.is_here:  # what can be refused by the headers is refused before anything is downloaded
        check_output(target, source.checkpoint.path, needed_bytes=plan.num_bytes, overwrite=call.overwrite)
    source = source.fetched(call.state)
    output = _planned(source.checkpoint, plan, call)
    check_output(
        target,
        output.source.path,
        needed_bytes=0 if call.resume else output.num_bytes,
        overwrite=call.overwrite,
    )
    if output.source.is_file and not call.overwrite and (config := beside(target, CONFIG)).exists():
        raise output_exists(config)
    before = identities(output.source)
    files = call.ranks.broadcast(_hashed(source, call.events) if call.ranks.is_first else None)
    output = replace(output, record=make_record(plan, files, source.origin(target, plan.recipe), __version__))
    outcome = _lead(output, target, call, before) if call.ranks.is_first else _follow(output, call)
    return Widened(target, with_noise(plan, outcome.record["noise"]), *outcome, output.left_files)


def _planned(source: Checkpoint, plan: Plan, options: WidenOptions) -> Output:
    """Gather what is to be written."""
    carried = plan_carried_state(options.state, source, plan, options.max_shard_size)
    return Output(plan, source, carried, source.carried_files, options.allow_nonfinite)


def _hashed(source: Source, events: Events) -> dict[str, dict[str, Any]]:
    """Hash the files that the output is made from."""
    found = source.checkpoint
    events.phase("hashing the source", sum(file.stat().st_size for file in source_files(found)))
    return hash_source_files(found, events.advance, is_remote=source.remote is not None)


class _Outcome(NamedTuple):
    """What the first process tells the others in the end."""

    record: dict[str, Any]
    verification: Verification | None
    skipped: str | None


def _lead(output: Output, target: Path, call: WidenCall, before: Mapping[str, tuple[int, ...]]) -> _Outcome:
    """Do what the first process does: begin the output, write its part, verify the whole, publish it."""
    begun = resumable(output, target, overwrite=call.overwrite, resume=call.resume, events=call.events)
    with begun as (staging, journal):
        record = write(output, call.ranks.broadcast(journal), call.events, call.ranks, call.processes)
        assert record is not None
        require_unchanged(output.source, before)
        plan = with_noise(output.plan, record["noise"])
        _write_companions(output, staging.directory)
        verification, skipped = _verify(output.source, plan, staging.directory, call)
        record["verification"] = verification.as_record() if verification else None
        if verification is None or verification.agrees:
            journal.clear()
            _publish(staging, plan, output.source, record)
    return call.ranks.broadcast(_Outcome(record, verification, skipped))


def _follow(output: Output, call: WidenCall) -> _Outcome:
    """Do what every other process does: write its part where the first one says, and hear how it ended."""
    write(output, call.ranks.broadcast(None), call.events, call.ranks, call.processes)
    return call.ranks.broadcast(None)


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


def _verify(source: Checkpoint, plan: Plan, directory: Path, call: WidenCall) -> tuple[Verification | None, str | None]:
    """Verify the staged output, or say why that is not possible."""
    if not call.verify:
        return None, "it was not asked for (--no-verify)"
    from mupscale_cli.verification.comparing import verify_checkpoints  # which imports torch
    from mupscale_cli.verification.result import CannotVerify

    call.events.phase("verifying", 0)
    staged = open_checkpoint(directory)
    try:
        # What is written meanwhile goes when the staged folder goes, however this ends.
        return verify_checkpoints(source, staged, plan, call.verification, directory), None
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
