"""Values that are not finite: refused or counted where they are read, refused where scaling or noise makes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.errors import CheckpointError
from mupscale_cli.plan import TensorPlan

_LARGER_TYPE = "widen the checkpoint in float32 or bfloat16"


@dataclass(frozen=True, slots=True)
class NonFiniteCounts:
    """What a `NonFinite` has met: by tensor of the source, by first row of a block; and widened tensors."""

    rows: Mapping[str, Mapping[int, int]]
    overflowed: frozenset[str]


class NonFinite:
    """The NaNs and infinities that a run meets, from several threads.

    Attributes:
        is_allowed: whether they are counted; else the first one is an error.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self.is_allowed = is_allowed
        self._overflowed: set[str] = set()
        self._rows: dict[str, dict[int, int]] = {}  # by tensor and first row, since a block may be read for many places
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """How many each tensor of the source holds, those that hold some; in the order of their names."""
        return {name: sum(rows.values()) for name, rows in sorted(self._rows.items())}

    @property
    def overflowed(self) -> list[str]:
        """Widened tensors in which scaling made infinities of finite values."""
        return sorted(self._overflowed)

    @property
    def found(self) -> NonFiniteCounts:
        """What was met, to be told to another process."""
        return NonFiniteCounts(dict(self._rows), frozenset(self._overflowed))

    def merge(self, found: NonFiniteCounts) -> None:
        """Take what was met elsewhere."""
        for name, counts in found.rows.items():
            rows = self._rows.setdefault(name, {})
            for row, count in counts.items():
                rows[row] = max(count, rows.get(row, 0))
        self._overflowed |= found.overflowed

    def note(self, tensor: TensorPlan, source: Tensor, row: int) -> None:
        """Look at rows of the source, from number `row` on.

        Raises:
            CheckpointError: there are some, and they are not allowed, or noise would be added to them.
        """
        if not source.is_floating_point() or _is_finite(source):
            return
        if tensor.noise is not None or not self.is_allowed:
            raise _found(tensor, source, row)
        count = int(source.numel() - source.isfinite().sum())
        with self._lock:
            rows = self._rows.setdefault(tensor.source.name, {})
            rows[row] = max(count, rows.get(row, 0))

    def note_overflow(self, tensor: TensorPlan, source: Tensor, target: Tensor) -> None:
        """Look at rows that were widened, where their scale may have made them too large for their type.

        Raises:
            CheckpointError: finite values became infinite, and that is not allowed.
        """
        may_grow = any(abs(c) > 1 for c, _ in tensor.parts) or tensor.offset or tensor.shrink > 1
        if not may_grow or not target.is_floating_point() or _is_finite(target):
            return
        if not _is_finite(source):  # where the target is infinite too; what else became so is not looked for
            return
        if not self.is_allowed:
            raise CheckpointError(
                f"`{tensor.target.name}` has values that {tensor.target.dtype} cannot hold once they are multiplied by "
                f"{max(abs(c) for c, _ in tensor.parts):.6g}",
                hint=f"{_LARGER_TYPE}, or let them become infinite with `--allow-nonfinite`",
            )
        with self._lock:
            self._overflowed.add(tensor.target.name)


def check_noisy(tensor: TensorPlan, rows: Tensor) -> None:
    """Refuse noise that the tensor's type cannot hold.

    Raises:
        CheckpointError: some values are infinite.
    """
    if not _is_finite(rows):
        raise CheckpointError(
            f"with its noise, `{tensor.target.name}` has values that {tensor.target.dtype} cannot hold",
            hint=f"take less noise, or {_LARGER_TYPE}",
        )


def _is_finite(values: Tensor) -> bool:
    """Whether all are; NaN and infinities show in the extremes."""
    return not values.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(values))


def _found(tensor: TensorPlan, source: Tensor, row: int) -> CheckpointError:
    index: list[Any] = (~source.isfinite()).nonzero()[0].tolist()
    value = float(source[tuple(index)])
    index = [index[0] + row, *index[1:]][: len(tensor.source.shape)]
    hint = "the checkpoint is broken there; take an earlier one"
    if tensor.noise is None:
        hint += ", or copy such values as they are with `--allow-nonfinite`"
    place = f" ({value} at {tuple(index)})" if index else f" ({value})"
    return CheckpointError(f"`{tensor.source.name}` holds values that are not finite{place}", hint=hint)
