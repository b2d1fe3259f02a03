"""Weights and optimizer state of an output, written by one process or by several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.header import METADATA_KEY
from mupscale_cli.checkpoints.journal import Journal, journal_name
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.errors import JobError
from mupscale_cli.optimizers.carrying import CarriedState
from mupscale_cli.plan import Plan

_RECORD_RESERVE = 8192  # bytes left in the header of a single file for the figures of its verification
_NAME_RESERVE = 40  # and for a number beside the name of a tensor: the size of its noise, how much of it is not finite


@dataclass(frozen=True)
class Output:
    """What is to be written.

    Attributes:
        plan: of the weights.
        source: the checkpoint that they are made from.
        carried: the optimizer's state that goes along, None where there is none.
        companions: further files of the source that are copied.
        allow_nonfinite: copy NaNs and infinities, and count them; else they are refused.
        record: the content of mupscale.json as far as it is known before anything is written.
    """

    plan: Plan
    source: Checkpoint
    carried: CarriedState | None
    companions: tuple[Path, ...]
    allow_nonfinite: bool
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return self.plan.num_bytes + (self.carried.state.num_bytes if self.carried else 0)

    @property
    def left_files(self) -> tuple[Path, ...]:
        """Files of the source that are left behind."""
        carried = self.carried.files if self.carried else ()
        return tuple(file for file in self.source.skipped_files if file not in carried)


def write(
    output: Output, journal: Journal, events: Events, ranks: Ranks, processes: int | None
) -> dict[str, Any] | None:
    """Write weights and state, or this process's part of them.

    Args:
        output: what all the processes of the job write.
        journal: of what is finished already, in the folder to write to.
        events: for progress.
        ranks: the processes of the job.
        processes: how many to fork here, this one among them, where the job has no other; None for as many as are
            worth it.

    Returns:
        The record of the whole; None but for the first process.

    Raises:
        JobError: the folder is not there for this process.
    """
    from mupscale_cli.engine.processes import forked, worthwhile

    if not journal.directory.is_dir():
        raise JobError(
            f"`{journal.directory}` is not there for process {ranks.rank}",
            hint="the processes of a job need a file system that all of them share",
        )
    if not ranks.is_alone:
        return _write_part(output, journal, events, ranks, told=ranks)
    with forked(processes or worthwhile(output.num_bytes), events.advance) as forks:
        own = replace(events if forks.is_first else SILENT, advance=forks.advance)
        return _write_part(output, journal, own, forks, told=ALONE)


def _write_part(output: Output, journal: Journal, events: Events, ranks: Ranks, told: Ranks) -> dict[str, Any] | None:
    """Write one process's part.

    Args:
        output: what all the processes write.
        journal: of what is finished already, in the folder to write to.
        events: for progress.
        ranks: the processes that share the work.
        told: those of them that each report their own progress; one process where the first reports for all.

    Returns:
        The record of the whole; None but for the first process.
    """
    from mupscale_cli.engine.shards import byte_share, write_shards

    plan, source, carried = output.plan, output.source, output.carried
    own = journal if ranks.is_first else replace(journal, shards={}, name=journal_name(ranks.rank))
    todo = [tensor for shard in plan.shards if shard.file not in journal.shards for tensor in shard.tensors]
    first, last = byte_share(todo, told)
    part = "" if told.is_alone else f", part {told.rank + 1} of {told.size}"
    events.phase(f"widening{part}", last - first)
    metadata = {"format": "pt", **({METADATA_KEY: json.dumps(output.record)} if source.is_file else {})}
    converted = write_shards(
        plan.shards,
        source.tensors,
        journal.directory,
        metadata=metadata,
        progress=events.advance,
        reserve=_record_reserve(output) if source.is_file else 0,
        done=journal.shards,
        finished=own.note,
        allow_nonfinite=output.allow_nonfinite,
        ranks=ranks,
    )
    state = {}
    if carried is not None:
        first, last = told.share(carried.state.num_bytes)
        events.phase(f"optimizer state{part}", last - first)
        state["optimizer_state"] = carried.write(journal.directory, events.advance, ranks, output.allow_nonfinite)
    if converted is None:
        return None
    return {
        **output.record,
        "written": {file: {"digest": digest} for file, digest in converted.digests.items()},
        "noise": converted.stds,
        "nonfinite": converted.nonfinite,
        "overflowed": list(converted.overflowed),
        **state,
    }


def _record_reserve(output: Output) -> int:
    """Return the bytes to leave in the header of a single file for what is known only once it is written."""
    tensors = output.plan.tensors
    noisy = [tensor for tensor in tensors if tensor.noise is not None]
    named = [*noisy, *(2 * tensors if output.allow_nonfinite else ())]
    return _RECORD_RESERVE + sum(len(tensor.target.name) + _NAME_RESERVE for tensor in named)
