"""Normal random numbers that depend only on a key and a position.

The generator hashes a counter, so any part of a sequence can be computed on its own. An element gets the same number
for any division into blocks, shards and processes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_CHUNK = 1 << 17  # elements at a time, so that the working set fits the cache (`tests/benchmarks/noise.py`)
_LANES = 4  # numbers per 64-bit word
_GAMMA = -0x61C8864680B583EB  # increment of SplitMix64's state


def noise_key(seed: int, name: str) -> int:
    """Return the key of a tensor's noise: 64 bits as a signed integer, like torch's int64."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def fill_normal(out: Tensor, key: int, start: int, std: float = 1.0) -> None:
    """Fill a tensor with the normal numbers `start`, `start + 1`, ... of a key's sequence.

    Each 64-bit output of SplitMix64 (Steele, Lea, Flood 2014) gives four 16-bit numbers. Each of them selects one of
    65536 equally likely quantiles of the normal distribution (up to 4.2 standard deviations; mean 0 and variance 1
    exactly). Integer arithmetic and a table give the same numbers on every machine.

    Args:
        out: one-dimensional, contiguous, float32.
        key: key of the sequence.
        start: position of the first number in the sequence.
        std: standard deviation.
    """
    quantiles = _scaled_quantiles(std)
    index = torch.empty(min(_CHUNK, len(out)), dtype=torch.int64)  # torch is slower with smaller integers
    for begin in range(0, len(out), _CHUNK):
        end = min(begin + _CHUNK, len(out))
        first, last = start + begin, start + end
        words = _words(key, first // _LANES, -(-last // _LANES) - first // _LANES)
        lanes = words.view(torch.uint16)[first % _LANES : first % _LANES + end - begin]
        torch.index_select(quantiles, 0, index[: end - begin].copy_(lanes), out=out[begin:end])


def _words(key: int, start: int, count: int) -> Tensor:
    """Return `count` outputs of SplitMix64 from number `start`, for the initial state `key`; at most a chunk."""
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
    """Return the increments of SplitMix64's state for the words of a chunk."""
    return torch.arange(1, _CHUNK // _LANES + 2).mul_(_GAMMA)


def _signed(value: int) -> int:
    """Reduce an integer modulo 2^64 to the range of torch's int64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@lru_cache(maxsize=8)
def _scaled_quantiles(std: float) -> Tensor:
    """Return the quantiles times a standard deviation, which is that of many blocks of one tensor."""
    return _quantiles() * std


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """Return the normal distribution's quantiles at the midpoints of 2^16 equal parts, scaled to variance 1.

    The upper half comes first, because lanes are signed numbers that are read as unsigned indices.
    """
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    values: Tensor = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).to(torch.float32).roll(1 << 15)
