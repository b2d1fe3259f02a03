"""CRC-32 of data that come in pieces, in whatever order, as the archives of torch.save want it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from zlib_ng.zlib_ng import crc32, crc32_combine  # the standard library's zlib cannot combine

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
            value, end = crc32(piece, value), end + len(piece)
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
                value = crc32_combine(self._stretches.pop(before)[1], value, end - start)
                start = before
            if end in self._stretches:
                last, behind = self._stretches.pop(end)
                value = crc32_combine(value, behind, last - end)
                end = last
            self._stretches[start] = (end, value)
            self._starts[end] = start
