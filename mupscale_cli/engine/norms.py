"""The size of a tensor's noise, derived from the wide tensor's norm, which is measured on the narrow tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mupscale_cli.engine.random import fill_normal, noise_key
from mupscale_cli.plan import TensorPlan
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.plan.perturbation import Noise

Rows = Callable[[int, int], Tensor]  # first row and number of rows -> (rows, columns), in the stored type

_READ_ELEMENTS = 1 << 18  # elements per block; fixed, because the order of summation affects the last bit
_VECTORS, _PASSES = 8, 4  # of the block Krylov method
_DIRECT = _VECTORS * _PASSES  # matrices with at most this many columns are diagonalized instead
_DIGITS = 12  # binary digits of the result, so that last-bit differences between machines do not change the noise


def measured_std(tensor: TensorPlan, rows: Rows) -> float:
    """Measure the source to find the standard deviation of a tensor's noise.

    A standard deviation that is already known is returned if the measured one is the same up to its last digit, which
    may depend on the machine.

    Args:
        tensor: a plan with noise.
        rows: reads rows of the source, with all other dimensions flattened into columns.

    Returns:
        The standard deviation, rounded to 12 binary digits; NaN or infinity if the source is not finite.
    """
    noise = tensor.noise
    assert noise is not None
    if noise.norm is None:
        return noise.std_for(0.0)
    measured = _rounded(noise.std_for(_norm(tensor, noise, rows)))
    return noise.std if noise.std is not None and _is_same(noise.std, measured) else measured


def _norm(tensor: TensorPlan, noise: Noise, rows: Rows) -> float:
    """Return the norm of the wide tensor that its noise is relative to."""
    rows_by, columns_by = _amplitude(tensor.dims[0]), torch.ones(1, dtype=torch.float32)
    for dim in tensor.dims[1:]:
        columns_by = (columns_by[:, None] * _amplitude(dim)).flatten()
    scaled = _ScaledMatrix(rows, rows_by, columns_by)
    norm = (
        math.sqrt(scaled.sum_of_squares() / math.prod(noise.shape)) if noise.norm == "rms" else scaled.spectral_norm()
    )
    return abs(tensor.scale) / tensor.name_pieces * norm


def initial_std(tensor: TensorPlan, rows: Rows) -> float:
    """Measure the source to find the standard deviation of the initial weights of fresh elements.

    Args:
        tensor: a plan with initial weights.
        rows: reads rows of the source, with all other dimensions flattened into columns.

    Returns:
        The standard deviation, rounded to 12 binary digits; NaN or infinity if the source is not finite.
    """
    init = tensor.init
    assert init is not None
    if init.std is not None:
        return init.std
    counts = [math.prod(dim.size for dim in dims) for dims in (tensor.dims[:1], tensor.dims[1:])]
    sizes = [torch.ones(count, dtype=torch.float32) for count in counts]
    squares = _ScaledMatrix(rows, *sizes).sum_of_squares()
    return _rounded(abs(init.size) * math.sqrt(squares / math.prod(tensor.source.shape)))


def _amplitude(dim: DimMap) -> Tensor:
    """Return the factor c sqrt(m) of each source element of a dimension in the norms of the wide tensor.

    A block of copies is c E W F, where E and F repeat rows and columns m times, so E^T E = F F^T = m I. The norms of
    the wide tensor are therefore those of the narrow one with elements multiplied by c sqrt(m) for each dimension.
    """
    result = torch.empty(dim.size, dtype=torch.float32)
    for strip in dim.strips:
        places = torch.tensor([strip.offset])
        for digit in strip.digits:
            places = (places[:, None] + torch.arange(digit.units.size) * digit.stride).flatten()
        result[places] = abs(strip.scale) / strip.pieces * math.sqrt(strip.multiplicity)
    return result


@dataclass(frozen=True)
class _ScaledMatrix:
    """The matrix A = diag(rows_by) W diag(columns_by), read in blocks of rows.

    The blocks may be the memory of a live model, so nothing writes to them.
    """

    rows: Rows
    rows_by: Tensor
    columns_by: Tensor

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of rows of W in float32, (rows, columns), with the factors of the rows."""
        count = max(1, _READ_ELEMENTS // len(self.columns_by))
        for start in range(0, len(self.rows_by), count):
            by = self.rows_by[start : start + count]
            yield self.rows(start, len(by)).to(torch.float32), by

    def sum_of_squares(self) -> float:
        """Return the sum of squares of all elements of A."""
        weights = self.columns_by.square()
        return sum(float((block.square() @ weights * by.square()).double().sum()) for block, by in self._blocks())

    def _gram(self, vectors: Tensor) -> Tensor:
        """Multiply vectors, (columns, vectors), by A^T A in one pass over the rows."""
        # Transposed: a few rows times a block is several times faster than a block times a few columns.
        total, scaled = torch.zeros_like(vectors.T), vectors.T * self.columns_by
        for block, by in self._blocks():
            total += (scaled @ block.T * by.square()) @ block
        return (total * self.columns_by).T

    def spectral_norm(self) -> float:
        """Return the largest singular value of A, at most about one percent too small, in a few passes over the rows.

        Uses block Krylov iteration with a Rayleigh-Ritz step (Musco & Musco 2015, algorithm 2). The result is exact for
        matrices of up to 32 columns.
        """
        size = len(self.columns_by)
        if size <= _DIRECT:
            return _root_of_largest(self._gram(torch.eye(size, dtype=torch.float32)).double())
        start = torch.empty(size * _VECTORS, dtype=torch.float32)
        fill_normal(start, noise_key(0, "krylov"), 0)
        vectors, basis, images = start.view(size, _VECTORS), [], []
        for _ in range(_PASSES):
            vectors = torch.linalg.qr(vectors).Q
            basis.append(vectors)
            images.append(self._gram(vectors))
            vectors = images[-1]
        left, values, right = torch.linalg.svd(torch.cat(basis, 1).double(), full_matrices=False)
        independent = values > 1e-4 * values[0]  # for matrices of low rank, the basis is linearly dependent
        mapped = torch.cat(images, 1).double() @ right.T[:, independent] / values[independent]
        return _root_of_largest(left[:, independent].T @ mapped)


def _root_of_largest(gram: Tensor) -> float:
    """Return the square root of a symmetric matrix's largest eigenvalue; NaN if the matrix is not finite."""
    if not bool(torch.isfinite(gram).all()):
        return math.nan
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        return value  # reported when the tensor is read (`NonFinite`) or gets its noise (`check_noisy`)
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * (1 << _DIGITS)), exponent - _DIGITS)


def _is_same(known: float, measured: float) -> bool:
    """Return whether two rounded values differ by at most one unit in the last digit; NaN differs from everything."""
    return abs(known - measured) <= math.ldexp(1, math.frexp(measured)[1] - _DIGITS)
