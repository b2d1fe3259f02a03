"""Compute the CRC-32 of data whose pieces arrive in any order, as the archives of torch.save need it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from zlib_ng.zlib_ng import crc32, crc32_combine  # the standard library's zlib cannot combine

Stretches = Mapping[int, tuple[int, int]]  # first byte -> (end, CRC of the bytes between)


class Checksum:
    """The CRC-32 of one tensor's bytes; several threads may add pieces."""

    def __init__(self) -> None:
        self._stretches: dict[int, tuple[int, int]] = {}
        self._starts: dict[int, int] = {}  # end of a stretch -> its start
        self._lock = threading.Lock()

    def add(self, start: int, pieces: Iterable[memoryview]) -> None:
        """Add consecutive pieces that begin at byte `start`; no byte may be added twice."""
        value, end = 0, start
        for piece in pieces:
            value, end = crc32(piece, value), end + len(piece)
        self._put(start, end, value)

    def merge(self, stretches: Stretches) -> None:
        """Add the stretches that another process knows of the same data."""
        for start, (end, value) in stretches.items():
            self._put(start, end, value)

    @property
    def stretches(self) -> dict[int, tuple[int, int]]:
        """The known stretches, with neighbors merged."""
        with self._lock:
            return dict(self._stretches)

    def value(self, num_bytes: int) -> int | None:
        """Return the CRC of all `num_bytes` bytes; None while some are missing."""
        if not num_bytes:
            return 0
        end, value = self._stretches.get(0, (None, 0))
        return value if end == num_bytes else None

    def _put(self, start: int, end: int, value: int) -> None:
        if start == end:
            return
        with self._lock:
            if start in self._starts:
                previous_start = self._starts.pop(start)
                value = crc32_combine(self._stretches.pop(previous_start)[1], value, end - start)
                start = previous_start
            if end in self._stretches:
                next_end, next_value = self._stretches.pop(end)
                value = crc32_combine(value, next_value, next_end - end)
                end = next_end
            self._stretches[start] = (end, value)
            self._starts[end] = start
