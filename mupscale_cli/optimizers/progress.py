"""Read from an optimizer's state how far its run has come."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.optimizers.formats.base import OptimizerSource

_STEP = "step"
_SEPARATORS = re.compile(r"[./]")  # of the names of a safetensors file, and of places in other files


def steps_taken(state: OptimizerSource) -> int | None:
    """Return the largest number of steps that a state counts, None if it counts none.

    Only the counters are read: tensors of one element, or plain numbers, called `step`.
    """
    counts = [*_stored_counts(state), *_plain_counts(state.content)]
    return max(counts, default=None)


def _stored_counts(state: OptimizerSource) -> Iterator[int]:
    with RowReader() as reader:
        for name, tensor in state.stored.items():
            spec = tensor.spec
            if _SEPARATORS.split(name)[-1] == _STEP and spec.num_elements == 1:
                content = bytearray(spec.num_bytes)
                reader.read(tensor, 0, memoryview(content))
                yield int(torch.frombuffer(content, dtype=DTYPES[spec.dtype].torch).item())


def _plain_counts(content: Any) -> Iterator[int]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == _STEP and isinstance(value, (int, float)):
                yield int(value)
            yield from _plain_counts(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _plain_counts(value)
