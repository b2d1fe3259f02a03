"""An output that a later run can continue if this one is killed."""

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
from mupscale_cli.tasks.writing import Output
from mupscale_cli.text import bytes_text


@contextmanager
def resumable(
    output: Output, target: Path, *, overwrite: bool, resume: bool, events: Events
) -> Iterator[tuple[Staging, Journal]]:
    """Stage an output in a folder that outlives this process as soon as a shard in it is finished.

    Args:
        output: what is to be written.
        target: its final name.
        overwrite: replace what stands there when it is published.
        resume: continue the run that was killed while it wrote the same; what it finished is checked first.
        events: for progress, and for notes on what other killed runs left.

    Yields:
        The staged folder, and the journal of the shards that are finished in it.

    Raises:
        OutputError: another run is writing this output.
    """
    staging = Staging(target, overwrite=overwrite)
    wanted = _fingerprint(output)
    found = _continued(staging, wanted) if resume else None
    with staging:
        staging.keep = partial(_is_worth_keeping, staging.directory, len(output.plan.shards))
        for folder, num_bytes in staging.abandoned().items():
            events.note(_abandoned_text(folder, num_bytes, resume=resume))
        directory = staging.directory.absolute()  # other processes may work in another folder
        journal = Journal(directory, wanted, {} if found is None else found.shards)
        if journal.shards:
            _drop_changed(journal, output, events)
        staging.clear(JOURNAL, *journal.shards)
        yield staging, journal


def _fingerprint(output: Output) -> str:
    """Hash what says whether a run that was killed was making the same."""
    shards = [
        [
            shard.file,
            [[spec.name, spec.dtype, list(spec.shape)] for spec in (tensor.target for tensor in shard.tensors)],
        ]
        for shard in output.plan.shards
    ]
    return fingerprint(output.record, shards)


def _continued(staging: Staging, wanted: str) -> Journal | None:
    """Find the journal of the killed run to continue, and move the staging to its folder."""

    def is_wanted(folder: Path) -> bool:
        found = read_journal(folder)
        if found is None:  # it was killed before it had finished anything
            shutil.rmtree(folder, ignore_errors=True)
        return found is not None and found.fingerprint == wanted

    return read_journal(staging.directory) if staging.resume(is_wanted) else None


def _drop_changed(journal: Journal, output: Output, events: Events) -> None:
    """Keep only the finished shards that still are what the journal says."""
    events.phase("checking what is finished", 0)
    done = intact_shards(journal)
    events.note(_kept_text(len(done), len(journal.shards), len(output.plan.shards)))
    for name in journal.shards.keys() - done.keys():
        del journal.shards[name]
    journal.save()


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


def _is_worth_keeping(directory: Path, num_shards: int, error: BaseException) -> bool:
    """Decide whether to leave what is finished for `--resume`; say so in the error, where that is for people."""
    is_final = isinstance(error, MupscaleError) and not isinstance(error, (OutputError, JobError))
    if is_final or isinstance(error, OutputExistsError) or num_shards == 1:
        return False
    written = read_journal(directory)  # by all the processes that work there
    if written is None or not written.shards:
        return False
    count = f"{len(written.shards)} of {num_shards} files are finished and kept in `{directory}`"
    what = f"{count}; the same command with `--resume` goes on from there"
    if isinstance(error, MupscaleError):
        error.hint = what if isinstance(error, JobError) else f"free some space; {what}"
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        error.resume_hint = what  # type: ignore[union-attr]  # for the command line to show
    return True
