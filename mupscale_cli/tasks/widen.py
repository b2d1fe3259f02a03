"""What `mupscale widen` does, as functions: find, plan, convert, verify, publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli._version import __version__
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.reading import INDEX, RECORD, Checkpoint, open_checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.errors import JobError, MupscaleError, OutputError, OutputExistsError
from mupscale_cli.optimizers.carrying import CarriedState, plan_carried
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan, with_noise
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record.making import METADATA_KEY, make_record, with_digests
from mupscale_cli.tasks.planning import default_output, plan_widening
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.text import bytes_text

if TYPE_CHECKING:
    from mupscale_cli.checkpoints.digests import TensorDigest
    from mupscale_cli.checkpoints.journal import Journal
    from mupscale_cli.checkpoints.staging import Staging
    from mupscale_cli.verification.options import VerifyOptions
    from mupscale_cli.verification.result import Verification

_RECORD_RESERVE = 8192  # bytes left in the header of a single file for the figures of its verification
_NAME_RESERVE = 40  # and for a number beside the name of a tensor: the size of its noise, how much of it is not finite


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
    from mupscale_cli.checkpoints.digests import tensor_digests  # these import no torch, but convert does
    from mupscale_cli.checkpoints.journal import JOURNAL, Journal, check_finished
    from mupscale_cli.checkpoints.staging import Staging, check_output, exists_already

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
    needed = plan.num_bytes + (carried.state.num_bytes if carried else 0)
    check_output(target, found.path, needed_bytes=0 if resume else needed, overwrite=overwrite)
    if found.is_file and not overwrite and (config := _beside(target, CONFIG)).exists():
        raise exists_already(config)
    record = make_record(plan, found, source.origin(target, plan.recipe), __version__)
    digests = tensor_digests(found.specs)
    write = partial(_write, _Output(plan, found, carried, record, digests, allow_nonfinite), events, ranks, processes)
    companions = found.carried_files
    taken = carried.files if carried else ()
    left = tuple(file for file in found.left_files if file not in taken)
    if not ranks.is_first:
        write(ranks.broadcast(None))
        found_out: _Outcome = ranks.broadcast(None)
        return Widened(target, plan, *found_out, left)
    resumable = Staging(target, overwrite=overwrite)
    journal = _journal(resumable, record, plan, resume=resume)
    with resumable as staging:
        if journal is None:
            journal = Journal(staging.directory, _fingerprint(record, plan), {})
        staging.keep = partial(_is_worth_keeping, plan, journal)
        for folder, num_bytes in staging.abandoned().items():
            events.note(_abandoned_text(folder, num_bytes, resume=resume))
        if journal.shards:
            events.phase("checking what is finished", 0)
            done = check_finished(journal, found.tensors, digests)
            events.note(_kept_text(len(done), len(journal.shards), len(plan.shards)))
            for name in journal.shards.keys() - done.keys():
                del journal.shards[name]
            journal.save()
        staging.clear(JOURNAL, *journal.shards)
        written = write(ranks.broadcast(_Begun(staging.directory.absolute(), journal)))
        assert written is not None
        record, plan = written, with_noise(plan, written["noise"])
        _write_companions(plan, found, companions, staging.directory)
        verification, skipped = _verify(verify, found, plan, staging.directory, events)
        record["verification"] = verification.as_record() if verification else None
        if verification is None or verification.agrees:
            journal.clear()
            _publish(staging, plan, found, target, record)
    return Widened(target, plan, *ranks.broadcast((record, verification, skipped)), left)


_Outcome = tuple[dict[str, Any], "Verification | None", "str | None"]  # what the first process tells in the end


@dataclass(frozen=True)
class _Begun:
    """What the first process tells the others: where to write, and what is there already."""

    directory: Path
    journal: Journal


@dataclass(frozen=True)
class _Output:
    """What is written, and what is known of it before."""

    plan: Plan
    source: Checkpoint
    carried: CarriedState | None
    record: dict[str, Any]
    digests: Mapping[str, TensorDigest]
    allow_nonfinite: bool

    @property
    def num_bytes(self) -> int:
        return self.plan.num_bytes + (self.carried.state.num_bytes if self.carried else 0)


def _write(
    output: _Output, events: Events, ranks: Ranks, processes: int | None, begun: _Begun
) -> dict[str, Any] | None:
    """Write weights and state, or this process's part; returns the record of all, None but for the first process."""
    from mupscale_cli.engine.processes import forked, worthwhile

    if not begun.directory.is_dir():
        raise JobError(
            f"`{begun.directory}` is not there for process {ranks.rank}",
            hint="the processes of a job need a file system that all of them share",
        )
    if not ranks.is_alone:
        return _write_part(output, begun, events, ranks, told=ranks)
    with forked(processes or worthwhile(output.num_bytes), events.advance) as forks:
        own = replace(events if forks.is_first else SILENT, advance=forks.advance)
        return _write_part(output, begun, own, forks, told=ALONE)


def _write_part(output: _Output, begun: _Begun, events: Events, ranks: Ranks, told: Ranks) -> dict[str, Any] | None:
    """Write what is one process's part.

    Args:
        output: what all of them write.
        begun: where to.
        events: whom to tell.
        ranks: the processes that share the work.
        told: those of them that tell of their own progress each; one where the first tells of all.

    Returns:
        The record of the whole; None but for the first process.
    """
    from mupscale_cli.checkpoints.journal import journal_name
    from mupscale_cli.engine.shards import convert, share_of

    plan, source, carried, digests = output.plan, output.source, output.carried, output.digests
    journal = begun.journal if ranks.is_first else replace(begun.journal, shards={}, name=journal_name(ranks.rank))
    todo = [tensor for shard in plan.shards if shard.file not in begun.journal.shards for tensor in shard.tensors]
    first, last = share_of(todo, told)
    part = "" if told.is_alone else f", part {told.rank + 1} of {told.size}"
    events.phase(f"widening{part}", last - first)
    metadata = {"format": "pt", **({METADATA_KEY: json.dumps(output.record)} if source.is_file else {})}
    converted = convert(
        plan.shards,
        source.tensors,
        begun.directory,
        metadata=metadata,
        progress=events.advance,
        sources=digests,
        reserve=_record_reserve(plan, allow_nonfinite=output.allow_nonfinite) if source.is_file else 0,
        done=begun.journal.shards,
        finished=journal.note,
        allow_nonfinite=output.allow_nonfinite,
        ranks=ranks,
    )
    state = None
    if carried is not None:
        first, last = told.share(carried.state.num_bytes)
        events.phase(f"optimizer state{part}", last - first)
        state = carried.write(begun.directory, events.advance, ranks, output.allow_nonfinite)
    if converted is None:
        return None
    return {
        **with_digests(output.record, source, digests, converted.digests),
        "noise": converted.stds,
        "nonfinite": converted.nonfinite,
        "overflowed": list(converted.overflowed),
        **({} if carried is None else {"optimizer_state": state}),
    }


def _fingerprint(record: Mapping[str, Any], plan: Plan) -> str:
    """What tells whether a run that was killed was making the same."""
    from mupscale_cli.checkpoints.journal import fingerprint

    shards = [
        [
            shard.file,
            [[spec.name, spec.dtype, list(spec.shape)] for spec in (tensor.target for tensor in shard.tensors)],
        ]
        for shard in plan.shards
    ]
    return fingerprint(record, shards)


def _journal(staging: Staging, record: Mapping[str, Any], plan: Plan, *, resume: bool) -> Journal | None:
    """The journal of the killed run that is continued; None if there is none."""
    from mupscale_cli.checkpoints.journal import read_journal

    wanted = _fingerprint(record, plan)

    def is_wanted(folder: Path) -> bool:
        found = read_journal(folder)
        if found is None:  # it was killed before it had finished anything
            shutil.rmtree(folder, ignore_errors=True)
        return found is not None and found.fingerprint == wanted

    return read_journal(staging.directory) if resume and staging.resume(is_wanted) else None


def _abandoned_text(folder: Path, num_bytes: int, *, resume: bool) -> str:
    """What is said of a folder that a killed run left."""
    why = "it was begun from another source or with other options" if resume else "`--resume` goes on with such a one"
    return (
        f"`{folder}` ({bytes_text(num_bytes)}) was left by a run that was killed; {why}; remove it if nobody needs it"
    )


def _kept_text(num_good: int, num_noted: int, num_all: int) -> str:
    """What is said of the files of a killed run that is continued."""
    changed = num_noted - num_good
    again = f"; {changed} more had changed since, and {'is' if changed == 1 else 'are'} made again" if changed else ""
    return f"{num_good} of {num_all} files were finished before and are kept{again}"


def _is_worth_keeping(plan: Plan, journal: Journal, error: BaseException) -> bool:
    """Whether to leave what is finished for `--resume`; says so in the error, where that is for people."""
    from mupscale_cli.checkpoints.journal import read_journal

    is_final = isinstance(error, MupscaleError) and not isinstance(error, (OutputError, JobError))
    if is_final or isinstance(error, OutputExistsError) or len(plan.shards) == 1:
        return False
    written = read_journal(journal.directory)  # by all the processes that work there
    if written is None or not written.shards:
        return False
    count = f"{len(written.shards)} of {len(plan.shards)} files are finished and kept in `{journal.directory}`"
    what = f"{count}; the same command with `--resume` goes on from there"
    if isinstance(error, MupscaleError):
        error.hint = what if isinstance(error, JobError) else f"free some space; {what}"
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        error.kept = what  # type: ignore[union-attr]  # for the command line to show
    return True


def _record_reserve(plan: Plan, *, allow_nonfinite: bool) -> int:
    """Bytes to leave in the header of a single file for what is known only when it is written."""
    noisy = [tensor for tensor in plan.tensors if tensor.noise is not None]
    named = [*noisy, *(2 * plan.tensors if allow_nonfinite else ())]
    return _RECORD_RESERVE + sum(len(tensor.target.name) + _NAME_RESERVE for tensor in named)


def _write_companions(plan: Plan, source: Checkpoint, companions: tuple[Path, ...], directory: Path) -> None:
    """The config, the index and the files that a tokenizer or generation needs."""
    from mupscale_cli.checkpoints.staging import copy_file, write_json

    if plan.config is not None:
        write_json(directory / CONFIG, plan.config)
    if source.is_file:
        return
    if len(plan.shards) > 1:
        weight_map = {tensor.target.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        write_json(directory / INDEX, {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map})
    for file in companions:
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


def _publish(staging: Any, plan: Plan, source: Checkpoint, target: Path, record: dict[str, Any]) -> None:
    from mupscale_cli.checkpoints.header import replace_metadata
    from mupscale_cli.checkpoints.staging import LOCK, write_json

    if not source.is_file:
        write_json(staging.directory / RECORD, record)
        staging.publish_directory()
        return
    (shard,) = plan.shards
    replace_metadata(staging.directory / shard.file, {"format": "pt", METADATA_KEY: json.dumps(record)})
    names = (file.name for file in staging.directory.iterdir() if file.name not in (shard.file, LOCK))
    staging.publish_file(shard.file, {name: _beside(target, name) for name in names})


def _beside(target: Path, name: str) -> Path:
    """What a file beside a single output is called: `NAME.config.json`, `NAME.optimizer.pt`."""
    return target.with_name(f"{target.stem}.{name}")
