"""Tensors one block of rows at a time: read, expand, hand on, on several threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Protocol

import torch

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.blocks import Block, Place, Run, all_rows, row_blocks, without_repeats
from mupscale_cli.engine.expand import element_dtype, expand
from mupscale_cli.engine.finite import NonFinite, check_noisy
from mupscale_cli.engine.noise import add_noise
from mupscale_cli.engine.norms import Rows, measured_std
from mupscale_cli.engine.threads import num_workers, work_through
from mupscale_cli.plan import TensorPlan
from mupscale_cli.plan.copies import CopyMap
from mupscale_cli.plan.dims import DimMap, Strip, keep_dims


class Writer(Protocol):
    """Something that takes the bytes of tensors at their places, from several threads."""

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Take pieces, one after the other, as a tensor's bytes from `start` on; the same may come several times."""


# Found with `tests/benchmarks/throughput.py` and, for noise, `tests/benchmarks/noise.py`.
BLOCK_BYTES = 4 << 20  # of the target; what a block needs fits a cache, and a large model is still few blocks
_SHORT_ROW = 1 << 10  # bytes; such rows are expanded for each of their places
_SHORT_RUN = 1 << 14  # bytes of neighboring rows that are handed to the system by themselves
_NOISY = 4  # noise is made in wider types, so its blocks are so many times smaller
Progress = Callable[[int], None]
(_ONE_ROW,) = keep_dims((1,))


def write_tensors(
    tensors: Iterable[TensorPlan],
    stored: Mapping[str, ReadableTensor],
    writer: Writer,
    *,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
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
        nonfinite: takes note of NaNs and infinities; they are refused if not given.
        part: of the bytes of all these tensors together, those blocks that begin there; everything if not given.

    Returns:
        The standard deviation of the noise of every tensor that has some.

    Raises:
        CheckpointError: the source changed while it was read, or holds what is not finite.
        OutputError: the disk refused.
    """
    nonfinite = nonfinite or NonFinite(is_allowed=False)
    work = _Work(stored, writer, progress, nonfinite)
    noises: dict[str, _TensorNoise] = {}
    with ExitStack() as stack:
        rooms = [_Room(stack.enter_context(RowReader())) for _ in range(num_workers())]
        jobs = _jobs(_Needed.of(tensors, part), block_bytes, noises, ahead=len(rooms))
        work_through(jobs, [partial(_do, room=room, work=work) for room in rooms])
    return {name: noise.std for name, noise in noises.items()}


@dataclass(frozen=True)
class _Work:
    """What is the same for every job."""

    stored: Mapping[str, ReadableTensor]
    writer: Writer
    progress: Progress
    nonfinite: NonFinite


@dataclass(frozen=True)
class _Needed:
    """A tensor of which something is to be written.

    Attributes:
        tensor: its plan.
        blocks: those blocks that begin at these bytes of it.
    """

    tensor: TensorPlan
    blocks: range

    @classmethod
    def of(cls, tensors: Iterable[TensorPlan], part: range | None) -> list[_Needed]:
        """The tensors that a part of all of their bytes together touches; all if it is not given."""
        needed, position = [], 0
        for tensor in tensors:
            size = tensor.target.num_bytes
            low, high = (0, size) if part is None else (max(part.start - position, 0), min(part.stop - position, size))
            position += size
            if low < high:
                needed.append(cls(tensor, range(low, high)))
        return needed


@dataclass(frozen=True)
class _Measuring:
    """A tensor whose noise is to be sized, which takes reading it."""

    noise: _TensorNoise


@dataclass(frozen=True)
class _Job:
    """A block of a tensor."""

    tensor: TensorPlan
    block: Block
    noise: _TensorNoise | None


class _Room:
    """What one thread works with: a reader, and memory that it uses again and again."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self._buffers: dict[str, bytearray] = {}

    def blank(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> tuple[memoryview, torch.Tensor]:
        """Bytes for a use, and the tensor that they are; valid until it is asked again for the same use."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._buffers.get(use, b"")) < size:
            self._buffers[use] = bytearray(size)
        buffer = self._buffers[use]
        return memoryview(buffer)[:size], torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).view(*shape)

    def rows(
        self, tensor: TensorPlan, stored: ReadableTensor, start: int, count: int
    ) -> tuple[memoryview, torch.Tensor]:
        """Rows of the source: their bytes, and the same as a tensor, (rows, columns)."""
        dtype = DTYPES[tensor.source.dtype]
        columns = math.prod(dim.size for dim in tensor.dims[1:])
        data, rows = self.blank("source", (count, columns), element_dtype(dtype))
        self.reader.read(stored, start * columns * dtype.size, data)
        return data, rows


def _jobs(
    needed: Sequence[_Needed], block_bytes: int, noises: dict[str, _TensorNoise], ahead: int
) -> Iterator[_Job | _Measuring]:
    """Every block; before those of a tensor with noise its measuring, some tensors ahead, so that nobody waits for it.

    Args:
        needed: what to write.
        block_bytes: size of a block of the output.
        noises: takes the noise of each tensor that has some.
        ahead: how many tensors to measure before they are needed.
    """
    noisy = (each.tensor for each in needed if each.tensor.noise is not None)
    for each in needed:
        tensor, row_bytes, position = each.tensor, _wide_row_bytes(each.tensor), 0
        if tensor.noise is not None:
            for coming in itertools.islice(noisy, ahead if not noises else 1):
                noises[coming.target.name] = _TensorNoise(coming)
                yield _Measuring(noises[coming.target.name])
        noise = noises.get(tensor.target.name)
        for block in row_blocks(_rows(tensor), row_bytes, block_bytes if noise is None else block_bytes // _NOISY):
            if position in each.blocks:
                yield _Job(tensor, block, noise)
            position += block.num_rows_written * row_bytes
        assert position == tensor.target.num_bytes


def _wide_row_bytes(tensor: TensorPlan) -> int:
    return DTYPES[tensor.source.dtype].size * math.prod(dim.wide_size for dim in tensor.dims[1:])


def _do(job: _Job | _Measuring, *, room: _Room, work: _Work) -> None:
    """Size a tensor's noise; or read a block, expand it, and write it to its places."""
    if isinstance(job, _Measuring):
        job.noise.measure(room, work)
        return
    tensor, block, noise, nonfinite = job.tensor, job.block, job.noise, work.nonfinite
    row_bytes = _wide_row_bytes(tensor)
    read, source = room.rows(tensor, work.stored[tensor.source.name], block.row, block.num_rows)
    source = source.view(block.num_rows, *(dim.size for dim in tensor.dims[1:]))
    nonfinite.note(tensor, source, block.row)
    # Writing one row twice is cheaper than making it twice; not where it is short, or no other row is like it.
    is_plain = noise is None and row_bytes >= _SHORT_ROW
    repeats = (without_repeats if is_plain else all_rows)(block.strips, block.num_wide_rows)
    num_shares = len(block.groups[0])
    if is_plain and num_shares == 1 and _is_kept(tensor, repeats.strips):
        stack, buffers = source[None], [read]
    else:
        shape = (num_shares, repeats.num_rows, *(dim.wide_size for dim in tensor.dims[1:]))
        data, stack = room.blank("target", shape, source.dtype)
        _expand(tensor, repeats.strips, source, stack)
        nonfinite.note_overflow(tensor, source, stack)
        buffers = _shares(data, num_shares)
    if is_plain and 1 < len(repeats.runs) > block.num_wide_rows * row_bytes // _SHORT_RUN:
        buffers = _laid_out(stack, _order(block.strips, block.num_wide_rows), room)
        repeats = all_rows(repeats.strips, block.num_wide_rows)
    for group in block.groups:
        if noise is not None:
            data, noisy = room.blank("noisy", stack.shape, stack.dtype)
            noise.add(stack, noisy, block, group)
            buffers = _shares(data, num_shares)
        for share, (place, buffer) in enumerate(zip(group, buffers, strict=True)):
            for run in place:
                if noise is not None:
                    check_noisy(tensor, noisy[share, run.first : run.first + run.count])
                pieces = _pieces(buffer, row_bytes, repeats.within(run.first, run.count))
                work.writer.write(tensor.target.name, run.row * row_bytes, pieces)
                work.progress(run.count * row_bytes)


def _is_kept(tensor: TensorPlan, rows: Sequence[Strip]) -> bool:
    """Whether the rows of a block that differ are those of the source, as they are."""
    strips = [rows, *(dim.strips for dim in tensor.dims[1:])]
    is_one_to_one = all(
        strip.scale == 1
        and strip.offset == strip.wide_offset
        and all(
            digit.units == CopyMap(digit.units.size) and digit.stride == digit.wide_stride for digit in strip.digits
        )
        for dim in strips
        for strip in dim
    )
    return is_one_to_one and tensor.scale * tensor.shrink == 1 and tensor.name_pieces == 1


def _shares(data: memoryview, num_shares: int) -> list[memoryview]:
    """The rows of each share."""
    size = len(data) // num_shares
    return [data[share * size : (share + 1) * size] for share in range(num_shares)]


def _pieces(data: memoryview, row_bytes: int, runs: Sequence[tuple[int, int]]) -> list[memoryview]:
    """The bytes of runs of rows, each given by its first row and number of rows."""
    pieces, last = [], None
    for run in runs:  # there are as many as rows, most of them like the one before
        if run != last:
            piece, last = data[run[0] * row_bytes : sum(run) * row_bytes], run
        pieces.append(piece)
    return pieces


def _laid_out(stack: torch.Tensor, order: torch.Tensor, room: _Room) -> list[memoryview]:
    """The shares of a block with all of its rows: short ones are copied faster than gathered by the system."""
    data, wide = room.blank("wide", (len(stack), len(order), *stack.shape[2:]), stack.dtype)
    torch.index_select(stack, 1, order, out=wide)
    return _shares(data, len(stack))


@lru_cache(maxsize=64)
def _order(strips: tuple[Strip, ...], num_wide_rows: int) -> torch.Tensor:
    return torch.tensor(without_repeats(strips, num_wide_rows).order)


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
    """The noise of a tensor that is being written; its size is awaited where it is needed."""

    tensor: TensorPlan
    _std: Future[float] = field(default_factory=Future)

    @property
    def std(self) -> float:
        """Its standard deviation.

        Raises:
            CheckpointError: the source could not be measured.
        """
        return self._std.result()

    def measure(self, room: _Room, work: _Work) -> None:
        """Size it by the source."""
        stored = work.stored[self.tensor.source.name]

        def rows(start: int, count: int) -> torch.Tensor:
            _, found = room.rows(self.tensor, stored, start, count)
            work.nonfinite.note(self.tensor, found, start)  # before anything is computed of it
            return found

        self.size_by(rows)

    def size_by(self, rows: Rows) -> None:
        """Size it by rows of the source; who awaits it hears of what goes wrong."""
        try:
            self._std.set_result(measured_std(self.tensor, rows))
        except BaseException as error:
            self._std.set_exception(error)
            raise

    def add(self, stack: torch.Tensor, out: torch.Tensor, block: Block, places: Sequence[Place]) -> None:
        """Fill `out` with the shares of a block at their places, with noise."""
        noise = self.tensor.noise
        assert noise is not None
        columns = [dim.strips for dim in self.tensor.dims[1:]]
        add_noise(stack, out, noise, self.std, block.strips, columns, places)


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
    if tensor.noise is not None:
        noise = _TensorNoise(tensor)
        noise.size_by(lambda start, count: shaped.view(rows.size, -1)[start : start + count])
        noise.add(stack.clone(), stack, whole, (place,))
    return stack.view(tensor.target.shape)


def _rows(tensor: TensorPlan) -> DimMap:
    """The map of the rows; a scalar is one row."""
    return tensor.dims[0] if tensor.dims else _ONE_ROW
