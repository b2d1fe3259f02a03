"""Splitting numbers into shares whose sum is exact. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element
_TABLED_BYTES = 2  # size of types for which a table holds the shares of every number
_SPLIT_BITS = 27  # half of float64's digits (Dekker 1971)


@dataclass(frozen=True, slots=True)
class Shares:
    """An element-wise split of w into k floats whose exact sum is w (page `theory`).

    With a = round(w / k) and u the distance from a to the next float in the direction of the
    remainder w - k a, the remainder is n u with a whole n < k: w and k a are both multiples of u,
    since |w| >= |w/k| for k >= 1, and |w - k a| <= k u / 2 up to the rounding of the quotient. So
    n shares of a + u and k - n shares of a have the sum w, and all are within one unit in the last
    place of each other. This also holds for subnormal numbers, whose spacing is constant.

    Attributes:
        nearest: a.
        neighbor: a + u.
        num_neighbors: n, as whole floats.
    """

    nearest: Tensor
    neighbor: Tensor
    num_neighbors: Tensor

    @property
    def are_equal(self) -> bool:
        """Whether w / k is a float for all elements, for instance because k is a power of two."""
        return not bool(self.num_neighbors.any())

    def share(self, index: int) -> Tensor:
        """Return share number `index` of k."""
        return torch.where(self.num_neighbors > index, self.neighbor, self.nearest)


@dataclass(frozen=True, slots=True)
class LookedUpShares:
    """The shares of 16-bit floats, looked up in a table with every number of the type.

    Attributes:
        dtype: type of the elements.
        num_shares: k.
        numbers: bits of each element, as int32.
    """

    dtype: torch.dtype
    num_shares: int
    numbers: Tensor

    @property
    def are_equal(self) -> bool:
        """Always false; the elements are not examined."""
        return False

    def share(self, index: int) -> Tensor:
        """Return share number `index` of k."""
        table = _share_of_all(self.dtype, self.num_shares, index)
        return torch.index_select(table, 0, self.numbers.view(-1)).view(self.numbers.shape)


@lru_cache(maxsize=64)
def _share_of_all(dtype: torch.dtype, num_shares: int, index: int) -> Tensor:
    """Return share number `index` of every 16-bit float, indexed by the number's bits."""
    numbers = torch.arange(1 << (8 * _TABLED_BYTES), dtype=torch.int32).to(torch.uint16)
    return split_exactly(numbers.view(dtype), num_shares).share(index)


@dataclass(frozen=True, slots=True)
class EqualShares:
    """Shares that are all equal.

    Attributes:
        each: w / k.
    """

    each: Tensor

    @property
    def are_equal(self) -> bool:
        """Always true."""
        return True

    def share(self, _index: int) -> Tensor:
        """Return w / k."""
        return self.each


Splits = Shares | LookedUpShares | EqualShares


def split(values: Tensor, num_shares: int) -> Splits:
    """Split every element into the same number of shares, by the fastest method that equals `split_exactly`.

    Args:
        values: finite floats of any shape.
        num_shares: k >= 1.
    """
    if _have_normal_halves(values, num_shares):
        return EqualShares(values * (1 / num_shares))
    if values.element_size() == _TABLED_BYTES and values.numel() >= 1 << (8 * _TABLED_BYTES):
        numbers = values.contiguous().view(torch.uint16).to(torch.int32)
        return LookedUpShares(values.dtype, num_shares, numbers)
    return split_exactly(values, num_shares)


def split_exactly(values: Tensor, num_shares: int | Tensor) -> Shares:
    """Split every element into shares whose exact sum is the element.

    Args:
        values: finite floats of any shape: bfloat16, float16, float32 or float64.
        num_shares: k >= 1, one number for all elements or a tensor that broadcasts with them.

    Source: page `theory`, "Exact splitting"; `Shares` has the proof.
    """
    if values.dtype == torch.float64:
        nearest = values / num_shares
        high = (nearest.view(torch.int64) & -(1 << _SPLIT_BITS)).view(torch.float64)
        # Both products and both differences are exact (Dekker's product, Sterbenz's lemma).
        remainder = (values - num_shares * high) - num_shares * (nearest - high)
        wide = torch.float64
    else:
        wide = torch.float64 if values.dtype == torch.float32 else torch.float32
        nearest = (values.to(wide) / num_shares).to(values.dtype)
        remainder = values.to(wide) - num_shares * nearest.to(wide)
    if not bool(remainder.any()):  # for instance for powers of two
        return Shares(nearest, nearest, remainder)
    direction = torch.copysign(torch.full_like(remainder, math.inf), remainder).to(values.dtype)
    neighbor = torch.nextafter(nearest, direction)
    step = neighbor.to(wide) - nearest.to(wide)
    return Shares(nearest, neighbor, remainder / step)


def _have_normal_halves(values: Tensor, num_shares: int) -> bool:
    """Return whether k is a power of two and no nonzero element is so small that its share would be subnormal.

    The magnitudes of floats are ordered like their bits as unsigned integers. Here the bits are doubled, which drops
    the sign, and shifted so that zero becomes the largest value: -2^(w-1) + 2 |x| - 1 for numbers of w bits.
    """
    if num_shares & (num_shares - 1) or not values.numel():
        return False
    bits = values.view(INTEGERS[values.dtype.itemsize])
    last = torch.iinfo(bits.dtype).max
    least = 2 * num_shares.bit_length() * _least_normal(values.dtype)  # each factor of 2 is one step of the exponent
    return int((bits + bits).add_(last).amin()) >= least - 1 - (last + 1)


@lru_cache(maxsize=8)
def _least_normal(dtype: torch.dtype) -> int:
    """Return the bits of the smallest normal number."""
    return int(torch.tensor(torch.finfo(dtype).tiny, dtype=dtype).view(INTEGERS[dtype.itemsize]))


def give_first(values: Tensor, _num_shares: int | Tensor) -> Shares:
    """Return the whole element as the first share and zero as the others."""
    zeros = torch.zeros_like(values)
    return Shares(zeros, values, torch.ones_like(zeros))
