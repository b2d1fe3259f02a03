"""Read tensors of torch.distributed.checkpoint from their chunks, each an archive of torch.save within a file.

A chunk is a box of a tensor's elements, the part that one process of FSDP or of tensor parallelism held. Rows are read
from their place in the file, so no chunk has to be in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch.distributed.checkpoint.utils import _create_file_view

from mupscale_cli.checkpoints.containers.torch_file import data_offset
from mupscale_cli.checkpoints.header import ByteRange
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import plain
from mupscale_cli.text import first_line


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor's elements and the archive that holds it.

    Attributes:
        spec: the tensor's name and data type, and the shape of the box.
        corner: the index in the tensor of the box's first element.
        file: the file that holds the archive.
        start: the archive's first byte in the file.
        num_bytes: the archive's size.
    """

    spec: TensorSpec
    corner: tuple[int, ...]
    file: Path
    start: int
    num_bytes: int

    @cached_property
    def offset(self) -> int:
        """The place of the box's first byte in the file.

        Raises:
            CheckpointError: the archive cannot be read, or its content contradicts the metadata.
        """
        try:
            with open(self.file, "rb", opener=plain) as stream:
                view = cast(BinaryIO, _create_file_view(stream, self.start, self.num_bytes))
                tensor = torch.load(view, weights_only=True, map_location="meta")
        except Exception as error:
            raise _broken(self.file, first_line(error)) from error
        name = self.spec.name
        actual = isinstance(tensor, torch.Tensor) and (tensor.dtype, tuple(tensor.shape))
        if actual != (DTYPES[self.spec.dtype].torch, self.spec.shape):
            raise _broken(self.file, f"its content contradicts the metadata of `{name}`")
        return self.start + data_offset(self.file, name, tensor, self.num_bytes)

    def runs(self, shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, ByteRange]]:
        """Yield runs of bytes that are contiguous both in the tensor and in the file.

        Args:
            shape: the tensor's shape.
            start: the first byte of the tensor to read.
            stop: the end of the bytes to read, exclusive.

        Yields:
            The place of the run's first byte in the tensor, and the range of the run in the file.
        """
        size, sizes = DTYPES[self.spec.dtype].size, self.spec.shape
        steps = [size * math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        cut = max(
            (dim for dim in range(len(shape)) if sizes[dim] != shape[dim]), default=0
        )  # later dimensions are whole
        run = size * math.prod(sizes[cut:])
        corner = sum(index * step for index, step in zip(self.corner, steps, strict=True))
        outer = [range(count) for count in sizes[:cut]]
        if outer and steps[0]:
            first_row, last_row = start // steps[0], -(-stop // steps[0])
            outer[0] = range(max(0, first_row - self.corner[0]), min(sizes[0], last_row - self.corner[0]))
        inner = [run * math.prod(sizes[dim + 1 : cut]) for dim in range(cut)]
        for index in itertools.product(*outer):
            first = corner + sum(i * step for i, step in zip(index, steps, strict=False))
            low, high = max(start, first), min(stop, first + run)
            if low < high:
                within = sum(i * step for i, step in zip(index, inner, strict=True))
                yield low, ByteRange(self.file, self.offset + within + low - first, high - low)


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor that is stored in chunks.

    Attributes:
        spec: its name, data type and shape.
        key: its name in the metadata.
        chunks: the chunks that cover it.
    """

    spec: TensorSpec
    key: str
    chunks: tuple[Chunk, ...]

    def byte_ranges(self, start: int, num_bytes: int) -> Iterator[ByteRange]:
        """Yield the ranges that hold `num_bytes` bytes from byte `start`.

        Raises:
            CheckpointError: a byte is in no chunk or in two, or a chunk cannot be read.
        """
        stop, done = start + num_bytes, start
        runs = [run for chunk in self.chunks for run in chunk.runs(self.spec.shape, start, stop)]
        for place, stretch in sorted(runs, key=lambda run: run[0]):
            if place == done:
                yield stretch
                done += stretch.num_bytes
        if done != stop or sum(stretch.num_bytes for _, stretch in runs) != num_bytes:
            folder = next((chunk.file.parent for chunk in self.chunks), Path())
            raise _broken(folder, f"chunks of `{self.spec.name}` are missing or overlap")


def _broken(path: Path, reason: str) -> CheckpointError:
    hint = "it is truncated or damaged, or does not belong to its `.metadata`; save or copy the checkpoint again"
    return CheckpointError(f"`{path}` is not a valid part of a distributed checkpoint: {reason}", hint=hint)
