"""Write the weights and optimizer state of an output, with one process or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.fates import PlannedFile
from mupscale_cli.checkpoints.header import METADATA_KEY
from mupscale_cli.checkpoints.journal import Journal, journal_name
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.errors import JobError
from mupscale_cli.files import Identity
from mupscale_cli.optimizers.carrying import CarriedState
from mupscale_cli.optimizers.formats.base import WriteOptions
from mupscale_cli.plan import Plan
from mupscale_cli.tasks.adapters import PlannedAdapter, with_adapters

if TYPE_CHECKING:
    from mupscale_cli.optimizers.in_kind import InKind

_RECORD_RESERVE = 8192  # bytes reserved in the header of a single file for the figures of its verification
_NAME_RESERVE = 40  # bytes for a number after a tensor's name: the size of its noise, the count of nonfinite elements


@dataclass(frozen=True)
class Output:
    """Everything that a widening writes.

    Attributes:
        plan: plan of the weights.
        source: the narrow checkpoint.
        carried: the optimizer state to widen; None if there is none.
        adapters: the adapters to widen.
        in_kind: the container of weights, and of the state in it, if the source is a trainer's.
        files: what becomes of every file of the source.
        allow_nonfinite: copy and count NaNs and infinities instead of refusing them.
        record: the content of mupscale.json that is known before writing.
    """

    plan: Plan
    source: Checkpoint
    carried: CarriedState | None
    files: tuple[PlannedFile, ...]
    allow_nonfinite: bool
    adapters: tuple[PlannedAdapter, ...] = ()
    in_kind: InKind | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        adapters = sum(adapter.plan.num_bytes for adapter in self.adapters)
        modules = sum(module.num_bytes for module in self.plan.modules)
        weights = self.plan.num_bytes if self.in_kind is None else self.in_kind.state.num_bytes
        return weights + modules + adapters + (self.carried.state.num_bytes if self.carried else 0)

    @property
    def fates(self) -> tuple[PlannedFile, ...]:
        """What becomes of every file of the source and of the adapters."""
        return with_adapters(self.files, self.source, self.adapters)

    @cached_property
    def opened(self) -> dict[Path, Identity | None]:
        """Identities of the files that it is made from, before any of them was read."""
        unused = {self.source.path / file.name for file in self.files if file.fate == "left behind"}
        state = self.carried.opened if self.carried else {}
        adapters = {file: known for adapter in self.adapters for file, known in adapter.opened.items()}
        own = {file: known for file, known in self.source.opened.items() if file not in unused}
        return {**own, **state, **adapters}


def write(
    output: Output, journal: Journal, events: Events, ranks: Ranks, processes: int | None
) -> dict[str, Any] | None:
    """Write weights and optimizer state, or this process's share of them.

    Args:
        output: what all processes write together.
        journal: the finished shards, in the folder to write to.
        events: receive the progress.
        ranks: the processes of a distributed job.
        processes: number of local processes, including this one, if the job has only one process. None chooses it by
            the size of the output.

    Returns:
        The record of the whole output in the first process, None in the others.

    Raises:
        JobError: this process does not see the folder to write to.
    """
    from mupscale_cli.engine.processes import Forks, run_forked, worthwhile

    if not journal.directory.is_dir():
        raise JobError(
            f"process {ranks.rank} does not see `{journal.directory}`",
            hint="write to a file system that all processes of the job share",
        )
    if not ranks.is_alone:
        return _write_part(output, journal, events, ranks, reporting=ranks)

    def work(forks: Forks) -> dict[str, Any] | None:
        own_events = replace(events if forks.is_first else SILENT, advance=forks.advance)
        return _write_part(output, journal, own_events, forks, reporting=ALONE)

    return run_forked(processes or worthwhile(output.num_bytes), work, events.advance)


def _write_part(
    output: Output, journal: Journal, events: Events, ranks: Ranks, reporting: Ranks
) -> dict[str, Any] | None:
    """Write one process's share.

    Args:
        output: what all processes write together.
        journal: the finished shards, in the folder to write to.
        events: receive the progress.
        ranks: the processes that share the work.
        reporting: the processes that report their own progress; `ALONE` if the first one reports for all.

    Returns:
        The record of the whole output in the first process, None in the others.
    """
    from mupscale_cli.engine.shards import byte_share, write_shards

    plan, source, carried = output.plan, output.source, output.carried
    own_journal = journal if ranks.is_first else replace(journal, shards={}, name=journal_name(ranks.rank))
    todo = [tensor for shard in plan.shards if shard.file not in journal.shards for tensor in shard.tensors]
    first, last = byte_share(todo, reporting)
    part = "" if reporting.is_alone else f", part {reporting.rank + 1} of {reporting.size}"
    events.phase(f"widening{part}", last - first)
    state: dict[str, Any] = {}
    if output.in_kind is not None:
        options = WriteOptions(journal.directory, output.in_kind.name, events.advance, output.allow_nonfinite, ranks)
        written, inner = output.in_kind.write(options) or (None, None)
        state = {"optimizer_state": inner}
    else:
        metadata = {"format": "pt", **({METADATA_KEY: json.dumps(output.record)} if source.is_file else {})}
        written = write_shards(
            plan.shards,
            source.tensors,
            journal.directory,
            metadata=metadata,
            progress=events.advance,
            reserve=_record_reserve(output) if source.is_file else 0,
            done=journal.shards,
            on_finished=own_journal.note,
            allow_nonfinite=output.allow_nonfinite,
            ranks=ranks,
        )
    if carried is not None:
        first, last = reporting.share(carried.state.num_bytes)
        events.phase(f"optimizer state{part}", last - first)
        state["optimizer_state"] = carried.write(journal.directory, events.advance, ranks, output.allow_nonfinite)
    if written is None:
        return None
    return {
        **output.record,
        "written": {file: {"digest": digest} for file, digest in written.digests.items()},
        "noise": written.stds,
        "nonfinite": written.nonfinite,
        "overflowed": list(written.overflowed),
        **state,
    }


def _record_reserve(output: Output) -> int:
    """Return the bytes to reserve in the header of a single file for figures that are known after writing it."""
    tensors = output.plan.tensors
    noisy = [tensor for tensor in tensors if tensor.noise is not None]
    named = [*noisy, *(2 * tensors if output.allow_nonfinite else ())]
    return _RECORD_RESERVE + sum(len(tensor.target.name) + _NAME_RESERVE for tensor in named)
