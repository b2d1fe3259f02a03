"""Fill blank containers with widened tensors, from several threads and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mupscale_cli.checkpoints.containers.base import Share, TensorSlot
from mupscale_cli.checkpoints.containers.blank import ArchiveWriter, write_checksums
from mupscale_cli.checkpoints.containers.checksums import Stretches
from mupscale_cli.checkpoints.digests import Segments
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.engine.finite import NonFinite, NonFiniteCounts
from mupscale_cli.engine.ranks import Ranks
from mupscale_cli.engine.shards import byte_share
from mupscale_cli.engine.streaming import Progress, write_tensors
from mupscale_cli.plan import TensorPlan

NO_SHARES: Mapping[str, Sequence[Share]] = MappingProxyType({})


@dataclass(frozen=True)
class FillResult:
    """Facts about filled files, known without reading the files again.

    Attributes:
        stds: the standard deviation of the noise, by widened tensor with noise.
        nonfinite: the number of NaNs and infinities in each tensor of the source that has any.
        overflowed: widened tensors in which scaling turned finite values into infinities.
        segments: for each file, the digests of the segments that one process wrote entirely.
    """

    stds: dict[str, float]
    nonfinite: dict[str, int]
    overflowed: tuple[str, ...]
    segments: dict[Path, Segments]


def fill(
    tensors: Sequence[TensorPlan],
    stored: Mapping[str, ReadableTensor],
    write_blank: Callable[[], Mapping[str, TensorSlot]],
    shares: Mapping[str, Sequence[Share]] = NO_SHARES,
    *,
    progress: Progress,
    ranks: Ranks,
    allow_nonfinite: bool,
) -> FillResult | None:
    """Write blank files and fill in this process's share of the tensors.

    Args:
        tensors: the plans of the tensors to write.
        stored: the narrow tensors, by name.
        write_blank: writes the blank container, and returns the slot of each tensor.
        shares: where the bytes of each tensor go that is not alone in one slot.
        progress: called with the number of bytes just written.
        ranks: the processes that share the work.
        allow_nonfinite: copy NaNs and infinities, and count them.

    Returns:
        Facts about the output; None except in the first process.

    Raises:
        CheckpointError: the source changed during reading, or holds values that are not finite.
        OutputError: the disk is full, or a file cannot be written.
        JobError: another process has ended.
    """
    slots = ranks.broadcast(write_blank() if ranks.is_first else None)
    assert slots is not None
    # Shared tensors have one slot under several names.
    own = {share.slot for tensor in tensors for share in shares.get(tensor.target.name, (_whole(tensor),))}
    slots = {name: slot for name, slot in slots.items() if name in own}
    part = range(*byte_share(tensors, ranks))
    nonfinite = NonFinite(is_allowed=allow_nonfinite)
    with ArchiveWriter(slots) as writer:
        place = _ShareWriter(writer, shares)
        stds = write_tensors(tensors, stored, place, progress=progress, nonfinite=nonfinite, part=part)
    checksums = {name: checksum.stretches for name, checksum in writer.checksums.items()}
    results = ranks.gather(_PartialResult(checksums, writer.segments, stds, nonfinite.snapshot))
    if not ranks.is_first:
        return None
    total = NonFinite(is_allowed=True)
    segments: dict[Path, Segments] = {}
    for result in results:
        total.merge(result.nonfinite)
        for file, known in result.segments.items():
            segments[file] = {**segments.get(file, {}), **known}
    write_checksums(slots, [result.checksums for result in results])
    all_stds = {name: std for result in results for name, std in result.stds.items()}
    return FillResult(all_stds, total.counts, tuple(total.overflowed), segments)


def _whole(tensor: TensorPlan) -> Share:
    return Share(tensor.target.name, 0, 0, tensor.target.num_bytes)


@dataclass(frozen=True)
class _ShareWriter:
    """Writes tensors that share a slot, or that are in several slots."""

    writer: ArchiveWriter
    shares: Mapping[str, Sequence[Share]]

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces of a tensor from byte `start`."""
        if name not in self.shares:
            self.writer.write(name, start, pieces)
            return
        for share in self.shares[name]:
            place = start
            for piece in pieces:
                low, high = max(place, share.start), min(place + len(piece), share.start + share.num_bytes)
                if low < high:
                    cut = piece[low - place : high - place]
                    self.writer.write(share.slot, share.first + low - share.start, [cut])
                place += len(piece)


@dataclass(frozen=True)
class _PartialResult:
    """The result of one process, which the first process gathers."""

    checksums: Mapping[str, Stretches]
    segments: Mapping[Path, Segments]
    stds: dict[str, float]
    nonfinite: NonFiniteCounts
