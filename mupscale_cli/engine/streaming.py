"""Streaming tensors: reading, expanding and writing one block of rows at a time, on several threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Protocol

import torch

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.blocks import Block, Place, Run, all_rows, distinct_rows, row_blocks
from mupscale_cli.engine.expand import MEAN_UNITS, element_dtype, expand, mean_of_units
from mupscale_cli.engine.finite import NonFinite, check_noisy
from mupscale_cli.engine.initial import InitialWeights
from mupscale_cli.engine.noise import add_noise
from mupscale_cli.engine.norms import Rows, initial_std, measured_std
from mupscale_cli.engine.threads import num_workers, run_jobs
from mupscale_cli.plan import TensorPlan
from mupscale_cli.plan.copies import CopyMap
from mupscale_cli.plan.dims import DimMap, Strip, keep_dims


class Writer(Protocol):
    """Receives the bytes of tensors. Thread-safe."""

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces of a tensor, starting at its byte `start`; a piece may occur several times."""


# These values come from `tests/benchmarks/throughput.py` and, for noise, `tests/benchmarks/noise.py`.
BLOCK_BYTES = 4 << 20  # of the target: small enough for the cache, large enough that a model has few blocks
_SHORT_ROW = 1 << 10  # bytes; shorter rows are expanded for each of their copies
_SHORT_RUN = 1 << 14  # bytes; if runs of rows are shorter on average, rows are repeated in memory before writing
_NOISY = 4  # blocks with noise are this many times smaller, because noise is computed in wider types
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
    """Read, expand and write tensors, one block at a time on each thread.

    Args:
        tensors: tensors to write, in output order.
        stored: tensors of the source by name.
        writer: receives the bytes.
        progress: called with the bytes just written.
        block_bytes: size of a block of the output in bytes.
        nonfinite: counts or refuses NaNs and infinities. Default: refuse them.
        part: range in the concatenated bytes of all tensors; blocks that start in it are written. Default: all.

    Returns:
        The standard deviation of the noise, by name of each written tensor with noise.

    Raises:
        CheckpointError: the source changed while it was read, or contains values that are not finite.
        OutputError: a file cannot be written.
    """
    nonfinite = nonfinite or NonFinite(is_allowed=False)
    work = _Work(stored, writer, progress, nonfinite)
    additions: dict[str, _Additions] = {}
    with ExitStack() as stack:
        workspaces = [_Workspace(stack.enter_context(RowReader())) for _ in range(num_workers())]
        jobs = _jobs(_tensor_parts(tensors, part), block_bytes, additions, ahead=len(workspaces))
        run_jobs(jobs, [partial(_run_job, workspace=workspace, work=work) for workspace in workspaces])
    return {name: added.noise_std for name, added in additions.items() if added.tensor.noise is not None}


@dataclass(frozen=True)
class _Work:
    """What all jobs share."""

    stored: Mapping[str, ReadableTensor]
    writer: Writer
    progress: Progress
    nonfinite: NonFinite
    means: dict[tuple[str, int, int], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _TensorPart:
    """A tensor to write, at least in part.

    Attributes:
        tensor: its plan.
        blocks: range of the tensor's bytes; blocks that start in it are written.
    """

    tensor: TensorPlan
    blocks: range


def _tensor_parts(tensors: Iterable[TensorPlan], part: range | None) -> list[_TensorPart]:
    """Return the tensors that overlap a range of their concatenated bytes; all tensors if there is no range."""
    parts, position = [], 0
    for tensor in tensors:
        size = tensor.target.num_bytes
        low, high = (0, size) if part is None else (max(part.start - position, 0), min(part.stop - position, size))
        position += size
        if low < high:
            parts.append(_TensorPart(tensor, range(low, high)))
    return parts


@dataclass(frozen=True)
class _MeasureJob:
    """Measures the source of a tensor to find the size of what is added to it."""

    added: _Additions


@dataclass(frozen=True)
class _BlockJob:
    """Writes a block of a tensor."""

    tensor: TensorPlan
    block: Block
    added: _Additions | None


class _Workspace:
    """The reader and the scratch buffers of one thread."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self._buffers: dict[str, bytearray] = {}

    def scratch(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> tuple[memoryview, torch.Tensor]:
        """Return a scratch buffer as bytes and as a tensor of the given shape; valid until the next call for `use`."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._buffers.get(use, b"")) < size:
            self._buffers[use] = bytearray(size)
        buffer = self._buffers[use]
        return memoryview(buffer)[:size], torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).view(*shape)

    def rows(
        self, tensor: TensorPlan, stored: ReadableTensor, start: int, count: int
    ) -> tuple[memoryview, torch.Tensor]:
        """Read rows of the source; return them as bytes and as a tensor, (rows, columns)."""
        dtype = DTYPES[tensor.source.dtype]
        columns = math.prod(dim.size for dim in tensor.dims[1:])
        data, rows = self.scratch("source", (count, columns), element_dtype(dtype))
        self.reader.read(stored, start * columns * dtype.size, data)
        return data, rows

    def mean_rows(self, tensor: TensorPlan, stored: ReadableTensor, block: Block) -> torch.Tensor:
        """Return the mean of the runs of source rows that a block holds the mean of, (rows, columns)."""
        assert block.averaged is not None
        count, step = block.averaged
        starts = range(block.row, block.row + count * step, step)

        def units() -> Iterator[torch.Tensor]:
            for begin in range(0, count, MEAN_UNITS):
                chosen = starts[begin : begin + MEAN_UNITS]
                if step == block.num_rows:
                    _, rows = self.rows(tensor, stored, chosen[0], len(chosen) * step)
                    yield rows.view(len(chosen), step, -1)
                else:
                    yield torch.stack([self.rows(tensor, stored, row, block.num_rows)[1].clone() for row in chosen])

        return mean_of_units(units(), count).to(DTYPES[tensor.source.dtype].torch)


def _jobs(
    parts: Sequence[_TensorPart], block_bytes: int, additions: dict[str, _Additions], ahead: int
) -> Iterator[_BlockJob | _MeasureJob]:
    """Yield the blocks of all tensors; schedule the measurement of what is added to a tensor a few tensors early.

    Args:
        parts: tensors to write, at least in part.
        block_bytes: size of a block of the output in bytes.
        additions: receives what is added to each tensor that has noise or initial weights.
        ahead: number of tensors to measure in advance.
    """
    measured = (part.tensor for part in parts if _has_additions(part.tensor))
    for part in parts:
        tensor, row_bytes, position = part.tensor, _wide_row_bytes(part.tensor), 0
        if _has_additions(tensor):
            for upcoming in itertools.islice(measured, ahead if not additions else 1):
                additions[upcoming.target.name] = _Additions(upcoming)
                yield _MeasureJob(additions[upcoming.target.name])
        added = additions.get(tensor.target.name)
        for block in row_blocks(_rows(tensor), row_bytes, block_bytes if added is None else block_bytes // _NOISY):
            if position in part.blocks:
                yield _BlockJob(tensor, block, added)
            position += block.num_rows_written * row_bytes
        assert position == tensor.target.num_bytes


def _wide_row_bytes(tensor: TensorPlan) -> int:
    return DTYPES[tensor.source.dtype].size * math.prod(dim.wide_size for dim in tensor.dims[1:])


def _run_job(job: _BlockJob | _MeasureJob, *, workspace: _Workspace, work: _Work) -> None:
    """Measure a tensor for what is added to it; or read a block, expand it, and write it to its places."""
    if isinstance(job, _MeasureJob):
        job.added.measure(workspace, work)
        return
    tensor, block, added, nonfinite = job.tensor, job.block, job.added, work.nonfinite
    row_bytes = _wide_row_bytes(tensor)
    if tensor.fill is not None:
        _fill_block(tensor, tensor.fill, block, workspace, work)
        return
    stored = work.stored[tensor.source.name]
    if block.averaged is None:
        read, source = workspace.rows(tensor, stored, block.row, block.num_rows)
    else:
        key = (tensor.target.name, block.row, block.num_rows)
        source = work.means[key] if key in work.means else workspace.mean_rows(tensor, stored, block)
        work.means[key] = source
    source = source.view(block.num_rows, *(dim.size for dim in tensor.dims[1:]))
    nonfinite.check_source(tensor, source, block.row)
    # Writing a row twice is cheaper than expanding it twice, except for short rows. With noise, all rows differ.
    is_plain = added is None and row_bytes >= _SHORT_ROW
    distinct = (distinct_rows if is_plain else all_rows)(block.strips, block.num_wide_rows)
    num_shares = len(block.groups[0])
    if is_plain and num_shares == 1 and block.averaged is None and _is_unchanged(tensor, distinct.strips):
        stack, buffers = source[None], [read]
    else:
        shape = (num_shares, distinct.num_rows, *(dim.wide_size for dim in tensor.dims[1:]))
        data, stack = workspace.scratch("target", shape, source.dtype)
        _expand(tensor, distinct.strips, source, stack)
        nonfinite.check_overflow(tensor, source, stack)
        buffers = _shares(data, num_shares)
    if is_plain and 1 < len(distinct.runs) > block.num_wide_rows * row_bytes // _SHORT_RUN:
        buffers = _repeat_rows(stack, _order(block.strips, block.num_wide_rows), workspace)
        distinct = all_rows(distinct.strips, block.num_wide_rows)
    for group in block.groups:
        if added is not None:
            data, noisy = workspace.scratch("noisy", stack.shape, stack.dtype)
            added.add(stack, noisy, block, group)
            buffers = _shares(data, num_shares)
        for share, (place, buffer) in enumerate(zip(group, buffers, strict=True)):
            for run in place:
                if added is not None:
                    check_noisy(tensor, noisy[share, run.first : run.first + run.count])
                pieces = _pieces(buffer, row_bytes, distinct.within(run.first, run.count))
                work.writer.write(tensor.target.name, run.row * row_bytes, pieces)
                work.progress(run.count * row_bytes)


def _fill_block(tensor: TensorPlan, value: float, block: Block, workspace: _Workspace, work: _Work) -> None:
    """Write one value to all places of a block, without reading the source."""
    row_bytes = _wide_row_bytes(tensor)
    shape = (block.num_wide_rows, row_bytes // DTYPES[tensor.source.dtype].size)
    data, rows = workspace.scratch("target", shape, element_dtype(DTYPES[tensor.source.dtype]))
    rows.fill_(value)
    for run in (run for group in block.groups for place in group for run in place):
        work.writer.write(tensor.target.name, run.row * row_bytes, [data[: run.count * row_bytes]])
        work.progress(run.count * row_bytes)


def _is_unchanged(tensor: TensorPlan, rows: Sequence[Strip]) -> bool:
    """Return whether the distinct rows of a block equal the source rows, so that they need no expansion."""
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
    """Split the bytes of a block into those of its shares."""
    size = len(data) // num_shares
    return [data[share * size : (share + 1) * size] for share in range(num_shares)]


def _pieces(data: memoryview, row_bytes: int, runs: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Return the bytes of runs of rows, each given as first row and count."""
    pieces, last = [], None
    for run in runs:  # there may be as many runs as rows, and most equal the previous one
        if run != last:
            piece, last = data[run[0] * row_bytes : sum(run) * row_bytes], run
        pieces.append(piece)
    return pieces


def _repeat_rows(stack: torch.Tensor, order: torch.Tensor, workspace: _Workspace) -> list[memoryview]:
    """Return the shares of a block with repeated rows, which for short rows is faster than gathering them on write."""
    data, wide = workspace.scratch("wide", (len(stack), len(order), *stack.shape[2:]), stack.dtype)
    torch.index_select(stack, 1, order, out=wide)
    return _shares(data, len(stack))


@lru_cache(maxsize=64)
def _order(strips: tuple[Strip, ...], num_wide_rows: int) -> torch.Tensor:
    return torch.tensor(distinct_rows(strips, num_wide_rows).order)


def _expand(tensor: TensorPlan, rows: Sequence[Strip], source: torch.Tensor, stack: torch.Tensor) -> None:
    """Fill `stack`, (shares, rows, ...), with the shares of a block."""
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


def _has_additions(tensor: TensorPlan) -> bool:
    return tensor.noise is not None or tensor.init is not None


@dataclass(frozen=True)
class _Additions:
    """The noise and the initial weights of a tensor; one thread measures their size, and others wait for the result."""

    tensor: TensorPlan
    _stds: Future[tuple[float, float]] = field(default_factory=Future)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise; waits until it has been measured.

        Raises:
            CheckpointError: the source could not be measured.
        """
        return self._stds.result()[0]

    @cached_property
    def _initial(self) -> InitialWeights | None:
        return None if self.tensor.init is None else InitialWeights(self.tensor)

    def measure(self, workspace: _Workspace, work: _Work) -> None:
        """Measure the source on disk."""
        stored = work.stored[self.tensor.source.name]

        def read(start: int, count: int) -> torch.Tensor:
            _, rows = workspace.rows(self.tensor, stored, start, count)
            work.nonfinite.check_source(self.tensor, rows, start)  # before the norm becomes NaN
            return rows

        self.measure_rows(read)

    def measure_rows(self, rows: Rows) -> None:
        """Measure rows of the source; threads that wait for the result get the error if this fails."""
        try:
            noise = 0.0 if self.tensor.noise is None else measured_std(self.tensor, rows)
            self._stds.set_result((noise, 0.0 if self.tensor.init is None else initial_std(self.tensor, rows)))
        except BaseException as error:
            self._stds.set_exception(error)
            raise

    def add(self, stack: torch.Tensor, out: torch.Tensor, block: Block, places: Sequence[Place]) -> None:
        """Fill `out` with the shares of a block plus noise, and with the initial weights of fresh elements."""
        noise_std, initial_std = self._stds.result()
        columns = [dim.strips for dim in self.tensor.dims[1:]]
        has_fresh = any(digit.units.num_fresh for dim in (block.strips, *columns) for s in dim for digit in s.digits)
        if has_fresh or self._initial is not None:  # noise that preserves the function leaves fresh elements alone
            stack = out.copy_(stack)
        if self._initial is not None:
            for target, place in zip(out, places, strict=True):
                for run in place:
                    self._initial.fill(target[run.first : run.first + run.count], run.row, initial_std)
        if self.tensor.noise is not None:
            add_noise(stack, out, self.tensor.noise, noise_std, block.strips, columns, places)


def expand_whole(tensor: TensorPlan, source: torch.Tensor, nonfinite: NonFinite | None = None) -> torch.Tensor:
    """Return a widened tensor, computed in memory.

    Args:
        tensor: plan of the tensor.
        source: contiguous, of the narrow shape and the type of the plan's source.
        nonfinite: counts or refuses NaNs and infinities. Default: refuse them.

    Raises:
        CheckpointError: the source contains values that are not finite, or scaling makes some.
    """
    if tensor.fill is not None:
        return torch.full(tensor.target.shape, tensor.fill, dtype=source.dtype)
    nonfinite = nonfinite or NonFinite(is_allowed=False)
    nonfinite.check_source(tensor, source, 0)
    rows = _rows(tensor)
    place = (Run(0, 0, rows.wide_size),)
    whole = Block(0, rows.size, rows.wide_size, rows.strips, ((place,),))
    shaped = source.view(rows.size, *(dim.size for dim in tensor.dims[1:]))
    stack = torch.empty((1, rows.wide_size, *(dim.wide_size for dim in tensor.dims[1:])), dtype=source.dtype)
    _expand(tensor, rows.strips, shaped, stack)
    nonfinite.check_overflow(tensor, source, stack)
    if _has_additions(tensor):
        added = _Additions(tensor)
        added.measure_rows(lambda start, count: shaped.view(rows.size, -1)[start : start + count])
        added.add(stack.clone(), stack, whole, (place,))
    return stack.view(tensor.target.shape)


def _rows(tensor: TensorPlan) -> DimMap:
    """Return the map of a tensor's rows; a scalar has one row."""
    return tensor.dims[0] if tensor.dims else _ONE_ROW
