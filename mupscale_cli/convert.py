"""The one loop: read rows, expand, write rows, for every tensor of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from mupscale_cli.blocks import Block, row_blocks
from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.source import RowReader
from mupscale_cli.checkpoint.target import ShardWriter
from mupscale_cli.errors import CheckpointError
from mupscale_cli.expand import element_dtype, expand
from mupscale_cli.layout import DimMap, keep_dims
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.specs import DTYPES


class Writer(Protocol):
    """Something that takes the bytes of tensors at their places."""

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Take bytes of a tensor from its byte `start` on."""


BLOCK_BYTES = 8 << 20  # of the target; it fits a cache, and a large model is still few blocks
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
) -> None:
    """Write every shard of a plan.

    Args:
        plan: what to write.
        tensors: where the source's tensors are.
        directory: where the shards are written, under the plan's names.
        metadata: for the header of each shard.
        reserve: blank bytes to leave in each header.
        progress: called with the bytes of tensor data just written.
        block_bytes: size of a block of the output; memory is a few times that.

    Raises:
        CheckpointError: the source changed while it was read, or what would be scaled is not finite.
        OutputError: the disk refused.
    """
    for shard in plan.shards:
        specs = tuple(tensor.target for tensor in shard.tensors)
        with ShardWriter(directory / shard.file, specs, metadata, reserve) as writer:
            write_tensors(shard.tensors, tensors, writer, progress=progress, block_bytes=block_bytes)


def write_tensors(
    tensors: Iterable[TensorPlan],
    stored: Mapping[str, StoredTensor],
    writer: Writer,
    *,
    progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Read, expand and write tensors, one block at a time.

    Args:
        tensors: what to write.
        stored: where the sources are, by name.
        writer: takes the bytes.
        progress: called with the bytes just written.
        block_bytes: size of a block of the output.
    """
    with RowReader() as reader:
        for tensor in tensors:
            _write_tensor(tensor, stored[tensor.source.name], reader, writer, progress, block_bytes)


def _write_tensor(
    tensor: TensorPlan,
    stored: StoredTensor,
    reader: RowReader,
    writer: Writer,
    progress: Progress,
    block_bytes: int,
) -> None:
    if tensor.target.num_elements == 0:
        return
    size = DTYPES[tensor.source.dtype].size
    columns = tensor.dims[1:]
    row_bytes = size * math.prod(dim.size for dim in columns)
    wide_row_bytes = size * math.prod(dim.wide_size for dim in columns)
    for block in row_blocks(_rows(tensor), wide_row_bytes, block_bytes):
        buffer = bytearray(block.num_rows * row_bytes)
        reader.read(stored, block.row * row_bytes, memoryview(buffer))
        source = torch.frombuffer(buffer, dtype=element_dtype(tensor.source.dtype, size))
        _check_finite(tensor, source)
        _write_block(tensor, block, source, wide_row_bytes, writer)
        progress(len(block.places) * block.num_wide_rows * wide_row_bytes)


def _write_block(tensor: TensorPlan, block: Block, source: torch.Tensor, wide_row_bytes: int, writer: Writer) -> None:
    columns = tensor.dims[1:]
    out = bytearray(block.num_wide_rows * wide_row_bytes)
    target = torch.frombuffer(out, dtype=source.dtype).view(block.num_wide_rows, *(dim.wide_size for dim in columns))
    expanded: int | None = None
    for row, piece in block.places:
        if piece != expanded:
            expand(
                source.view(block.num_rows, *(dim.size for dim in columns)),
                target,
                (block.strips, *(dim.strips for dim in columns)),
                scale=tensor.scale,
                offset=tensor.offset,
                piece=tensor.piece * block.num_pieces + piece,
                num_pieces=tensor.name_pieces * block.num_pieces,
                first_only=tensor.first_only,
            )
            expanded = piece
        writer.write(tensor.target.name, row * wide_row_bytes, memoryview(out))


def expand_whole(tensor: TensorPlan, source: torch.Tensor) -> torch.Tensor:
    """The widened tensor in memory.

    Args:
        tensor: how it is made.
        source: contiguous, of the narrow shape and the type of the plan's source.

    Raises:
        CheckpointError: what would be scaled is not finite.
    """
    _check_finite(tensor, source)
    target = torch.empty(tensor.target.shape, dtype=source.dtype)
    expand(
        source, target, tuple(dim.strips for dim in tensor.dims),
        scale=tensor.scale, offset=tensor.offset, piece=tensor.piece, num_pieces=tensor.name_pieces,
        first_only=tensor.first_only,
    )  # fmt: skip
    return target


def _rows(tensor: TensorPlan) -> DimMap:
    """The map of the rows; a scalar is one row."""
    return tensor.dims[0] if tensor.dims else _ONE_ROW


def _check_finite(tensor: TensorPlan, source: torch.Tensor) -> None:
    if tensor.is_scaled and not bool(torch.isfinite(source).all()):
        raise CheckpointError(
            f"`{tensor.source.name}` holds values that are not finite (NaN or infinity), and would be scaled",
            hint="the checkpoint is broken there; take an earlier one",
        )
