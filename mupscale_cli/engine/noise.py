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

from mupscale_cli.engine.blocks import Place
from mupscale_cli.engine.expand import dim_index, is_regular, share_views
from mupscale_cli.plan import TensorPlan
from mupscale_cli.plan.dims import DimMap, Strip
from mupscale_cli.plan.perturbation import Noise

Rows = Callable[[int, int], Tensor]  # first row and number of rows -> (rows, columns), in the stored type

_CHUNK = 1 << 17  # elements made at a time: what they need fits a cache
_LANES = 4  # numbers from each 64-bit word
_GAMMA = -0x61C8864680B583EB  # by which SplitMix64's state grows
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


def fill_normal(out: Tensor, key: int, start: int, std: float = 1.0) -> None:
    """Fill a tensor with the normal numbers `start`, `start + 1`, ... of a key.

    Each 64-bit word of SplitMix64 (Steele, Lea, Flood 2014) at its counter gives four 16-bit numbers, each
    of which picks one of 65536 equally likely quantiles of the normal distribution (up to 4.2 standard
    deviations; mean 0 and variance 1 exactly). Integer arithmetic and a table: the same everywhere.

    Args:
        out: one-dimensional, contiguous, float32.
        key: of the sequence.
        start: number of the first element.
        std: standard deviation.
    """
    quantiles = _quantiles() * std  # the table is small beside what is looked up in it
    index = torch.empty(min(_CHUNK, len(out)), dtype=torch.int64)  # by smaller integers torch is slower
    for begin in range(0, len(out), _CHUNK):
        end = min(begin + _CHUNK, len(out))
        first, last = start + begin, start + end
        words = _words(key, first // _LANES, -(-last // _LANES) - first // _LANES)
        lanes = words.view(torch.uint16)[first % _LANES : first % _LANES + end - begin]
        torch.index_select(quantiles, 0, index[: end - begin].copy_(lanes), out=out[begin:end])


def _words(key: int, start: int, count: int) -> Tensor:
    """SplitMix64's outputs number `start` ... of the state that begins at `key`; at most a chunk."""
    words = _counters()[:count] + _signed(key + start * _GAMMA)
    shifted = torch.empty_like(words)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, None)):
        torch.bitwise_right_shift(words, shift, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        if factor is not None:
            words.mul_(factor)
    return words


@lru_cache(maxsize=1)
def _counters() -> Tensor:
    """What SplitMix64 adds to its state for the words of a chunk."""
    return torch.arange(1, _CHUNK // _LANES + 2).mul_(_GAMMA)


def _signed(value: int) -> int:
    """A whole number modulo 2^64, as torch has them."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """The normal distribution's quantiles at the midpoints of 2^16 equal parts, of variance 1; the upper half first.

    A lane that is read as a number without a sign finds what it found as one with a sign in the order of quantiles.
    """
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    values: Tensor = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).to(torch.float32).roll(1 << 15)


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
    out: Tensor,
    noise: Noise,
    std: float,
    strips: Sequence[Strip],
    columns: Sequence[Sequence[Strip]],
    places: Sequence[Place],
) -> None:
    """Fill `out` with a block of a widened tensor and its noise, rounded once.

    Preserving noise leaves the sum of an element's shares as it is, up to one rounding.

    Args:
        stack: (places, rows, ...), the block at each of its places; shares of one split.
        out: of the same shape and type.
        noise: of the tensor.
        std: of the noise.
        strips: the map of the block's rows.
        columns: the maps of every other dimension.
        places: where in the tensor they go; rows that go nowhere are left as they happen to be.
    """
    key = noise_key(noise.perturbation.seed, noise.name)
    row_size = stack[0, 0].numel()
    if noise.perturbation.mode == "free":
        for values, target, place in zip(stack, out, places, strict=True):
            for run in place:
                rows = slice(run.first, run.first + run.count)
                _add_free(values[rows].view(-1), target[rows].view(-1), key, run.row * row_size, std)
        return
    normal = torch.empty(stack.shape, dtype=torch.float32)
    for target, place in zip(normal, places, strict=True):
        for run in place:
            fill_normal(target[run.first : run.first + run.count].view(-1), key, run.row * row_size)
    dims = (strips, *columns)
    preserve = _preserve_strided if is_regular(dims) else _preserve_indexed
    preserve(stack, normal, out, dims, std)


def _add_free(values: Tensor, target: Tensor, key: int, start: int, std: float) -> None:
    """Values with noise, a chunk at a time; in float32, or in float64 where they are."""
    chunk, wide = torch.empty(2, min(_CHUNK, len(values)))
    for begin in range(0, len(values), _CHUNK):
        part, place = values[begin : begin + _CHUNK], target[begin : begin + _CHUNK]
        normal = chunk[: len(part)]
        fill_normal(normal, key, start + begin, std)
        if values.dtype == torch.float64:
            torch.add(part, normal, out=place)
        else:
            place.copy_(normal.add_(wide[: len(part)].copy_(part)))  # types one at a time, which is faster


def _preserve_strided(stack: Tensor, normal: Tensor, out: Tensor, dims: Sequence[Sequence[Strip]], std: float) -> None:
    """Regular maps: share by share, each a strided view."""
    views = [[share_views(tensor[place], dims) for place in range(len(stack))] for tensor in (stack, normal, out)]
    for parts in zip(*(zip(*places, strict=True) for places in views), strict=True):
        chunks = ([_chunks(share) for place in part for share in place] for part in parts)
        for chunk in zip(*(zip(*shares, strict=True) for shares in chunks), strict=True):
            _preserve(*chunk, std=std)


def _chunks(view: Tensor) -> Sequence[Tensor]:
    """A view in parts of about a chunk."""
    parts = -(-view.numel() // _CHUNK)
    dim = next((dim for dim, size in enumerate(view.shape) if size >= parts), 0)
    return view.tensor_split(parts, dim)


def _preserve(shares: Sequence[Tensor], normal: Sequence[Tensor], results: Sequence[Tensor], *, std: float) -> None:
    """Fill results with the shares of elements and noise that adds up to nothing over those of one.

    The mean over K shares is taken away, which leaves (1 - 1/K) of the variance; that is made up for. The last share
    takes what the others have not, noise and rounding.
    """
    count, dtype = len(shares), shares[0].dtype
    if count == 1:
        results[0].copy_(shares[0])
        return
    wide = _WIDE.get(dtype, torch.float32)
    planes = [plane.contiguous() for plane in normal]  # so that what follows runs over neighbours
    mean = sum(planes[1:], start=planes[0]) / count
    *exact, missing = (share.to(wide, memory_format=torch.contiguous_format, copy=True) for share in shares)
    for share, plane, result in zip(exact, planes, results, strict=False):
        noisy = plane.sub_(mean).mul_(std * math.sqrt(count / (count - 1))).to(wide).add_(share).to(dtype)
        result.copy_(noisy)
        missing += share.sub_(noisy)
    results[-1].copy_(missing)


def _preserve_indexed(stack: Tensor, normal: Tensor, out: Tensor, dims: Sequence[Sequence[Strip]], std: float) -> None:
    """Any map, whose elements may have different numbers of shares: the same by sums over indices."""
    index = [dim_index(strips, size) for strips, size in zip(dims, stack.shape[1:], strict=True)]
    place = torch.arange(len(stack))
    along = [[-1 if other == position else 1 for other in range(stack.dim())] for position in range(stack.dim())]
    num_shares, is_last = torch.tensor(float(len(stack))), (place == len(stack) - 1).view(along[0])
    for item, shape in zip(index, along[1:], strict=True):
        num_shares = num_shares * item.num_shares.view(shape)
        is_last = is_last & (item.share == item.num_shares - 1).view(shape)

    def over_shares(values: Tensor) -> Tensor:
        values = values.sum(0, keepdim=True).expand(values.shape)
        for position, item in enumerate(index, 1):
            if bool((item.num_shares > 1).any()):
                sums = torch.zeros_like(values, memory_format=torch.contiguous_format)
                values = sums.index_add_(position, item.group, values).index_select(position, item.group)
        return values

    normal = normal - over_shares(normal) / num_shares
    normal *= torch.where(num_shares > 1, std * (num_shares / (num_shares - 1).clamp_min(1)).sqrt(), 0.0)
    exact = stack.to(_WIDE.get(stack.dtype, torch.float32))
    result = (exact + normal).to(stack.dtype)
    missing = over_shares(exact - result.to(exact.dtype))
    torch.where(is_last, (missing + result).to(stack.dtype), result, out=out)
