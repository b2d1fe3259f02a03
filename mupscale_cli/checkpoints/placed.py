"""Files whose bytes arrive in any order, from several threads, and are written in large aligned pieces."""

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
from mupscale_cli.checkpoints.staging import output_errors

# Segments are few large pages of the system's cache, but no huge ones: a virtual machine may have to get those from its
# host, which takes back what is free of them; then writing takes up to ten times as long.
# `tests/benchmarks/throughput.py` found their size and these limits.
_MOST_SEGMENTS = 128  # that wait at once; beyond, the one that waited longest is written in parts
_MOST_READY = 32  # that are full while another thread writes; beyond, one waits for it
_SYNC_BYTES = 128 << 20  # that are put on the disk while others are written
_CAN_GATHER = hasattr(os, "pwritev")  # not on Windows
_MAX_PIECES = 1024  # of one system call, on every system that has it


class PlacedFile:
    """Writes pieces of bytes at places of an open file, from several threads; a context manager that closes it.

    A file is written in whole segments, of which each begins at a multiple of its size: the system's cache takes
    such a one as one large page, where the same bytes cut anywhere else cost it up to three times the time. Bytes
    that do not fill a segment wait for their neighbors. Since the system lets one thread at a time write to a file,
    that one writes what the others have ready, and they go on. And since it takes the disk longer than the system's
    cache, a thread of its own waits for the disk from time to time, so that less is left to wait for in the end.

    Modes are those of `open`, and `shared` for one that other processes may have created and write to as well.

    Attributes:
        file: where it is.
        segments: the digest of each segment that was written whole, by its number.
        num_bytes: how many were written.
    """

    def __init__(self, file: Path, mode: str) -> None:
        self.file = file
        self.segments: dict[int, bytes] = {}
        self.num_bytes = 0
        with output_errors(file):
            opener = _create_if_absent if mode == "shared" else None
            mode = "r+b" if mode == "shared" else mode
            self.stream: BinaryIO = open(file, mode, buffering=0, opener=opener)  # type: ignore[assignment]  # noqa: SIM115
        self._waiting = _Waiting()
        self._ready: deque[_Segment] = deque()
        self._lock = threading.Lock()  # of the thread that writes
        self._num_unsynced = 0
        self._syncing: Thread | None = None
        self._failure: OSError | None = None

    def __enter__(self) -> PlacedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, position: int, pieces: Sequence[memoryview]) -> None:
        """Write pieces one after the other from a byte on; the same piece may come several times.

        They may be changed afterwards. Not all of them are in the file before `sync`.
        """
        for start, some in _by_segment(position, pieces):
            is_whole = sum(map(len, some)) == SEGMENT_BYTES
            if is_whole:
                self.segments[start // SEGMENT_BYTES] = segment_digest(some)
            if is_whole and self._lock.acquire(blocking=False):
                with _released(self._lock):
                    self._put(start, some)
            else:
                for segment in self._waiting.add(start, some):
                    if segment.is_full and not is_whole:
                        self.segments[start // SEGMENT_BYTES] = segment_digest((segment.data,))
                    self._ready.append(segment)
            self._put_ready(most=_MOST_READY)

    def sync(self) -> None:
        """Write what waits for its neighbors, and have all of it on the disk; while nothing else is written.

        Raises:
            OutputError: the disk refused something, now or before.
        """
        self._ready.extend(self._waiting.take_all())
        self._put_ready(most=0)
        if self._syncing is not None:
            self._syncing.join()
        with output_errors(self.file):
            if self._failure is not None:  # the system tells it once
                raise self._failure
            os.fsync(self.stream.fileno())

    def _put_ready(self, most: int) -> None:
        """Write what is ready; a thread that writes already does that too, and is awaited if it is more than `most`."""
        while self._ready and self._lock.acquire(blocking=len(self._ready) > most):
            with _released(self._lock):
                while self._ready:
                    segment = self._ready.popleft()
                    for low, high in segment.filled:
                        self._put(segment.start + low, (segment.data[low:high],))
                    self._waiting.give_back(segment)

    def _put(self, position: int, pieces: Sequence[memoryview]) -> None:
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
            self._syncing = Thread(target=self._sync_some, args=(self.stream.fileno(),), daemon=True)
            self._syncing.start()

    def _sync_some(self, handle: int) -> None:
        try:
            os.fsync(handle)
        except OSError as error:
            self._failure = error


@contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    """Release a lock in the end that has been acquired."""
    try:
        yield
    finally:
        lock.release()


class _Segment:
    """Memory for a segment of a file.

    Attributes:
        data: its bytes.
        start: of which place in the file.
        filled: the parts of it that are there: from where to where, in order, with gaps between them.
    """

    def __init__(self) -> None:
        self.data = memoryview(bytearray(SEGMENT_BYTES))
        self.start = 0
        self.filled: list[tuple[int, int]] = []

    @property
    def is_full(self) -> bool:
        return self.filled == [(0, SEGMENT_BYTES)]

    def add(self, start: int, pieces: Sequence[memoryview]) -> None:
        """Take consecutive pieces from a byte of the segment on."""
        end = start
        for piece in pieces:
            self.data[end : end + len(piece)] = piece
            end += len(piece)
        first = last = bisect.bisect(self.filled, (start, end))  # there may be as many parts as rows
        if first and self.filled[first - 1][1] >= start:
            first -= 1
            start, end = self.filled[first][0], max(end, self.filled[first][1])
        while last < len(self.filled) and self.filled[last][0] <= end:
            end = max(end, self.filled[last][1])
            last += 1
        self.filled[first:last] = [(start, end)]


class _Waiting:
    """The segments of a file that are not full yet; for several threads."""

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}  # by place, the one that was touched last at the end
        self._unused: list[_Segment] = []
        self._lock = threading.Lock()

    def add(self, position: int, pieces: Sequence[memoryview]) -> list[_Segment]:
        """Take bytes of one segment, and give back what is to be written now: full, or waiting for too long."""
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
            if len(self._segments) <= _MOST_SEGMENTS:
                return []
            return [self._segments.pop(next(iter(self._segments)))]

    def take_all(self) -> list[_Segment]:
        """All of them, in the order of the file."""
        with self._lock:
            found = [self._segments[start] for start in sorted(self._segments)]
            self._segments.clear()
        return found

    def give_back(self, segment: _Segment) -> None:
        """Use a segment's memory again."""
        with self._lock:
            self._unused.append(segment)


def _by_segment(position: int, pieces: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """Consecutive pieces from a byte of a file on, cut where its segments end: first byte and pieces of each."""
    some: list[memoryview] = []
    start, left = position, SEGMENT_BYTES - position % SEGMENT_BYTES
    for piece in pieces:
        rest = piece
        while len(rest) >= left:
            some.append(rest[:left])
            yield start, some
            rest, some = rest[left:], []
            start += SEGMENT_BYTES - start % SEGMENT_BYTES
            left = SEGMENT_BYTES
        if rest:
            some.append(rest)
            left -= len(rest)
    if some:
        yield start, some


def _create_if_absent(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_CREAT, 0o666)


def _write_gathered(handle: int, position: int, pieces: Sequence[memoryview]) -> None:
    """Write from where the pieces lie, many in a call, without putting them together in memory first."""
    for first in range(0, len(pieces), _MAX_PIECES):
        some = pieces[first : first + _MAX_PIECES]
        left = sum(map(len, some))
        while left:
            done = os.pwritev(handle, some, position)
            position, left = position + done, left - done
            if left:
                some = _after(some, done)


def _after(pieces: Sequence[memoryview], done: int) -> list[memoryview]:
    """The pieces without their first bytes."""
    for index, piece in enumerate(pieces):
        if done < len(piece):
            return [piece[done:], *pieces[index + 1 :]]
        done -= len(piece)
    return []


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    """Write all of it, however many calls the system makes of that."""
    done = 0
    while done < len(data):
        done += stream.write(data[done:])
