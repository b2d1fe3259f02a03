"""CRC-32 of data that come in pieces, in whatever order, as the archives of torch.save want it."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # that of zip archives; the highest bit is the coefficient of x^0
_ONE, _X = 1 << 31, 1 << 30
Stretches = Mapping[int, tuple[int, int]]  # by the first byte: the one behind the last, and the CRC between them


class Checksum:
    """The CRC-32 of one tensor's bytes; may be fed from several threads."""

    def __init__(self) -> None:
        self._stretches: dict[int, tuple[int, int]] = {}
        self._starts: dict[int, int] = {}  # of each stretch, by its end
        self._lock = threading.Lock()

    def add(self, start: int, pieces: Iterable[memoryview]) -> None:
        """Take pieces, one after the other, as the bytes from `start` on; no byte may come twice."""
        value, end = 0, start
        for piece in pieces:
            value, end = zlib.crc32(piece, value), end + len(piece)
        self._put(start, end, value)

    def merge(self, stretches: Stretches) -> None:
        """Take what was found of the same data elsewhere."""
        for start, (end, value) in stretches.items():
            self._put(start, end, value)

    @property
    def stretches(self) -> dict[int, tuple[int, int]]:
        """What is known, neighbours put together."""
        with self._lock:
            return dict(self._stretches)

    def of(self, num_bytes: int) -> int | None:
        """The CRC of all bytes; None while some are missing."""
        if not num_bytes:
            return 0
        end, value = self._stretches.get(0, (None, 0))
        return value if end == num_bytes else None

    def _put(self, start: int, end: int, value: int) -> None:
        if start == end:
            return
        with self._lock:
            if start in self._starts:
                before = self._starts.pop(start)
                value = joined(self._stretches.pop(before)[1], value, end - start)
                start = before
            if end in self._stretches:
                last, behind = self._stretches.pop(end)
                value = joined(value, behind, last - end)
                end = last
            self._stretches[start] = (end, value)
            self._starts[end] = start


def joined(first: int, second: int, length: int) -> int:
    """The CRC of two stretches of bytes, one after the other, from those of each.

    A CRC is the remainder of a polynomial over GF(2); to put `length` bytes behind a stretch multiplies it by
    x^(8 length). Inversions of all bits before and after cancel out. This is what zlib's crc32_combine does.

    Args:
        first: of the first stretch.
        second: of the second one.
        length: of the second one, in bytes.
    """
    return _product(_shift(length), first) ^ second


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo that of the CRC."""
    result = 0
    while left:
        if left & _ONE:
            result ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)  # times x
    return result


@lru_cache(maxsize=1024)
def _shift(length: int) -> int:
    """x^(8 length), modulo the polynomial of the CRC."""
    result, square = _ONE, _X
    exponent = 8 * length
    while exponent:
        if exponent & 1:
            result = _product(square, result)
        square = _product(square, square)
        exponent >>= 1
    return result
