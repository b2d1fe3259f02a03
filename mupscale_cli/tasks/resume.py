"""Stage an output such that a later run can continue it if this one is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mupscale_cli.checkpoints.journal import Journal, fingerprint, intact_shards, read_journal
from mupscale_cli.checkpoints.staging import Staging, stage, unfinished
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import CheckpointError, JobError, MupscaleError, OutputError, OutputExistsError, VerifyError
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.writing import Output
from mupscale_cli.text import bytes_text


@contextmanager
def resumable(
    output: Output, target: Path, options: WidenOptions, *, resume: bool, events: Events
) -> Iterator[Staging]:
    """Stage an output in a folder that outlives a killed process.

    Args:
        output: the output to write.
        target: its final path.
        options: how it is widened; `--resume` continues only a run with the same ones.
        resume: continue a killed run that wrote the same output, after checking its finished shards.
        events: receive the progress, and notes about unfinished outputs of other runs.

    Yields:
        The folder with the journal of finished shards.

    Raises:
        OutputError: another run is writing this output.
        CheckpointError: the journal of the run to continue is damaged.
    """
    wanted = _fingerprint(output, options)
    with stage(target, wanted, resume=resume, keep=partial(_is_worth_keeping, len(output.plan.shards))) as staging:
        for folder, num_bytes, found in unfinished(staging):
            events.warn(_unfinished_text(folder, num_bytes, is_same=found == wanted))
        if staging.journal.shards:
            _drop_changed(staging.journal, output, events)
        staging.clear()
        yield staging


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


def _drop_changed(journal: Journal, output: Output, events: Events) -> None:
    """Drop finished shards that have changed since from the journal."""
    events.phase("checking finished shards", 0)
    done = intact_shards(journal)
    events.note(_reused_text(len(done), len(journal.shards), len(output.plan.shards)))
    for name in journal.shards.keys() - done.keys():
        del journal.shards[name]
    journal.save()


def _unfinished_text(folder: Path, num_bytes: int, *, is_same: bool) -> str:
    """Describe the unfinished output of an earlier run."""
    what = f"`{folder}` ({bytes_text(num_bytes)}) is the unfinished output of a killed run"
    if is_same:
        return f"{what}; `--resume` continues one such run, and a finished run removes all of them"
    return f"{what} with another source or other options; remove it if you do not need it"


def _reused_text(num_good: int, num_recorded: int, num_all: int) -> str:
    """Describe how many finished files of a killed run are reused."""
    changed = num_recorded - num_good
    rewritten = f"; rewriting {changed} that changed since" if changed else ""
    return f"reusing {num_good} of {num_all} files from the interrupted run{rewritten}"


def _is_worth_keeping(num_shards: int, staging: Staging, error: BaseException) -> bool:
    """Decide whether to keep the finished shards for `--resume`; if so, add that to the error's hint."""
    is_final = isinstance(error, MupscaleError) and not isinstance(error, (OutputError, JobError, VerifyError))
    if is_final or isinstance(error, OutputExistsError):
        return False
    try:
        written = read_journal(staging.content)  # includes the shards of other processes
    except CheckpointError:
        return False
    if written is None or not written.shards:
        return False
    files = "all files" if len(written.shards) == num_shards else f"{len(written.shards)} of {num_shards} files"
    count = f"{files} are finished and kept in `{staging.folder}`"
    resume_hint = f"{count}; repeat the command with `--resume` to continue"
    if isinstance(error, JobError):
        error.hint = resume_hint
    elif isinstance(error, (OutputError, VerifyError)):
        error.hint = "; ".join(filter(None, (error.hint, resume_hint)))
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        error.resume_hint = resume_hint  # type: ignore[union-attr]  # the command line prints it
    return True
