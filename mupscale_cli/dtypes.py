"""The table of data types, and a tensor's entry in a header. Imports torch only when one of its types is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """A data type as the safetensors header names it.

    Attributes:
        name: the header's name, for instance `BF16`.
        torch_name: torch's name, for instance `bfloat16`.
        size: bytes per element.
        kind: `float` can be scaled and split; `integer` can only be copied; `packed` can be neither, since its
            elements have no meaning without scales or bit positions that are stored elsewhere.
        digits: significant binary digits of a float (24 for float32); 0 for the other kinds.
    """

    name: str
    torch_name: str
    size: int
    kind: Literal["float", "integer", "packed"]
    digits: int = 0

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounding to nearest in this type (dimensionless)."""
        return 2.0**-self.digits if self.digits else 0.0

    @property
    def torch(self) -> torch.dtype:
        """The torch data type; imports torch."""
        import torch

        dtype: torch.dtype = getattr(torch, self.torch_name)
        return dtype


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("F64", "float64", 8, "float", 53),
        DType("F32", "float32", 4, "float", 24),
        DType("F16", "float16", 2, "float", 11),
        DType("BF16", "bfloat16", 2, "float", 8),
        DType("I64", "int64", 8, "integer"),
        DType("U64", "uint64", 8, "integer"),
        DType("I32", "int32", 4, "integer"),
        DType("U32", "uint32", 4, "integer"),
        DType("I16", "int16", 2, "integer"),
        DType("U16", "uint16", 2, "integer"),
        DType("I8", "int8", 1, "integer"),
        DType("U8", "uint8", 1, "integer"),
        DType("BOOL", "bool", 1, "integer"),
        DType("F8_E4M3", "float8_e4m3fn", 1, "packed"),
        DType("F8_E5M2", "float8_e5m2", 1, "packed"),
        DType("F8_E8M0", "float8_e8m0fnu", 1, "packed"),
        DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 1, "packed"),
        DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 1, "packed"),
    )
}
_BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in DTYPES.values()}
FLOATS = {dtype.torch_name: dtype for dtype in DTYPES.values() if dtype.kind == "float"}  # by torch's name


def dtype_of(dtype: torch.dtype) -> DType:
    """Look up the entry of a torch data type.

    Raises:
        KeyError: safetensors has no such type; complex numbers are an example.
    """
    return _BY_TORCH_NAME[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, data type and shape of a tensor.

    Attributes:
        name: key in the state dict.
        dtype: key of `DTYPES`.
        shape: number of elements along each dimension; empty for a scalar.
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
