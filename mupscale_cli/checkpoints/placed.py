"""Files that several threads write in any order; the bytes reach the system in large aligned segments."""

from __future__ import annotations

import bisect
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from mupscale_cli.checkpoints.digests import SEGMENT_BYTES, segment_digest
from mupscale_cli.checkpoints.output_files import output_errors

# A segment is a few large pages of the system's cache, but not a huge page: a virtual machine may have to request huge
# pages from its host, which reclaims unused ones, and then writing takes up to ten times as long.
# These values come from `tests/benchmarks/throughput.py`.
_MAX_PARTIAL = 128  # incomplete segments in memory; beyond that, the least recently used one is written as it is
_MAX_READY = 32  # complete segments queued while another thread writes; beyond that, threads wait
_SYNC_BYTES = 128 << 20  # bytes between flushes to disk in the background
_CAN_GATHER = hasattr(os, "pwritev")  # not on Windows
_MAX_PIECES = 1024  # per system call, IOV_MAX on every system with pwritev


class PlacedFile:
    """Writes bytes at any position of a file, from several threads. A context manager that closes the file.

    Bytes are written in whole segments that start at multiples of the segment size. The system caches an aligned
    segment as large pages; unaligned writes take up to three times as long. Incomplete segments wait in memory for the
    rest of their bytes. The system lets only one thread write to a file at a time, so that thread also writes what the
    others have queued, and they continue. Because the disk is slower than the cache, a background thread flushes the
    file from time to time, which shortens the final `sync`.

    Args:
        file: path of the file.
        mode: a mode of `open`, or `shared` for a file that other processes may also create and write to.

    Attributes:
        file: path of the file.
        segments: digest of each segment that was written as a whole, by number.
        num_bytes: number of bytes written.
    """

    def __init__(self, file: Path, mode: str) -> None:
        self.file = file
        self.segments: dict[int, bytes] = {}
        self.num_bytes = 0
        with output_errors(file):
            opener = _create_if_absent if mode == "shared" else None
            mode = "r+b" if mode == "shared" else mode
            self.stream: BinaryIO = open(file, mode, buffering=0, opener=opener)  # type: ignore[assignment]  # noqa: SIM115
        self._partial = _PartialSegments()
        self._ready: deque[_Segment] = deque()
        self._lock = threading.Lock()  # held by the thread that writes
        self._num_unsynced = 0
        self._syncing: Thread | None = None
        self._failure: OSError | None = None

    def __enter__(self) -> PlacedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, position: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces, starting at byte `position` of the file; a piece may occur several times.

        The caller may reuse the memory afterwards. The bytes may reach the file only with `sync`.

        Raises:
            OutputError: the system cannot write the file.
        """
        for start, parts in _split_by_segment(position, pieces):
            is_whole = sum(map(len, parts)) == SEGMENT_BYTES
            if is_whole:
                self.segments[start // SEGMENT_BYTES] = segment_digest(parts)
            if is_whole and self._lock.acquire(blocking=False):
                with _release_after(self._lock):
                    self._write_through(start, parts)
            else:
                for segment in self._partial.add(start, parts):
                    if segment.is_full and not is_whole:
                        self.segments[start // SEGMENT_BYTES] = segment_digest((segment.data,))
                    self._ready.append(segment)
            self._write_ready(max_queued=_MAX_READY)

    def sync(self) -> None:
        """Write all remaining bytes and flush the file to disk. No other thread may write at the same time.

        Raises:
            OutputError: the system could not write or flush the file, now or earlier.
        """
        self._ready.extend(self._partial.take_all())
        self._write_ready(max_queued=0)
        if self._syncing is not None:
            self._syncing.join()
        with output_errors(self.file):
            if self._failure is not None:  # the system reports a failure only once
                raise self._failure
            os.fsync(self.stream.fileno())

    def _write_ready(self, max_queued: int) -> None:
        """Write queued segments, or leave them to the thread that is writing unless more than `max_queued` wait."""
        while self._ready and self._lock.acquire(blocking=len(self._ready) > max_queued):
            with _release_after(self._lock):
                while self._ready:
                    segment = self._ready.popleft()
                    for low, high in segment.filled:
                        self._write_through(segment.start + low, (segment.data[low:high],))
                    self._partial.recycle(segment)

    def _write_through(self, position: int, pieces: Sequence[memoryview]) -> None:
        """Hand consecutive pieces to the system; the caller holds the lock."""
        with output_errors(self.file):
            if _CAN_GATHER:
                _write_gathered(self.stream.fileno(), position, pieces)
            else:
                self.stream.seek(position)
                for piece in pieces:
                    _write_all(self.stream, piece)
        count = sum(map(len, pieces))
        self.num_bytes += count
        self._num_unsynced += count
        if self._num_unsynced >= _SYNC_BYTES and (self._syncing is None or not self._syncing.is_alive()):
            self._num_unsynced = 0
            self._syncing = Thread(target=self._flush, args=(self.stream.fileno(),), daemon=True)
            self._syncing.start()

    def _flush(self, handle: int) -> None:
        try:
            os.fsync(handle)
        except OSError as error:
            self._failure = error


@contextmanager
def _release_after(lock: threading.Lock) -> Iterator[None]:
    """Release an acquired lock when the context ends."""
    try:
        yield
    finally:
        lock.release()


class _Segment:
    """Memory for one segment of a file.

    Attributes:
        data: bytes of the segment.
        start: offset of the segment in the file.
        filled: sorted, disjoint ranges of `data` that have been filled.
    """

    def __init__(self) -> None:
        self.data = memoryview(bytearray(SEGMENT_BYTES))
        self.start = 0
        self.filled: list[tuple[int, int]] = []

    @property
    def is_full(self) -> bool:
        return self.filled == [(0, SEGMENT_BYTES)]

    def add(self, start: int, pieces: Sequence[memoryview]) -> None:
        """Copy consecutive pieces into the segment, starting at its byte `start`."""
        end = start
        for piece in pieces:
            self.data[end : end + len(piece)] = piece
            end += len(piece)
        first = last = bisect.bisect(self.filled, (start, end))  # there may be as many ranges as rows
        if first and self.filled[first - 1][1] >= start:
            first -= 1
            start, end = self.filled[first][0], max(end, self.filled[first][1])
        while last < len(self.filled) and self.filled[last][0] <= end:
            end = max(end, self.filled[last][1])
            last += 1
        self.filled[first:last] = [(start, end)]


class _PartialSegments:
    """The incomplete segments of a file. Thread-safe."""

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}  # by offset, most recently used last
        self._unused: list[_Segment] = []
        self._lock = threading.Lock()

    def add(self, position: int, pieces: Sequence[memoryview]) -> list[_Segment]:
        """Add bytes of one segment; return the segment to write now, a complete one or the least recently used."""
        start = position - position % SEGMENT_BYTES
        with self._lock:
            segment = self._segments.pop(start, None)
            if segment is None:
                segment = self._unused.pop() if self._unused else _Segment()
                segment.start, segment.filled = start, []
            segment.add(position - start, pieces)
            if segment.is_full:
                return [segment]
            self._segments[start] = segment
            if len(self._segments) <= _MAX_PARTIAL:
                return []
            return [self._segments.pop(next(iter(self._segments)))]

    def take_all(self) -> list[_Segment]:
        """Remove and return all segments in file order."""
        with self._lock:
            segments = [self._segments[start] for start in sorted(self._segments)]
            self._segments.clear()
        return segments

    def recycle(self, segment: _Segment) -> None:
        """Make a segment's memory available for another one."""
        with self._lock:
            self._unused.append(segment)


def _split_by_segment(position: int, pieces: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """Cut consecutive pieces, which start at byte `position`, at segment borders; yield offset and pieces of each."""
    parts: list[memoryview] = []
    start, left = position, SEGMENT_BYTES - position % SEGMENT_BYTES
    for piece in pieces:
        rest = piece
        while len(rest) >= left:
            parts.append(rest[:left])
            yield start, parts
            rest, parts = rest[left:], []
            start += SEGMENT_BYTES - start % SEGMENT_BYTES
            left = SEGMENT_BYTES
        if rest:
            parts.append(rest)
            left -= len(rest)
    if parts:
        yield start, parts


def _create_if_absent(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_CREAT, 0o666)


def _write_gathered(handle: int, position: int, pieces: Sequence[memoryview]) -> None:
    """Write many pieces per system call, directly from their memory."""
    for first in range(0, len(pieces), _MAX_PIECES):
        batch = pieces[first : first + _MAX_PIECES]
        left = sum(map(len, batch))
        while left:
            count = os.pwritev(handle, batch, position)
            position, left = position + count, left - count
            if left:
                batch = _skip(batch, count)


def _skip(pieces: Sequence[memoryview], count: int) -> list[memoryview]:
    """Drop the first `count` bytes of consecutive pieces."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    """Write all bytes, in as many calls as the system needs."""
    done = 0
    while done < len(data):
        done += stream.write(data[done:])
