"""Frozen values that everything else speaks in: data types, tensor headers. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DType:
    """A data type as the safetensors header names it.

    Attributes:
        name: the header's name, for instance `BF16`.
        size: bytes an element.
        kind: `float` can be scaled and split; `integer` can only be copied; `packed` is neither,
            since its elements have no meaning without scales or bit positions stored elsewhere.
        digits: significant binary digits of a float (24 for float32), 0 for the others.
    """

    name: str
    size: int
    kind: Literal["float", "integer", "packed"]
    digits: int = 0

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounding to nearest in this type (dimensionless)."""
        return 2.0**-self.digits if self.digits else 0.0


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("F64", 8, "float", 53),
        DType("F32", 4, "float", 24),
        DType("F16", 2, "float", 11),
        DType("BF16", 2, "float", 8),
        DType("I64", 8, "integer"),
        DType("U64", 8, "integer"),
        DType("I32", 4, "integer"),
        DType("U32", 4, "integer"),
        DType("I16", 2, "integer"),
        DType("U16", 2, "integer"),
        DType("I8", 1, "integer"),
        DType("U8", 1, "integer"),
        DType("BOOL", 1, "integer"),
        DType("F8_E4M3", 1, "packed"),
        DType("F8_E5M2", 1, "packed"),
        DType("F8_E8M0", 1, "packed"),
        DType("F8_E4M3FNUZ", 1, "packed"),
        DType("F8_E5M2FNUZ", 1, "packed"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor, without its data.

    Attributes:
        name: its key in the state dict.
        dtype: a key of `DTYPES`.
        shape: elements along each dimension; empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPES[self.dtype].size
