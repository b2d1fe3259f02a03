"""The one loop: read rows, expand, write rows, for every tensor of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mupscale_cli.blocks import Block, Place, Run, row_blocks
from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.source import RowReader
from mupscale_cli.checkpoint.target import ShardWriter
from mupscale_cli.errors import CheckpointError
from mupscale_cli.expand import DimIndex, dim_index, element_dtype, expand
from mupscale_cli.layout import DimMap, keep_dims
from mupscale_cli.noise import Rows, add_noise, measured_std
from mupscale_cli.perturbation import Noise
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.specs import DTYPES


class Writer(Protocol):
    """Something that takes the bytes of tensors at their places."""

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Take bytes of a tensor from its byte `start` on."""


BLOCK_BYTES = 8 << 20  # of the target; it fits a cache, and a large model is still few blocks
_NOISY = 8  # noise is made in wider types, so its blocks are so many times smaller
Progress = Callable[[int], None]
(_ONE_ROW,) = keep_dims((1,))


def convert(
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    directory: Path,
    *,
    metadata: Mapping[str, str],
    reserve: int = 0,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, float]:
    """Write every shard of a plan.

    Args:
        plan: what to write.
        tensors: where the source's tensors are.
        directory: where the shards are written, under the plan's names.
        metadata: for the header of each shard.
        reserve: blank bytes to leave in each header.
        progress: called with the bytes of tensor data just written.
        block_bytes: size of a block of the output; memory is a few times that.

    Returns:
        The standard deviation of the noise of every tensor that has some.

    Raises:
        CheckpointError: the source changed while it was read, or what would be scaled is not finite.
        OutputError: the disk refused.
    """
    sizes: dict[str, float] = {}
    for shard in plan.shards:
        specs = tuple(tensor.target for tensor in shard.tensors)
        with ShardWriter(directory / shard.file, specs, metadata, reserve) as writer:
            sizes |= write_tensors(shard.tensors, tensors, writer, progress=progress, block_bytes=block_bytes)
    return sizes


def write_tensors(
    tensors: Iterable[TensorPlan],
    stored: Mapping[str, StoredTensor],
    writer: Writer,
    *,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, float]:
    """Read, expand and write tensors, one block at a time.

    Args:
        tensors: what to write.
        stored: where the sources are, by name.
        writer: takes the bytes.
        progress: called with the bytes just written.
        block_bytes: size of a block of the output.

    Returns:
        The standard deviation of the noise of every tensor that has some.
    """
    with RowReader() as reader:
        stds = {
            tensor.target.name: _write_tensor(tensor, stored[tensor.source.name], reader, writer, progress, block_bytes)
            for tensor in tensors
        }
    return {name: std for name, std in stds.items() if std is not None}


def _write_tensor(
    tensor: TensorPlan,
    stored: StoredTensor,
    reader: RowReader,
    writer: Writer,
    progress: Progress,
    block_bytes: int,
) -> float | None:
    """Write one tensor; returns the standard deviation of its noise."""
    if tensor.target.num_elements == 0:
        return None
    dtype = DTYPES[tensor.source.dtype]
    columns = tensor.dims[1:]
    row_bytes = dtype.size * math.prod(dim.size for dim in columns)
    wide_row_bytes = dtype.size * math.prod(dim.wide_size for dim in columns)

    def read(start: int, count: int) -> torch.Tensor:
        buffer, rows = _blank((count, row_bytes // dtype.size), element_dtype(tensor.source.dtype, dtype.size))
        reader.read(stored, start * row_bytes, memoryview(buffer))
        return rows

    noise = _TensorNoise.of(tensor, read)
    for block in row_blocks(_rows(tensor), wide_row_bytes, block_bytes if noise is None else block_bytes // _NOISY):
        source = read(block.row, block.num_rows).view(block.num_rows, *(dim.size for dim in columns))
        _check_finite(tensor, source)
        buffer, stack = _expanded(tensor, block, source)
        for group in block.groups:
            if noise is not None:
                buffer, noisy = _blank(stack.shape, stack.dtype)
                noisy.copy_(noise.added(stack, block, group))
            for piece, place in enumerate(group):
                for run in place:
                    if noise is not None:
                        _check_noisy(tensor, noisy[piece, run.first : run.first + run.count])
                    start = (piece * block.num_wide_rows + run.first) * wide_row_bytes
                    data = memoryview(buffer)[start : start + run.count * wide_row_bytes]
                    writer.write(tensor.target.name, run.row * wide_row_bytes, data)
                    progress(len(data))
    return None if noise is None else noise.std


def _blank(shape: Sequence[int], dtype: torch.dtype) -> tuple[bytearray, torch.Tensor]:
    """Bytes, and the tensor that they are."""
    buffer = bytearray(math.prod(shape) * dtype.itemsize)
    return buffer, torch.frombuffer(buffer, dtype=dtype).view(*shape)


def _expanded(tensor: TensorPlan, block: Block, source: torch.Tensor) -> tuple[bytearray, torch.Tensor]:
    """The shares of a block, (shares, rows, ...): as bytes and as a tensor."""
    columns, num_pieces = tensor.dims[1:], len(block.groups[0])
    shape = (num_pieces, block.num_wide_rows, *(dim.wide_size for dim in columns))
    buffer, stack = _blank(shape, source.dtype)
    for piece, target in enumerate(stack):
        expand(
            source,
            target,
            (block.strips, *(dim.strips for dim in columns)),
            scale=tensor.scale * tensor.shrink,
            offset=tensor.offset,
            piece=tensor.piece * num_pieces + piece,
            num_pieces=tensor.name_pieces * num_pieces,
            first_only=tensor.first_only,
            fresh=tensor.fresh,
        )
    return buffer, stack


@dataclass(frozen=True)
class _TensorNoise:
    """The noise of a tensor that is being written."""

    noise: Noise
    std: float
    columns: Sequence[DimIndex]

    @classmethod
    def of(cls, tensor: TensorPlan, read: Rows) -> _TensorNoise | None:
        """The noise that a plan asks for, sized by the source."""
        if tensor.noise is None:
            return None
        is_centred = tensor.noise.perturbation.mode == "preserving"
        columns = [dim_index(dim.strips, dim.wide_size) for dim in tensor.dims[1:]] if is_centred else []
        return cls(tensor.noise, measured_std(tensor, read), columns)

    def added(self, stack: torch.Tensor, block: Block, places: Sequence[Place]) -> torch.Tensor:
        """The shares of a block at their places, with noise."""
        return add_noise(stack, self.noise, self.std, block.strips, self.columns, places)


def expand_whole(tensor: TensorPlan, source: torch.Tensor) -> torch.Tensor:
    """The widened tensor in memory.

    Args:
        tensor: how it is made.
        source: contiguous, of the narrow shape and the type of the plan's source.

    Raises:
        CheckpointError: what would be scaled is not finite.
    """
    _check_finite(tensor, source)
    rows = _rows(tensor)
    place = (Run(0, 0, rows.wide_size),)
    whole = Block(0, rows.size, rows.wide_size, rows.strips, ((place,),))
    shaped = source.view(rows.size, *(dim.size for dim in tensor.dims[1:]))
    _, stack = _expanded(tensor, whole, shaped)
    noise = _TensorNoise.of(tensor, lambda start, count: shaped.view(rows.size, -1)[start : start + count])
    return (stack if noise is None else noise.added(stack, whole, (place,))).view(tensor.target.shape)


def _rows(tensor: TensorPlan) -> DimMap:
    """The map of the rows; a scalar is one row."""
    return tensor.dims[0] if tensor.dims else _ONE_ROW


def _check_noisy(tensor: TensorPlan, rows: torch.Tensor) -> None:
    """Refuse noise that the tensor's type cannot hold."""
    if not bool(torch.isfinite(rows).all()):
        raise CheckpointError(
            f"with its noise, `{tensor.target.name}` has values that {tensor.target.dtype} cannot hold",
            hint="take less noise, or widen the checkpoint in float32 or bfloat16",
        )


def _check_finite(tensor: TensorPlan, source: torch.Tensor) -> None:
    if (tensor.is_scaled or tensor.noise is not None) and not bool(torch.isfinite(source).all()):
        raise CheckpointError(
            f"`{tensor.source.name}` holds values that are not finite (NaN or infinity), and would be scaled",
            hint="the checkpoint is broken there; take an earlier one",
        )
