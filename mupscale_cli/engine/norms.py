"""The size of a tensor's noise: the norm of the wide tensor, measured on rows of the narrow one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mupscale_cli.engine.random import fill_normal, noise_key
from mupscale_cli.plan import TensorPlan
from mupscale_cli.plan.dims import DimMap

Rows = Callable[[int, int], Tensor]  # first row and number of rows -> (rows, columns), in the stored type

_MEASURED = 1 << 18  # elements read at a time; fixed, since the order of a sum decides about its last bit
_VECTORS, _PASSES = 8, 4  # of the block Krylov method
_DIRECT = _VECTORS * _PASSES  # columns up to which a matrix is diagonalised instead
_DIGITS = 12  # binary ones that a size keeps, so that another machine's last bit makes no other noise


def measured_std(tensor: TensorPlan, rows: Rows) -> float:
    """The standard deviation of a tensor's noise, from the source.

    Args:
        tensor: whose plan has noise.
        rows: reads rows of the source; every other dimension is flattened.
    """
    noise = tensor.noise
    assert noise is not None
    if noise.std is not None:
        return noise.std
    if noise.norm is None:
        return noise.std_for(0.0)
    rows_by, columns_by = _amplitude(tensor.dims[0]), torch.ones(1)
    for dim in tensor.dims[1:]:
        columns_by = (columns_by[:, None] * _amplitude(dim)).flatten()
    scaled = _Scaled(rows, rows_by, columns_by)
    norm = (
        math.sqrt(scaled.sum_of_squares() / math.prod(noise.shape)) if noise.norm == "rms" else scaled.spectral_norm()
    )
    return _rounded(noise.std_for(abs(tensor.scale) / tensor.name_pieces * norm))


def _amplitude(dim: DimMap) -> Tensor:
    """By what each old element of a dimension counts in a norm of the wide tensor: c sqrt(m).

    A block of copies is c E W F with E and F of m orthogonal columns' worth each, so the norms of the wide
    tensor are those of the narrow one with its elements multiplied by c sqrt(m).
    """
    result = torch.empty(dim.size)
    for strip in dim.strips:
        places = torch.tensor([strip.offset])
        for digit in strip.digits:
            places = (places[:, None] + torch.arange(digit.units.size) * digit.stride).flatten()
        result[places] = abs(strip.scale) / strip.pieces * math.sqrt(strip.multiplicity)
    return result


@dataclass(frozen=True)
class _Scaled:
    """A matrix that is read in blocks of rows: diag(rows_by) W diag(columns_by)."""

    rows: Rows
    rows_by: Tensor
    columns_by: Tensor

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows of W in float32, and what they are multiplied by."""
        count = max(1, _MEASURED // len(self.columns_by))
        for start in range(0, len(self.rows_by), count):
            by = self.rows_by[start : start + count]
            yield self.rows(start, len(by)).to(torch.float32), by

    def sum_of_squares(self) -> float:
        """Over all elements."""
        weights = self.columns_by.square()
        return sum(float((block.square_() @ weights * by.square()).double().sum()) for block, by in self._blocks())

    def _gram(self, vectors: Tensor) -> Tensor:
        """A^T A times vectors (columns, vectors), in one pass over the rows."""
        # Transposed, since a few rows times a block is several times as fast as a block times a few columns.
        total, scaled = torch.zeros_like(vectors.T), vectors.T * self.columns_by
        for block, by in self._blocks():
            total += (scaled @ block.T * by.square()) @ block
        return (total * self.columns_by).T

    def spectral_norm(self) -> float:
        """The largest singular value, to about one percent from below, in a few passes over the rows.

        Block Krylov iteration with a Rayleigh-Ritz step (Musco & Musco 2015, algorithm 2); exact for few columns.
        """
        size = len(self.columns_by)
        if size <= _DIRECT:
            return _root_of_largest(self._gram(torch.eye(size)).double())
        start = torch.empty(size * _VECTORS)
        fill_normal(start, noise_key(0, "krylov"), 0)
        vectors, basis, images = start.view(size, _VECTORS), [], []
        for _ in range(_PASSES):
            vectors = torch.linalg.qr(vectors).Q
            basis.append(vectors)
            images.append(self._gram(vectors))
            vectors = images[-1]
        left, values, right = torch.linalg.svd(torch.cat(basis, 1).double(), full_matrices=False)
        kept = values > 1e-4 * values[0]  # of matrices of low rank the basis repeats itself
        mapped = torch.cat(images, 1).double() @ right.T[:, kept] / values[kept]
        return _root_of_largest(left[:, kept].T @ mapped)


def _root_of_largest(gram: Tensor) -> float:
    """The root of the largest eigenvalue of a symmetric matrix; NaN where the matrix is not finite."""
    if not bool(torch.isfinite(gram).all()):
        return math.nan
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        return value  # whoever reads the tensor next says what is wrong with it
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * (1 << _DIGITS)), exponent - _DIGITS)
