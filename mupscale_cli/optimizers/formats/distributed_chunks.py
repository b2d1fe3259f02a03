"""Tensors of torch.distributed.checkpoint: in chunks, each an archive of torch.save somewhere in a file.

A chunk is a box of a tensor's elements, as a process of FSDP or of tensor parallelism had it. Rows are read
from where they lie, so nothing needs a whole chunk in memory.
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

from mupscale_cli.checkpoints.header import ByteRange
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.formats.torch_reading import data_offset, first_line


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor's elements and the archive that holds it.

    Attributes:
        spec: of the box: name of the tensor, data type, shape.
        corner: the index of its first element in the tensor.
        file: the file.
        start: of the archive, in the file.
        num_bytes: of the archive.
    """

    spec: TensorSpec
    corner: tuple[int, ...]
    file: Path
    start: int
    num_bytes: int

    @cached_property
    def offset(self) -> int:
        """Of the box's first byte, from the start of the file.

        Raises:
            CheckpointError: the archive cannot be read, or holds something else.
        """
        try:
            with open(self.file, "rb") as stream:
                view = cast(BinaryIO, _create_file_view(stream, self.start, self.num_bytes))
                tensor = torch.load(view, weights_only=True, map_location="meta")
        except Exception as error:
            raise _broken(self.file, first_line(error)) from error
        name = self.spec.name
        found = isinstance(tensor, torch.Tensor) and (tensor.dtype, tuple(tensor.shape))
        if found != (DTYPES[self.spec.dtype].torch, self.spec.shape):
            raise _broken(self.file, f"it does not hold what its metadata say of `{name}`")
        return self.start + data_offset(self.file, name, tensor, self.num_bytes)

    def runs(self, shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, ByteRange]]:
        """The bytes of the box among those of the tensor.

        Args:
            shape: of the tensor.
            start: first byte that is wanted.
            stop: the one behind the last.

        Yields:
            For neighbours in both: the first byte's place in the tensor, and where they are.
        """
        size, sizes = DTYPES[self.spec.dtype].size, self.spec.shape
        steps = [size * math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        cut = max((dim for dim in range(len(shape)) if sizes[dim] != shape[dim]), default=0)  # whole behind it
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
        spec: name, data type and shape.
        key: its name in the metadata.
        chunks: which cover it.
    """

    spec: TensorSpec
    key: str
    chunks: tuple[Chunk, ...]

    def byte_ranges(self, start: int, num_bytes: int) -> Iterator[ByteRange]:
        """Where its bytes are, from byte `start` on.

        Raises:
            CheckpointError: some are in no chunk or in two, or a chunk cannot be read.
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


def _broken(path: Path, what: str) -> CheckpointError:
    hint = "it is truncated or damaged, or other files are beside its .metadata; save or copy it again"
    return CheckpointError(f"`{path}` is not a valid part of a distributed checkpoint: {what}", hint=hint)
