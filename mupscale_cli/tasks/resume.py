"""Stage an output such that a later run can continue it if this one is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mupscale_cli.checkpoints.journal import JOURNAL, Journal, fingerprint, intact_shards, read_journal
from mupscale_cli.checkpoints.staging import Staging
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import JobError, MupscaleError, OutputError, OutputExistsError
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.writing import Output
from mupscale_cli.text import bytes_text


@contextmanager
def resumable(
    output: Output, target: Path, options: WidenOptions, *, resume: bool, events: Events
) -> Iterator[tuple[Staging, Journal]]:
    """Stage an output in a folder that outlives a killed process once it contains a finished shard.

    Args:
        output: the output to write.
        target: its final path.
        options: how it is widened; `--resume` continues only a run with the same ones.
        resume: continue a killed run that wrote the same output, after checking its finished shards.
        events: receive the progress, and notes about unfinished outputs of other runs.

    Yields:
        The staged folder, and the journal of its finished shards.

    Raises:
        OutputError: another run is writing this output.
    """
    staging = Staging(target, overwrite=options.overwrite)
    wanted = _fingerprint(output, options)
    previous = _find_previous(staging, wanted) if resume else None
    with staging:
        staging.keep = partial(_is_worth_keeping, staging.directory, len(output.plan.shards))
        for folder, num_bytes in staging.abandoned().items():
            events.note(_abandoned_text(folder, num_bytes, resume=resume))
        directory = staging.directory.absolute()  # other processes may have another working directory
        journal = Journal(directory, wanted, {} if previous is None else previous.shards)
        if journal.shards:
            _drop_changed(journal, output, events)
        staging.clear(JOURNAL, *journal.shards)
        yield staging, journal


def _fingerprint(output: Output, options: WidenOptions) -> str:
    """Hash everything that determines the bytes of an output, to recognize runs that write and refuse the same."""
    shards = [
        [
            shard.file,
            [[spec.name, spec.dtype, list(spec.shape)] for spec in (tensor.target for tensor in shard.tensors)],
        ]
        for shard in output.plan.shards
    ]
    return fingerprint(output.record, shards, options.decisive)


def _find_previous(staging: Staging, wanted: str) -> Journal | None:
    """Find the journal of the killed run to continue, and move the staging to its folder."""

    def is_wanted(folder: Path) -> bool:
        journal = read_journal(folder)
        if journal is None:  # the run was killed before it finished a shard
            shutil.rmtree(folder, ignore_errors=True)
        return journal is not None and journal.fingerprint == wanted

    return read_journal(staging.directory) if staging.resume(is_wanted) else None


def _drop_changed(journal: Journal, output: Output, events: Events) -> None:
    """Drop finished shards that have changed since from the journal."""
    events.phase("checking finished shards", 0)
    done = intact_shards(journal)
    events.note(_reused_text(len(done), len(journal.shards), len(output.plan.shards)))
    for name in journal.shards.keys() - done.keys():
        del journal.shards[name]
    journal.save()


def _abandoned_text(folder: Path, num_bytes: int, *, resume: bool) -> str:
    """Describe the unfinished output of an earlier run."""
    what = f"`{folder}` ({bytes_text(num_bytes)}) is the unfinished output of a killed run"
    if resume:
        return f"{what} with another source or other options; remove it if you do not need it"
    return f"{what}; continue it with `--resume`, or remove it"


def _reused_text(num_good: int, num_recorded: int, num_all: int) -> str:
    """Describe how many finished files of a killed run are reused."""
    changed = num_recorded - num_good
    rewritten = f"; rewriting {changed} that changed since" if changed else ""
    return f"reusing {num_good} of {num_all} files from the interrupted run{rewritten}"


def _is_worth_keeping(directory: Path, num_shards: int, error: BaseException) -> bool:
    """Decide whether to keep the finished shards for `--resume`; if so, add that to the error's hint."""
    is_final = isinstance(error, MupscaleError) and not isinstance(error, (OutputError, JobError))
    if is_final or isinstance(error, OutputExistsError) or num_shards == 1:
        return False
    written = read_journal(directory)  # includes the shards of other processes
    if written is None or not written.shards:
        return False
    count = f"{len(written.shards)} of {num_shards} files are finished and kept in `{directory}`"
    resume_hint = f"{count}; repeat the command with `--resume` to continue"
    if isinstance(error, MupscaleError):
        error.hint = resume_hint if isinstance(error, JobError) else f"free some space; {resume_hint}"
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        error.resume_hint = resume_hint  # type: ignore[union-attr]  # the command line prints it
    return True
