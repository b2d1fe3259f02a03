"""Checks for NaNs and infinities in the source, and for overflow caused by scaling or noise."""

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
    """The counts of a `NonFinite`, for sending to another process.

    Attributes:
        rows: number of NaNs and infinities, by source tensor and first row of a block.
        overflowed: widened tensors with values that became infinite.
    """

    rows: Mapping[str, Mapping[int, int]]
    overflowed: frozenset[str]


class NonFinite:
    """Refuses or counts the NaNs and infinities of a run. Thread-safe.

    Attributes:
        is_allowed: whether they are counted; otherwise the first one is an error.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self.is_allowed = is_allowed
        self._overflowed: set[str] = set()
        self._rows: dict[str, dict[int, int]] = {}  # by tensor and first row, since a block may be read several times
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """Number of NaNs and infinities by source tensor, sorted by name; tensors without any are omitted."""
        return {name: sum(rows.values()) for name, rows in sorted(self._rows.items())}

    @property
    def overflowed(self) -> list[str]:
        """Widened tensors in which scaling turned finite values into infinities."""
        return sorted(self._overflowed)

    @property
    def snapshot(self) -> NonFiniteCounts:
        """The counts so far."""
        return NonFiniteCounts(dict(self._rows), frozenset(self._overflowed))

    def merge(self, other: NonFiniteCounts) -> None:
        """Add the counts of another process."""
        for name, counts in other.rows.items():
            rows = self._rows.setdefault(name, {})
            for row, count in counts.items():
                rows[row] = max(count, rows.get(row, 0))
        self._overflowed |= other.overflowed

    def check_source(self, tensor: TensorPlan, source: Tensor, row: int) -> None:
        """Check rows of the source, starting at row `row` of the tensor.

        A tensor without a rule is a trainer's own value, such as the best score so far, which begins at infinity.

        Raises:
            CheckpointError: a value is not finite, and this is not allowed or the tensor gets noise.
        """
        if not tensor.rule or not source.is_floating_point() or _is_finite(source):
            return
        if tensor.noise is not None or not self.is_allowed:
            raise _nonfinite_error(tensor, source, row)
        count = int(source.numel() - source.isfinite().sum())
        with self._lock:
            rows = self._rows.setdefault(tensor.source.name, {})
            rows[row] = max(count, rows.get(row, 0))

    def check_overflow(self, tensor: TensorPlan, source: Tensor, target: Tensor) -> None:
        """Check widened rows for values that their scale has made too large for their type.

        Raises:
            CheckpointError: finite values became infinite, and this is not allowed.
        """
        may_grow = any(abs(c) > 1 for c, _ in tensor.parts) or tensor.offset or tensor.shrink > 1
        if not may_grow or not target.is_floating_point() or _is_finite(target):
            return
        if not _is_finite(source):  # infinities of the source would hide an overflow, so it is not searched for
            return
        if not self.is_allowed:
            raise CheckpointError(
                f"`{tensor.target.name}` has values that overflow {tensor.target.dtype} when multiplied by "
                f"{max(abs(c) for c, _ in tensor.parts):.6g}",
                hint=f"{_LARGER_TYPE}, or let them become infinite with `--allow-nonfinite`",
            )
        with self._lock:
            self._overflowed.add(tensor.target.name)


def check_noisy(tensor: TensorPlan, rows: Tensor) -> None:
    """Check that no value overflows the tensor's type after noise is added.

    Raises:
        CheckpointError: a value is not finite.
    """
    if not _is_finite(rows):
        raise CheckpointError(
            f"with noise, `{tensor.target.name}` has values that overflow {tensor.target.dtype}",
            hint=f"use less noise, or {_LARGER_TYPE}",
        )


def _is_finite(values: Tensor) -> bool:
    """Return whether all values are finite; NaNs and infinities show up in the extremes."""
    return not values.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(values))


def _nonfinite_error(tensor: TensorPlan, source: Tensor, row: int) -> CheckpointError:
    index: list[Any] = (~source.isfinite()).nonzero()[0].tolist()
    value = float(source[tuple(index)])
    index = [index[0] + row, *index[1:]][: len(tensor.source.shape)]
    hint = "the checkpoint is damaged; use an earlier one"
    if tensor.noise is None:
        hint += ", or copy these values unchanged with `--allow-nonfinite`"
    place = f" ({value} at {tuple(index)})" if index else f" ({value})"
    return CheckpointError(f"`{tensor.source.name}` contains values that are not finite{place}", hint=hint)
