"""Reading stored tensors into memory."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import torch
from torch import Tensor

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.expand import element_dtype
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import plain


def read_tensor(stored: ReadableTensor) -> Tensor:
    """Read a tensor.

    Raises:
        CheckpointError: a file ends too early.
    """
    shape = stored.spec.shape
    return read_rows(stored, shape[0] if shape else 1).view(shape)


def read_rows(stored: ReadableTensor, count: int) -> Tensor:
    """Read the first rows of a tensor, (count, ...); a scalar has one row.

    Raises:
        CheckpointError: a file ends too early.
    """
    shape = stored.spec.shape[1:]
    dtype = DTYPES[stored.spec.dtype]
    buffer = bytearray(count * math.prod(shape) * dtype.size)
    if not buffer:
        return torch.empty((count, *shape), dtype=element_dtype(dtype), device="cpu")
    with RowReader() as reader:
        reader.read(stored, 0, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=element_dtype(dtype)).view(count, *shape)


class MappedFile:
    """A file whose bytes are mapped into memory. What is written to that memory never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb", opener=plain) as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, stored: ReadableTensor, offset: int) -> Tensor:
        """Return a tensor whose bytes begin at an offset of the file; it keeps them mapped.

        Raises:
            CheckpointError: the file ends too early.
        """
        shape, dtype = stored.spec.shape, DTYPES[stored.spec.dtype]
        if offset + stored.spec.num_bytes > len(self._bytes):
            raise CheckpointError(f"`{self.path}` ends in the middle of `{stored.spec.name}`")
        count = math.prod(shape)
        return torch.frombuffer(self._bytes, dtype=element_dtype(dtype), count=count, offset=offset).view(shape)

    def require_whole(self) -> None:
        """Check that the file still has all its bytes: reading beyond its end would kill the process.

        Raises:
            CheckpointError: it has been cut.
        """
        if self._bytes.size() < len(self._bytes):
            raise CheckpointError(
                f"`{self.path}` became shorter while it was read",
                hint="start again when no other program writes to this file",
            )

    def release(self) -> None:
        """Take the pages that were read out of this process's memory; the system's cache keeps them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)


def map_tensor(stored: ReadableTensor, files: dict[Path, MappedFile]) -> tuple[Tensor, MappedFile | None]:
    """Map a tensor from its file, or read it if its bytes are not consecutive in one.

    Args:
        stored: the tensor.
        files: the files that are mapped so far; others are added.

    Returns:
        The tensor, and the file that it is mapped from.

    Raises:
        CheckpointError: a file ends too early.
    """
    ranges = list(stored.byte_ranges(0, stored.spec.num_bytes)) if stored.spec.num_bytes else []
    if len(ranges) != 1:
        return read_tensor(stored), None
    file = files.get(ranges[0].file) or files.setdefault(ranges[0].file, MappedFile(ranges[0].file))
    return file.tensor(stored, ranges[0].offset), file
