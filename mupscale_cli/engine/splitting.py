"""Splitting numbers into shares that add up to exactly them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_TABLED_BYTES = 2  # of a type whose numbers are all split at once
_SPLIT_BITS = 27  # Dekker: half of float64's digits


@dataclass(frozen=True, slots=True)
class Shares:
    """An element-wise split of w into k floats that add up to exactly w.

    With a = round(w / k) and u the distance from a to the next float in the direction of the
    remainder w - k a, the remainder is n u with a whole n < k: w and k a are both multiples of u,
    since |w| >= |w/k| for k >= 1, and |w - k a| <= k u / 2 up to the rounding of the quotient. So
    n shares of a + u and k - n shares of a have the sum w, each within one unit in the last place
    of the others. It holds for subnormal numbers too, whose distance is constant.

    Attributes:
        nearest: a.
        neighbor: a + u.
        num_neighbors: n, in a type wide enough to compare.
    """

    nearest: Tensor
    neighbor: Tensor
    num_neighbors: Tensor

    @property
    def are_equal(self) -> bool:
        """Whether w / k is a float everywhere, as for powers of two."""
        return not bool(self.num_neighbors.any())

    def share(self, index: int) -> Tensor:
        """Share number `index` of the k."""
        return torch.where(self.num_neighbors > index, self.neighbor, self.nearest)


@dataclass(frozen=True, slots=True)
class LookedUpShares:
    """The shares of numbers of 16 bits, of which there are so few that all of them have been split.

    Attributes:
        dtype: of the numbers.
        num_shares: k.
        numbers: the bits of each element.
    """

    dtype: torch.dtype
    num_shares: int
    numbers: Tensor

    @property
    def are_equal(self) -> bool:
        """Not known: nothing is computed of the elements."""
        return False

    def share(self, index: int) -> Tensor:
        """Share number `index` of the k."""
        table = _share_of_all(self.dtype, self.num_shares, index)
        return torch.index_select(table, 0, self.numbers.view(-1)).view(self.numbers.shape)


@lru_cache(maxsize=64)
def _share_of_all(dtype: torch.dtype, num_shares: int, index: int) -> Tensor:
    """One share of every number of 16 bits, by its bits."""
    numbers = torch.arange(1 << (8 * _TABLED_BYTES), dtype=torch.int32).to(torch.uint16)
    return split_exactly(numbers.view(dtype), num_shares).share(index)


@dataclass(frozen=True, slots=True)
class EqualShares:
    """Shares of which one is like the other.

    Attributes:
        each: w / k.
    """

    each: Tensor

    @property
    def are_equal(self) -> bool:
        """They are."""
        return True

    def share(self, _index: int) -> Tensor:
        """Any of the k."""
        return self.each


Splits = Shares | LookedUpShares | EqualShares


def split(values: Tensor, num_shares: int) -> Splits:
    """The same as `split_exactly`, the fastest way; for regular maps, where all elements have as many shares."""
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
        num_shares: k >= 1, of all elements or of each.

    Source: design.md section 2, "Exact splitting"; `Shares` has the proof.
    """
    if values.dtype == torch.float64:
        nearest = values / num_shares
        high = (nearest.view(torch.int64) & -(1 << _SPLIT_BITS)).view(torch.float64)
        # Both products and both differences are exact: Dekker's product and Sterbenz' lemma.
        remainder = (values - num_shares * high) - num_shares * (nearest - high)
        wide = torch.float64
    else:
        wide = torch.float64 if values.dtype == torch.float32 else torch.float32
        nearest = (values.to(wide) / num_shares).to(values.dtype)
        remainder = values.to(wide) - num_shares * nearest.to(wide)
    if not bool(remainder.any()):  # as for powers of two, where nothing is left to distribute
        return Shares(nearest, nearest, remainder)
    direction = torch.copysign(torch.full_like(remainder, math.inf), remainder).to(values.dtype)
    neighbor = torch.nextafter(nearest, direction)
    step = neighbor.to(wide) - nearest.to(wide)
    return Shares(nearest, neighbor, remainder / step)


def _have_normal_halves(values: Tensor, num_shares: int) -> bool:
    """Whether the shares are a power of two, and no number but zero is so small that its share is subnormal.

    Without its sign, a float is smaller than another one if its bits are, as a whole number. Here they are doubled,
    which drops the sign, and so shifted that zero comes last of all: -2^(w-1) + 2 |x| - 1 with w bits of a number.
    """
    if num_shares & (num_shares - 1) or not values.numel():
        return False
    bits = values.view(INTEGERS[values.dtype.itemsize])
    last = torch.iinfo(bits.dtype).max
    least = 2 * num_shares.bit_length() * _least_normal(values.dtype)  # 2^(log2 k) times it: steps of the exponent
    return int((bits + bits).add_(last).amin()) >= least - 1 - (last + 1)


@lru_cache(maxsize=8)
def _least_normal(dtype: torch.dtype) -> int:
    """The bits of the least normal number."""
    return int(torch.tensor(torch.finfo(dtype).tiny, dtype=dtype).view(INTEGERS[dtype.itemsize]))


def give_first(values: Tensor, _num_shares: int | Tensor) -> Shares:
    """Shares of which the first is the element and the others are zero."""
    zeros = torch.zeros_like(values)
    return Shares(zeros, values, torch.ones_like(zeros))
