"""The one loop: read rows, expand, write rows, for every tensor of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from mupscale_cli.blocks import Block, Place, Run, row_blocks
from mupscale_cli.checkpoint.digest import (
    LEAF_BYTES,
    DigestState,
    RowBuffer,
    Runs,
    TensorDigest,
    known_states,
    merge_states,
)
from mupscale_cli.checkpoint.header import Stored
from mupscale_cli.checkpoint.journal import FinishedShard
from mupscale_cli.checkpoint.source import RowReader
from mupscale_cli.checkpoint.target import ShardWriter
from mupscale_cli.expand import element_dtype, expand
from mupscale_cli.finite import NonFinite, NonFiniteFound, check_noisy
from mupscale_cli.layout import DimMap, Strip, keep_dims
from mupscale_cli.maps import CopyMap
from mupscale_cli.noise import Rows, add_noise, measured_std
from mupscale_cli.perturbation import Noise
from mupscale_cli.plan import Shard, TensorPlan
from mupscale_cli.ranks import ALONE, Ranks
from mupscale_cli.repeats import Repeats, all_rows, without_repeats
from mupscale_cli.specs import DTYPES
from mupscale_cli.workers import num_workers, work_through


class Writer(Protocol):
    """Something that takes the bytes of tensors at their places, from several threads."""

    def write(self, name: str, start: int, buffer: RowBuffer, runs: Runs) -> None:
        """Take consecutive runs of a buffer, of which some may overlap, as a tensor's bytes from `start` on."""


BLOCK_BYTES = 4 << 20  # of the target; what a block needs fits a cache, and a large model is still few blocks
_SHORT_RUN = 1 << 14  # bytes of neighbouring rows that are handed to the system by themselves
_NOISY = 4  # noise is made in wider types, so its blocks are so many times smaller
Progress = Callable[[int], None]
Digests = Mapping[str, TensorDigest]
(_ONE_ROW,) = keep_dims((1,))


@dataclass(frozen=True)
class Converted:
    """What is known of a plan's output once it is written.

    Attributes:
        stds: the standard deviation of the noise of every tensor that has some.
        digests: the hash of every shard, by its file.
        nonfinite: how many NaNs and infinities every tensor of the source holds, those that hold some.
        overflowed: tensors in which scaling made infinities.
    """

    stds: dict[str, float]
    digests: dict[str, str]
    nonfinite: dict[str, int]
    overflowed: tuple[str, ...]


def convert(
    shards: Sequence[Shard],
    tensors: Mapping[str, Stored],
    directory: Path,
    *,
    metadata: Mapping[str, str],
    reserve: int = 0,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
    sources: Digests | None = None,
    done: Mapping[str, FinishedShard] = MappingProxyType({}),
    finished: Callable[[FinishedShard], None] = lambda _: None,
    allow_nonfinite: bool = False,
    ranks: Ranks = ALONE,
) -> Converted | None:
    """Write files: all of them, or one process's part of them, which is an even share of their bytes.

    Args:
        shards: what to write.
        tensors: where the source's tensors are.
        directory: where the files are written.
        metadata: for the header of each file.
        reserve: blank bytes to leave in each header.
        progress: called with the bytes of tensor data just written.
        block_bytes: size of a block of the output; memory is a few times that.
        sources: hashes of the source's tensors, to be fed with what is read.
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
    begin, end = ranks.share(sum(shard.num_bytes for shard in todo))
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
                shard.tensors, tensors, writer, progress=progress, block_bytes=block_bytes, sources=sources,
                nonfinite=nonfinite, part=range(low, high),
            )  # fmt: skip
        if is_whole:
            whole.append(_finished(shard, writer, stds, nonfinite, sources or {}))
            finished(whole[-1])
        else:
            parts[shard.file] = _Part(known_states(writer.digests), stds, nonfinite.found)
    told = ranks.gather(_Told(whole, parts, {} if ranks.is_alone else known_states(sources or {})))
    if not ranks.is_first:
        return None
    for one in told:
        merge_states(sources or {}, one.sources)
    known = {shard.file: shard for shard in (*done.values(), *(each for one in told for each in one.whole))}
    for shard in todo:
        if shard.file not in known:
            writer = _writer(shard, directory, metadata, reserve, is_shared=True)
            some = [one.parts[shard.file] for one in told if shard.file in one.parts]
            known[shard.file] = _put_together(shard, writer, some, sources or {})
            finished(known[shard.file])
    return _converted([known[shard.file] for shard in shards])


@dataclass(frozen=True)
class _Part:
    """What one process knows of a file of which it wrote a part."""

    digests: dict[str, DigestState]
    stds: dict[str, float]
    nonfinite: NonFiniteFound


@dataclass(frozen=True)
class _Told:
    """What a process tells the first one: files that it wrote alone, parts of others, and hashes of what it read."""

    whole: list[FinishedShard]
    parts: dict[str, _Part]
    sources: dict[str, DigestState]


def _writer(
    shard: Shard, directory: Path, metadata: Mapping[str, str], reserve: int, *, is_shared: bool
) -> ShardWriter:
    specs = tuple(tensor.target for tensor in shard.tensors)
    return ShardWriter(directory / shard.file, specs, metadata, reserve, is_shared=is_shared)


def _finished(
    shard: Shard, writer: ShardWriter, stds: dict[str, float], nonfinite: NonFinite, sources: Digests
) -> FinishedShard:
    taken = {tensor.source.name: sources.get(tensor.source.name) for tensor in shard.tensors}
    read = {name: digest.digest.hex() for name, digest in taken.items() if digest and digest.digest}
    return FinishedShard(shard.file, writer.digest, stds, read, nonfinite.counts, nonfinite.overflowed)


def _put_together(shard: Shard, writer: ShardWriter, parts: Sequence[_Part], sources: Digests) -> FinishedShard:
    """A file that several processes wrote."""
    nonfinite = NonFinite(is_allowed=True)
    stds: dict[str, float] = {}
    for part in parts:
        merge_states(writer.digests, part.digests)
        stds |= part.stds
        nonfinite.merge(part.nonfinite)
    writer.check_size()
    return _finished(shard, writer, stds, nonfinite, sources)


def _converted(shards: Sequence[FinishedShard]) -> Converted:
    stds = {name: std for shard in shards for name, std in shard.stds.items()}
    counts = {name: count for shard in shards for name, count in shard.nonfinite.items()}
    overflowed = tuple(name for shard in shards for name in shard.overflowed)
    return Converted(stds, {shard.file: shard.digest for shard in shards}, counts, overflowed)


def write_tensors(
    tensors: Iterable[TensorPlan],
    stored: Mapping[str, Stored],
    writer: Writer,
    *,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
    sources: Digests | None = None,
    nonfinite: NonFinite | None = None,
    part: range | None = None,
) -> dict[str, float]:
    """Read, expand and write tensors, a block at a time on each thread.

    Args:
        tensors: what to write.
        stored: where the sources are, by name.
        writer: takes the bytes.
        progress: called with the bytes just written.
        block_bytes: size of a block of the output.
        sources: hashes of the source's tensors, to be fed with what is read.
        nonfinite: takes note of NaNs and infinities; they are refused if not given.
        part: of the bytes of all these tensors together, those blocks that begin there; everything if not given.

    Returns:
        The standard deviation of the noise of every tensor that has some.

    Raises:
        CheckpointError: the source changed while it was read, or holds what is not finite.
        OutputError: the disk refused.
    """
    stds: dict[str, float] = {}
    nonfinite = nonfinite or NonFinite(is_allowed=False)
    with ExitStack() as stack:
        rooms = [_Room(stack.enter_context(RowReader()), sources or {}) for _ in range(num_workers())]
        planning = _Room(stack.enter_context(RowReader()), sources or {})
        jobs = _jobs(tensors, stored, block_bytes, planning, stds, nonfinite, part)
        work_through(jobs, [partial(_do, room=room, writer=writer, progress=progress, nonfinite=nonfinite)
                            for room in rooms])  # fmt: skip
    return stds


@dataclass(frozen=True)
class _Job:
    """A block of a tensor."""

    tensor: TensorPlan
    stored: Stored
    block: Block
    noise: _TensorNoise | None


class _Room:
    """What one thread works with: a reader, and memory that it uses again and again."""

    def __init__(self, reader: RowReader, sources: Digests) -> None:
        self.reader = reader
        self.sources = sources
        self._buffers: dict[str, bytearray] = {}

    def blank(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> tuple[memoryview, torch.Tensor]:
        """Bytes for a use, and the tensor that they are; valid until it is asked again for the same use."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._buffers.get(use, b"")) < size:
            self._buffers[use] = bytearray(size)
        buffer = self._buffers[use]
        return memoryview(buffer)[:size], torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).view(*shape)

    def rows(self, tensor: TensorPlan, stored: Stored, start: int, count: int) -> tuple[RowBuffer, torch.Tensor]:
        """Rows of the source: their bytes, and the same as a tensor, (rows, columns)."""
        size = DTYPES[tensor.source.dtype].size
        columns = math.prod(dim.size for dim in tensor.dims[1:])
        data, rows = self.blank("source", (count, columns), element_dtype(tensor.source.dtype, size))
        self.reader.read(stored, start * columns * size, data)
        buffer = RowBuffer(data)
        if digest := self.sources.get(tensor.source.name):
            digest.add(start * columns * size, buffer)
        return buffer, rows


def _jobs(
    tensors: Iterable[TensorPlan],
    stored: Mapping[str, Stored],
    block_bytes: int,
    room: _Room,
    stds: dict[str, float],
    nonfinite: NonFinite,
    part: range | None,
) -> Iterator[_Job]:
    """Every block of every tensor; notes the size of each one's noise, which takes reading it, on the way."""
    position = 0  # of the block, among the bytes of all tensors
    for tensor in tensors:
        end = position + tensor.target.num_bytes
        if tensor.target.num_elements == 0 or (part is not None and (end <= part.start or part.stop <= position)):
            position = end
            continue
        place = stored[tensor.source.name]

        def rows(start: int, count: int, tensor: TensorPlan = tensor, place: Stored = place) -> torch.Tensor:
            _, found = room.rows(tensor, place, start, count)
            nonfinite.note(tensor, found, start)  # before anything is computed of it
            return found

        noise = _TensorNoise.of(tensor, rows)
        if noise is not None:
            stds[tensor.target.name] = noise.std
        row_bytes = _wide_row_bytes(tensor)
        for block in row_blocks(_rows(tensor), row_bytes, block_bytes if noise is None else block_bytes // _NOISY):
            if part is None or position in part:
                yield _Job(tensor, place, block, noise)
            position += block.num_rows_written * row_bytes
        assert position == end


def _wide_row_bytes(tensor: TensorPlan) -> int:
    return DTYPES[tensor.source.dtype].size * math.prod(dim.wide_size for dim in tensor.dims[1:])


def _do(job: _Job, *, room: _Room, writer: Writer, progress: Progress, nonfinite: NonFinite) -> None:
    """Read a block, expand it, and write it to its places."""
    tensor, block, noise = job.tensor, job.block, job.noise
    row_bytes = _wide_row_bytes(tensor)
    read, source = room.rows(tensor, job.stored, block.row, block.num_rows)
    source = source.view(block.num_rows, *(dim.size for dim in tensor.dims[1:]))
    nonfinite.note(tensor, source, block.row)
    # Writing one row twice is cheaper than making it twice; not where it is short, or no other row is like it.
    is_plain = noise is None and row_bytes >= LEAF_BYTES
    repeats = (without_repeats if is_plain else all_rows)(block.strips, block.num_wide_rows)
    num_shares = len(block.groups[0])
    if is_plain and num_shares == 1 and _is_kept(tensor, repeats.strips):
        stack, buffers = source[None], [read]
    else:
        shape = (num_shares, repeats.num_rows, *(dim.wide_size for dim in tensor.dims[1:]))
        data, stack = room.blank("target", shape, source.dtype)
        _expand(tensor, repeats.strips, source, stack)
        nonfinite.note_overflow(tensor, source, stack)
        buffers = _buffers(data, num_shares)
    if is_plain and 1 < len(repeats.runs) > block.num_wide_rows * row_bytes // _SHORT_RUN:
        buffers = _laid_out(buffers, repeats, stack, room)
        repeats = all_rows(repeats.strips, block.num_wide_rows)
    for group in block.groups:
        if noise is not None:
            data, noisy = room.blank("noisy", stack.shape, stack.dtype)
            noise.add(stack, noisy, block, group)
            buffers = _buffers(data, num_shares)
        for share, (place, buffer) in enumerate(zip(group, buffers, strict=True)):
            for run in place:
                if noise is not None:
                    check_noisy(tensor, noisy[share, run.first : run.first + run.count])
                rows = repeats.within(run.first, run.count)
                runs = [(first * row_bytes, count * row_bytes) for first, count in rows]
                writer.write(tensor.target.name, run.row * row_bytes, buffer, runs)
                progress(run.count * row_bytes)


def _is_kept(tensor: TensorPlan, rows: Sequence[Strip]) -> bool:
    """Whether the rows of a block that differ are those of the source, as they are."""
    strips = [rows, *(dim.strips for dim in tensor.dims[1:])]
    is_one_to_one = all(
        strip.scale == 1 and strip.offset == strip.wide_offset
        and all(digit.units == CopyMap(digit.units.size) and digit.stride == digit.wide_stride
                for digit in strip.digits)
        for dim in strips for strip in dim
    )  # fmt: skip
    return is_one_to_one and tensor.scale * tensor.shrink == 1 and tensor.name_pieces == 1


def _buffers(data: memoryview, num_shares: int) -> list[RowBuffer]:
    """The rows of each share."""
    size = len(data) // num_shares
    return [RowBuffer(data[share * size : (share + 1) * size]) for share in range(num_shares)]


def _laid_out(buffers: Sequence[RowBuffer], repeats: Repeats, stack: torch.Tensor, room: _Room) -> list[RowBuffer]:
    """The shares of a block with all of its rows: short ones are copied faster than gathered by the system."""
    order = torch.tensor(repeats.order)
    shape = (len(stack), repeats.num_wide_rows, *stack.shape[2:])
    data, wide = room.blank("wide", shape, stack.dtype)
    torch.index_select(stack, 1, order, out=wide)
    return [
        RowBuffer(each.data, (buffer, order)) for each, buffer in zip(_buffers(data, len(stack)), buffers, strict=True)
    ]


def _expand(tensor: TensorPlan, rows: Sequence[Strip], source: torch.Tensor, stack: torch.Tensor) -> None:
    """Fill the shares of a block, (shares, rows, ...)."""
    num_shares = len(stack)
    for share, target in enumerate(stack):
        expand(
            source,
            target,
            (rows, *(dim.strips for dim in tensor.dims[1:])),
            scale=tensor.scale * tensor.shrink,
            offset=tensor.offset,
            piece=tensor.piece * num_shares + share,
            num_pieces=tensor.name_pieces * num_shares,
            first_only=tensor.first_only,
            fresh=tensor.fresh,
        )


@dataclass(frozen=True)
class _TensorNoise:
    """The noise of a tensor that is being written."""

    noise: Noise
    std: float
    columns: Sequence[Sequence[Strip]]

    @classmethod
    def of(cls, tensor: TensorPlan, read: Rows) -> _TensorNoise | None:
        """The noise that a plan asks for, sized by the source."""
        if tensor.noise is None:
            return None
        return cls(tensor.noise, measured_std(tensor, read), [dim.strips for dim in tensor.dims[1:]])

    def add(self, stack: torch.Tensor, out: torch.Tensor, block: Block, places: Sequence[Place]) -> None:
        """Fill `out` with the shares of a block at their places, with noise."""
        add_noise(stack, out, self.noise, self.std, block.strips, self.columns, places)


def expand_whole(tensor: TensorPlan, source: torch.Tensor, nonfinite: NonFinite | None = None) -> torch.Tensor:
    """The widened tensor in memory.

    Args:
        tensor: how it is made.
        source: contiguous, of the narrow shape and the type of the plan's source.
        nonfinite: takes note of NaNs and infinities; they are refused if not given.

    Raises:
        CheckpointError: it is not finite.
    """
    nonfinite = nonfinite or NonFinite(is_allowed=False)
    nonfinite.note(tensor, source, 0)
    rows = _rows(tensor)
    place = (Run(0, 0, rows.wide_size),)
    whole = Block(0, rows.size, rows.wide_size, rows.strips, ((place,),))
    shaped = source.view(rows.size, *(dim.size for dim in tensor.dims[1:]))
    stack = torch.empty((1, rows.wide_size, *(dim.wide_size for dim in tensor.dims[1:])), dtype=source.dtype)
    _expand(tensor, rows.strips, shaped, stack)
    nonfinite.note_overflow(tensor, source, stack)
    noise = _TensorNoise.of(tensor, lambda start, count: shaped.view(rows.size, -1)[start : start + count])
    if noise is not None:
        noise.add(stack.clone(), stack, whole, (place,))
    return stack.view(tensor.target.shape)


def _rows(tensor: TensorPlan) -> DimMap:
    """The map of the rows; a scalar is one row."""
    return tensor.dims[0] if tensor.dims else _ONE_ROW
