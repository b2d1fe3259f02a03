"""Noise that is a function of tensor name, seed and element, and of nothing else.

Whatever the blocks, shards or processes, an element gets the same number: the generator is a hash of
a counter, so any stretch of a tensor's noise can be made on its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mupscale_cli.blocks import Place
from mupscale_cli.expand import DimIndex, dim_index
from mupscale_cli.layout import DimMap, Strip
from mupscale_cli.perturbation import Noise
from mupscale_cli.plan import TensorPlan

Rows = Callable[[int, int], Tensor]  # first row and number of rows -> (rows, columns), in the stored type

_CHUNK = 1 << 16  # elements made at a time: what they need fits a cache
_LANES = 4  # numbers from each 64-bit word
_MEASURED = 1 << 18  # elements read at a time; fixed, since the order of a sum decides about its last bit
_VECTORS, _PASSES = 8, 4  # of the block Krylov method
_DIRECT = _VECTORS * _PASSES  # columns up to which a matrix is diagonalised instead
_DIGITS = 12  # binary ones that a size keeps, so that another machine's last bit makes no other noise
_WIDE = {torch.float64: torch.float64, torch.float32: torch.float64}


# The generator --------------------------------------------------------------------------------


def noise_key(seed: int, name: str) -> int:
    """The key of a tensor's noise: 64 bits, signed as torch has them."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def fill_normal(out: Tensor, key: int, start: int) -> None:
    """Fill a tensor with the standard normal numbers `start`, `start + 1`, ... of a key.

    Each 64-bit word of SplitMix64 (Steele, Lea, Flood 2014) at its counter gives four 16-bit numbers, each
    of which picks one of 65536 equally likely quantiles of the normal distribution (up to 4.2 standard
    deviations; mean 0 and variance 1 exactly). Integer arithmetic and a table: the same everywhere.

    Args:
        out: one-dimensional, contiguous, float32.
        key: of the sequence.
        start: number of the first element.
    """
    quantiles = _quantiles()
    for begin in range(0, len(out), _CHUNK):
        end = min(begin + _CHUNK, len(out))
        first, last = start + begin, start + end
        words = _words(key, first // _LANES, -(-last // _LANES) - first // _LANES)
        lanes = words.view(torch.int16)[first % _LANES : first % _LANES + end - begin]
        torch.index_select(quantiles, 0, lanes.to(torch.int32).add_(1 << 15), out=out[begin:end])


def _words(key: int, start: int, count: int) -> Tensor:
    """SplitMix64's outputs number `start` ... of the state that begins at `key`."""
    words = torch.arange(start + 1, start + count + 1).mul_(-0x61C8864680B583EB).add_(key)
    shifted = torch.empty_like(words)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        torch.bitwise_right_shift(words, shift, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return words


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """The normal distribution's quantiles at the midpoints of 2^16 equal parts, of variance 1."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    values: Tensor = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).to(torch.float32)


# Its size -------------------------------------------------------------------------------------


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


# Adding it ------------------------------------------------------------------------------------


def add_noise(
    stack: Tensor,
    noise: Noise,
    std: float,
    strips: Sequence[Strip],
    columns: Sequence[DimIndex],
    places: Sequence[Place],
) -> Tensor:
    """A block of a widened tensor with its noise.

    Args:
        stack: (places, rows, ...), the block at each of its places; shares of one split.
        noise: of the tensor.
        std: of the noise.
        strips: the map of the block's rows.
        columns: the index of every other dimension.
        places: where in the tensor they go; rows that go nowhere are left as they happen to be.

    Returns:
        The same shape and type, rounded once; for preserving noise the shares of an element still add up to
        it, up to one rounding.
    """
    key = noise_key(noise.perturbation.seed, noise.name)
    row_size = stack[0, 0].numel()
    if noise.perturbation.mode == "free":
        result = torch.empty_like(stack)
        for values, target, place in zip(stack, result, places, strict=True):
            for run in place:
                rows = slice(run.first, run.first + run.count)
                _add_free(values[rows].view(-1), target[rows].view(-1), key, run.row * row_size, std)
        return result
    normal = torch.empty(stack.shape, dtype=torch.float32)
    for target, place in zip(normal, places, strict=True):
        for run in place:
            fill_normal(target[run.first : run.first + run.count].view(-1), key, run.row * row_size)
    index = [_stacked(dim_index(strips, stack.shape[1]), len(places)), *columns]
    return _preserving(stack.flatten(0, 1), normal.flatten(0, 1), index, std).view(stack.shape)


def _add_free(values: Tensor, target: Tensor, key: int, start: int, std: float) -> None:
    """Values with noise, a chunk at a time; in float32, or in float64 where they are."""
    chunk = torch.empty(min(_CHUNK, len(values)))
    for begin in range(0, len(values), _CHUNK):
        part = values[begin : begin + _CHUNK]
        normal = chunk[: len(part)]
        fill_normal(normal, key, start + begin)
        if values.dtype == torch.float64:
            torch.add(part, normal.double(), alpha=std, out=target[begin : begin + _CHUNK])
        else:
            target[begin : begin + _CHUNK].copy_(normal.mul_(std).add_(part))


def _stacked(index: DimIndex, places: int) -> DimIndex:
    """The index of rows that lie at several places, each with one share of the rows' shares."""
    shares = index.num_shares.repeat(places)
    place = torch.arange(places).repeat_interleave(len(index.group))
    return DimIndex(
        source=index.source.repeat(places),
        group=index.group.repeat(places),
        num_shares=shares * places,
        share=place * shares + index.share.repeat(places),
        scale=index.scale.repeat(places),
        is_fresh=index.is_fresh.repeat(places),
    )


def _preserving(shares: Tensor, normal: Tensor, index: Sequence[DimIndex], std: float) -> Tensor:
    """Shares with noise that adds up to nothing over those of one element.

    The mean over K shares is taken away, which leaves (1 - 1/K) of the variance; that is made up for. In the
    end the last share takes what rounding the others left.
    """
    dims = [_SharedDim.of(item) for item in index]
    shape = shares.shape
    shares, normal = (values.view([size for dim in dims for size in dim.sizes]) for values in (shares, normal))
    num_shares = _outer_product([dim.split(dim.index.num_shares.to(torch.float32)) for dim in dims])
    normal -= _over_shares(normal, dims) / num_shares
    normal *= torch.where(num_shares > 1, std * (num_shares / (num_shares - 1).clamp_min(1)).sqrt(), 0.0)
    exact = shares.to(_WIDE.get(shares.dtype, torch.float32))
    result = (exact + normal).to(shares.dtype)
    missing = _over_shares(exact.sub_(result.to(exact.dtype)), dims)
    last = result[tuple(slice(start, None) for dim in dims for start in (0, dim.together - 1))]
    is_last = _outer_product([dim.is_last for dim in dims])
    last.copy_(torch.where(is_last, (missing + last).to(last.dtype), last))
    return result.view(shape)


@dataclass(frozen=True)
class _SharedDim:
    """A dimension of a block as two, of which the second one is that of shares side by side.

    Attributes:
        index: of the dimension.
        together: how many shares of one element lie side by side; 1 where they lie apart, or there are none.
    """

    index: DimIndex
    together: int

    @classmethod
    def of(cls, index: DimIndex) -> _SharedDim:
        together, places = int(index.num_shares[0]), torch.arange(len(index.group))
        is_regular = torch.equal(index.group, places - places % together)
        return cls(index, together if is_regular else 1)

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.index.group) // self.together, self.together

    @property
    def are_apart(self) -> bool:
        """Whether there are shares that do not lie side by side."""
        return self.together == 1 and bool((self.index.num_shares > 1).any())

    @property
    def is_last(self) -> Tensor:
        """Among the last ones of those side by side, which are the last of all."""
        flags = self.index.share == self.index.num_shares - 1
        return self.split(flags)[:, -1:]

    def split(self, vector: Tensor) -> Tensor:
        """A vector over the dimension as two dimensions."""
        return vector.view(self.sizes)


def _outer_product(matrices: Sequence[Tensor]) -> Tensor:
    """The product of one matrix for each two dimensions, to be broadcast: of size 1 along what is constant."""
    result = torch.ones((), dtype=matrices[0].dtype)
    for position, matrix in enumerate(matrices):
        short = matrix[:1, :1] if bool((matrix == matrix[0, 0]).all()) else matrix
        result = result * short.view(
            [1] * (2 * position) + list(short.shape) + [1] * 2 * (len(matrices) - position - 1)
        )
    return result


def _over_shares(values: Tensor, dims: Sequence[_SharedDim]) -> Tensor:
    """For each element, the sum over all that share its source; of size 1 where those lie side by side."""
    for position, dim in enumerate(dims):
        if dim.together > 1:  # one by one, since torch is slow where it sums a few neighbours
            some = values.unbind(2 * position + 1)
            values = sum(some[1:], start=some[0]).unsqueeze(2 * position + 1)
        elif dim.are_apart:
            sums = torch.zeros_like(values).index_add_(2 * position, dim.index.group, values)
            values = sums.index_select(2 * position, dim.index.group)
    return values
