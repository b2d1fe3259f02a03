"""Writing shards of widened tensors: all of them, or one process's part."""

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

_NOISE_COST = 5  # time to write a tensor with noise, relative to one without (`tests/benchmarks/noise.py`)


@dataclass(frozen=True)
class WrittenShards:
    """Facts about an output that are known once its shards are written.

    Attributes:
        stds: standard deviation of the noise, by widened tensor with noise.
        digests: digest of every shard, by file name.
        nonfinite: number of NaNs and infinities, by source tensor that contains any.
        overflowed: widened tensors in which scaling turned finite values into infinities.
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
    on_finished: Callable[[FinishedShard], None] = lambda _: None,
    allow_nonfinite: bool = False,
    ranks: Ranks = ALONE,
) -> WrittenShards | None:
    """Write shards, or this process's part of them; all parts take about the same time.

    Args:
        shards: shards to write.
        tensors: tensors of the source by name.
        directory: output directory.
        metadata: metadata for the header of each file.
        reserve: minimum number of blank bytes in each header.
        progress: called with the bytes of tensor data just written.
        block_bytes: size of a block of the output in bytes; memory use is a few times that.
        done: shards that are already finished, by file name.
        on_finished: called with each shard once it is on disk.
        allow_nonfinite: whether to copy and count NaNs and infinities instead of refusing them.
        ranks: the processes that share the work; each calls this function with the same arguments.

    Returns:
        Facts about the output in the first process, None in the others.

    Raises:
        CheckpointError: the source changed while it was read, or contains values that are not finite.
        OutputError: a file cannot be written.
        JobError: another process has ended.
    """
    todo = [shard for shard in shards if shard.file not in done]
    begin, end = byte_share([tensor for shard in todo for tensor in shard.tensors], ranks)
    whole: list[FinishedShard] = []
    parts: dict[str, _PartialShard] = {}
    position = 0
    for shard in todo:
        low, high = max(begin - position, 0), min(end - position, shard.num_bytes)
        position += shard.num_bytes
        # The first process writes shards that have only empty tensors.
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
            whole.append(_finish(shard, writer, [_PartialShard(writer.written, stds, nonfinite.snapshot)]))
            on_finished(whole[-1])
        else:
            parts[shard.file] = _PartialShard(writer.written, stds, nonfinite.snapshot)
    reports = ranks.gather(_RankReport(whole, parts))
    if not ranks.is_first:
        return None
    finished = {shard.file: shard for shard in (*done.values(), *(each for report in reports for each in report.whole))}
    for shard in todo:
        if shard.file not in finished:
            writer = _writer(shard, directory, metadata, reserve, is_shared=True)
            shared = [report.parts[shard.file] for report in reports if shard.file in report.parts]
            finished[shard.file] = _finish(shard, writer, shared)
            on_finished(finished[shard.file])
    return _summarize([finished[shard.file] for shard in shards])


def byte_share(tensors: Sequence[TensorPlan], ranks: Ranks) -> tuple[int, int]:
    """Return the start and the end of a process's share of the tensors' bytes, such that all shares take equal time.

    Args:
        tensors: all tensors to write, in order.
        ranks: this process.
    """
    costs = [tensor.target.num_bytes * (_NOISE_COST if tensor.noise is not None else 1) for tensor in tensors]
    ends = [0, *itertools.accumulate(costs)]
    starts = [0, *itertools.accumulate(tensor.target.num_bytes for tensor in tensors)]

    def position(cost: int) -> int:
        last = bisect.bisect_left(ends, cost)  # index of the tensor in which this cost is reached, plus one
        if last == 0:
            return 0
        size, whole = starts[last] - starts[last - 1], costs[last - 1]
        return starts[last - 1] + size * (cost - ends[last - 1]) // whole

    low, high = ranks.share(ends[-1])
    return position(low), position(high)


@dataclass(frozen=True)
class _PartialShard:
    """One process's part of a shard."""

    written: WrittenPart
    stds: dict[str, float]
    nonfinite: NonFiniteCounts


@dataclass(frozen=True)
class _RankReport:
    """A process's report to the first one: shards that it wrote alone, and its parts of shared ones by file name."""

    whole: list[FinishedShard]
    parts: dict[str, _PartialShard]


def _writer(
    shard: Shard, directory: Path, metadata: Mapping[str, str], reserve: int, *, is_shared: bool
) -> ShardWriter:
    specs = tuple(tensor.target for tensor in shard.tensors)
    return ShardWriter(directory / shard.file, specs, metadata, reserve, is_shared=is_shared)


def _finish(shard: Shard, writer: ShardWriter, parts: Sequence[_PartialShard]) -> FinishedShard:
    """Check a shard and combine what is known about its parts."""
    nonfinite = NonFinite(is_allowed=True)
    for part in parts:
        nonfinite.merge(part.nonfinite)
    digest = writer.finish(part.written for part in parts)
    stds = {name: std for part in parts for name, std in part.stds.items()}
    return FinishedShard(shard.file, digest, stds, nonfinite.counts, nonfinite.overflowed)


def _summarize(shards: Sequence[FinishedShard]) -> WrittenShards:
    stds = {name: std for shard in shards for name, std in shard.stds.items()}
    counts = {name: count for shard in shards for name, count in shard.nonfinite.items()}
    overflowed = tuple(name for shard in shards for name in shard.overflowed)
    return WrittenShards(stds, {shard.file: shard.digest for shard in shards}, counts, overflowed)
