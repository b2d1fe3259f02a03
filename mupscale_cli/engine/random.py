"""Normal random numbers that are a function of key and position, and of nothing else.

The generator hashes a counter, so any stretch of a sequence can be made on its own: whatever the blocks, shards or
processes, an element gets the same number.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_CHUNK = 1 << 17  # elements made at a time: what they need fits a cache (`tests/benchmarks/noise.py`)
_LANES = 4  # numbers from each 64-bit word
_GAMMA = -0x61C8864680B583EB  # by which SplitMix64's state grows


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
