"""Files of widened tensors: all of them, or one process's part."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.journal import FinishedShard
from mupscale_cli.checkpoints.writing import ShardWriter, WrittenPart
from mupscale_cli.engine.finite import NonFinite, NonFiniteCounts
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.engine.streaming import BLOCK_BYTES, Progress, write_tensors
from mupscale_cli.plan import Shard, TensorPlan

_NOISE_COST = 5  # how many times as long as copying it takes to make a tensor's noise (`tests/benchmarks/noise.py`)


@dataclass(frozen=True)
class WrittenShards:
    """What is known of a plan's output once it is written.

    Attributes:
        stds: the standard deviation of the noise of every tensor that has some.
        digests: of every shard, by its file.
        nonfinite: how many NaNs and infinities every tensor of the source holds, those that hold some.
        overflowed: tensors in which scaling made infinities.
    """

    stds: dict[str, float]
    digests: dict[str, str]
    nonfinite: dict[str, int]
    overflowed: tuple[str, ...]


def write_shards(
    shards: Sequence[Shard],
    tensors: Mapping[str, ReadableTensor],
    directory: Path,
    *,
    metadata: Mapping[str, str],
    reserve: int = 0,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
    done: Mapping[str, FinishedShard] = MappingProxyType({}),
    finished: Callable[[FinishedShard], None] = lambda _: None,
    allow_nonfinite: bool = False,
    ranks: Ranks = ALONE,
) -> WrittenShards | None:
    """Write files: all of them, or one process's part of them, which takes about as long as those of the others.

    Args:
        shards: what to write.
        tensors: where the source's tensors are.
        directory: where the files are written.
        metadata: for the header of each file.
        reserve: blank bytes to leave in each header.
        progress: called with the bytes of tensor data just written.
        block_bytes: size of a block of the output; memory is a few times that.
        done: shards that are there already.
        finished: called with each shard when it is on the disk.
        allow_nonfinite: copy NaNs and infinities, and count them.
        ranks: the processes that share the work; each calls this with the same arguments.

    Returns:
        What is known of the output; None but for the first process.

    Raises:
        CheckpointError: the source changed while it was read, or holds what is not finite.
        OutputError: the disk refused.
        JobError: another process has ended.
    """
    todo = [shard for shard in shards if shard.file not in done]
    begin, end = byte_share([tensor for shard in todo for tensor in shard.tensors], ranks)
    whole: list[FinishedShard] = []
    parts: dict[str, _Part] = {}
    position = 0
    for shard in todo:
        low, high = max(begin - position, 0), min(end - position, shard.num_bytes)
        position += shard.num_bytes
        # A file of empty tensors is the first one's.
        is_whole = (low, high) == (0, shard.num_bytes) if shard.num_bytes else ranks.is_first
        if low >= high and not is_whole:
            continue
        writer = _writer(shard, directory, metadata, reserve, is_shared=not is_whole)
        nonfinite = NonFinite(is_allowed=allow_nonfinite)
        with writer:
            stds = write_tensors(
                shard.tensors,
                tensors,
                writer,
                progress=progress,
                block_bytes=block_bytes,
                nonfinite=nonfinite,
                part=range(low, high),
            )
        if is_whole:
            whole.append(_finished(shard, writer, [_Part(writer.written, stds, nonfinite.found)]))
            finished(whole[-1])
        else:
            parts[shard.file] = _Part(writer.written, stds, nonfinite.found)
    told = ranks.gather(_Told(whole, parts))
    if not ranks.is_first:
        return None
    known = {shard.file: shard for shard in (*done.values(), *(each for one in told for each in one.whole))}
    for shard in todo:
        if shard.file not in known:
            writer = _writer(shard, directory, metadata, reserve, is_shared=True)
            some = [one.parts[shard.file] for one in told if shard.file in one.parts]
            known[shard.file] = _finished(shard, writer, some)
            finished(known[shard.file])
    return _converted([known[shard.file] for shard in shards])


def byte_share(tensors: Sequence[TensorPlan], ranks: Ranks) -> tuple[int, int]:
    """Which bytes of all these tensors together are one process's: from where and to where, by the time they take."""
    costs = [tensor.target.num_bytes * (_NOISE_COST if tensor.noise is not None else 1) for tensor in tensors]
    ends = [0, *itertools.accumulate(costs)]
    starts = [0, *itertools.accumulate(tensor.target.num_bytes for tensor in tensors)]

    def position(cost: int) -> int:
        last = bisect.bisect_left(ends, cost)  # the first tensor that is done with so much
        if last == 0:
            return 0
        size, whole = starts[last] - starts[last - 1], costs[last - 1]
        return starts[last - 1] + size * (cost - ends[last - 1]) // whole

    low, high = ranks.share(ends[-1])
    return position(low), position(high)


@dataclass(frozen=True)
class _Part:
    """What one process knows of a file of which it wrote a part."""

    written: WrittenPart
    stds: dict[str, float]
    nonfinite: NonFiniteCounts


@dataclass(frozen=True)
class _Told:
    """What a process tells the first one: files that it wrote alone, and parts of others."""

    whole: list[FinishedShard]
    parts: dict[str, _Part]


def _writer(
    shard: Shard, directory: Path, metadata: Mapping[str, str], reserve: int, *, is_shared: bool
) -> ShardWriter:
    specs = tuple(tensor.target for tensor in shard.tensors)
    return ShardWriter(directory / shard.file, specs, metadata, reserve, is_shared=is_shared)


def _finished(shard: Shard, writer: ShardWriter, parts: Sequence[_Part]) -> FinishedShard:
    """A file of which each process that worked on it wrote a part."""
    nonfinite = NonFinite(is_allowed=True)
    for part in parts:
        nonfinite.merge(part.nonfinite)
    digest = writer.finish(part.written for part in parts)
    stds = {name: std for part in parts for name, std in part.stds.items()}
    return FinishedShard(shard.file, digest, stds, nonfinite.counts, nonfinite.overflowed)


def _converted(shards: Sequence[FinishedShard]) -> WrittenShards:
    stds = {name: std for shard in shards for name, std in shard.stds.items()}
    counts = {name: count for shard in shards for name, count in shard.nonfinite.items()}
    overflowed = tuple(name for shard in shards for name in shard.overflowed)
    return WrittenShards(stds, {shard.file: shard.digest for shard in shards}, counts, overflowed)
