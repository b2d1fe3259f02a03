"""Reading stored tensors into memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.expand import element_dtype


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
