"""Files that are written in any order, in whole segments."""

import errno
import itertools
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.checkpoints import placed
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.errors import OutputError

SEGMENT, MOST = 16, 2


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(placed, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(placed, "_MAX_PARTIAL", MOST)


@pytest.fixture
def written(monkeypatch):
    """Record position and size of each write to the system."""
    calls = []

    def recorded(handle, position, pieces, write=placed._write_gathered):
        calls.append((position, sum(map(len, pieces))))
        write(handle, position, pieces)

    monkeypatch.setattr(placed, "_write_gathered", recorded)
    return calls


def cut(data, places):
    """Cut bytes into consecutive parts; return the start and the bytes of each."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [(low, memoryview(data)[low:high]) for low, high in itertools.pairwise(edges)]


@given(
    data=st.binary(min_size=1, max_size=200),
    places=st.lists(st.integers(0, 200), max_size=20),
    begin=st.integers(0, 40),
    gathers=st.booleans(),
    order=st.randoms(),
)
def test_bytes_reach_their_positions_in_any_order(tmp_path_factory, data, places, begin, gathers, order):
    file = tmp_path_factory.mktemp("out") / "file"
    before = b"before" * 100  # of another process: what is not written stays
    file.write_bytes(before)
    parts = cut(data, places)
    order.shuffle(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placed, "_CAN_GATHER", gathers and placed._CAN_GATHER)
        with PlacedFile(file, "r+b") as out:
            for start, part in parts:
                out.write(begin + start, cut_in_two(part))
            out.sync()
    assert file.read_bytes() == before[:begin] + data + before[begin + len(data) :]


def cut_in_two(part):
    return (part[: len(part) // 2], part[len(part) // 2 :])


def test_adjacent_pieces_are_merged_into_segments(tmp_path, written):
    data = os.urandom(3 * SEGMENT)
    with PlacedFile(tmp_path / "file", "xb") as out:
        for start in range(0, len(data), 6):  # never on a segment's edge but for the first and the last
            out.write(start, [memoryview(data)[start : start + 6]])
        out.sync()
    assert written == [(0, SEGMENT), (SEGMENT, SEGMENT), (2 * SEGMENT, SEGMENT)]
    assert (tmp_path / "file").read_bytes() == data


def test_whole_segments_are_written_without_copying(tmp_path, written):
    data = bytearray(os.urandom(3 * SEGMENT))
    with PlacedFile(tmp_path / "file", "xb") as out:
        out.write(5, [memoryview(data)])
        assert written == [(SEGMENT, SEGMENT), (2 * SEGMENT, SEGMENT)]
        expected, data[:] = bytes(data), bytes(len(data))  # its owner uses the memory again
        out.sync()
    assert written[2:] == [(5, SEGMENT - 5), (3 * SEGMENT, 5)]
    assert (tmp_path / "file").read_bytes()[5:] == expected


def test_the_least_recently_used_segment_is_written_when_memory_is_full(tmp_path, written):
    """Bytes go to more segments than may stay in memory."""
    with PlacedFile(tmp_path / "file", "xb") as out:
        for turn in range(4):
            for place in range(5):
                out.write(place * SEGMENT + turn * 4, [memoryview(bytes([place]) * 4)])
            assert len(out._partial._segments) <= MOST
        assert len(out._partial._unused) <= 1
        out.sync()
    assert (0, 4) in written
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([place]) * SEGMENT for place in range(5))


def test_threads_can_fill_the_same_segments(tmp_path):
    data = os.urandom(2000)
    parts = cut(data, random.Random(0).choices(range(2000), k=300))
    random.Random(1).shuffle(parts)
    with PlacedFile(tmp_path / "file", "xb") as out:

        def work(some):
            for start, part in some:
                out.write(start, [part])

        threads = [threading.Thread(target=work, args=(parts[first::4],)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        out.sync()
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_reported_by_sync():
    with PlacedFile(Path("/dev/full"), "r+b") as out:
        out.write(0, [memoryview(b"waits")])
        with pytest.raises(OutputError, match="No space left on device"):
            out.sync()


@pytest.fixture
def synced(monkeypatch):
    """Record the threads that call fsync; the first call fails if `fails` is set."""
    calls = []

    def recorded(handle):
        calls.append(threading.current_thread())
        if recorded.fails:
            recorded.fails = False
            raise OSError(errno.EIO, "the disk is broken")

    recorded.fails, recorded.calls = False, calls
    monkeypatch.setattr(placed, "_SYNC_BYTES", 2 * SEGMENT)
    monkeypatch.setattr(os, "fsync", recorded)
    return recorded


def test_written_bytes_are_flushed_in_the_background(tmp_path, synced):
    with PlacedFile(tmp_path / "file", "xb") as out:
        out.write(0, [memoryview(bytes(SEGMENT))])
        assert not synced.calls
        out.write(SEGMENT, [memoryview(bytes(SEGMENT))])
        out.sync()
    meanwhile, last = synced.calls
    assert meanwhile is not threading.current_thread() is last


def test_a_failed_background_flush_is_reported_by_sync(tmp_path, synced):
    synced.fails = True
    with PlacedFile(tmp_path / "file", "xb") as out:
        out.write(0, [memoryview(bytes(2 * SEGMENT))])
        with pytest.raises(OutputError, match="the disk is broken"):
            out.sync()


def test_one_thread_writes_the_segments_that_others_have_queued(tmp_path, monkeypatch):
    writers, is_writing, may_go_on = [], threading.Event(), threading.Event()

    def slow(handle, position, pieces, write=placed._write_gathered):
        writers.append(threading.current_thread())
        is_writing.set()
        assert may_go_on.wait(60)
        write(handle, position, pieces)

    monkeypatch.setattr(placed, "_write_gathered", slow)
    data = os.urandom(3 * SEGMENT)
    with PlacedFile(tmp_path / "file", "xb") as out:
        first = threading.Thread(target=out.write, args=(0, [memoryview(data)[:SEGMENT]]))
        first.start()
        assert is_writing.wait(60)
        for start in (SEGMENT, 2 * SEGMENT):  # returns at once, though nothing is written yet
            out.write(start, [memoryview(data)[start : start + SEGMENT]])
        may_go_on.set()
        first.join()
        assert set(writers) == {first}
        out.sync()
    assert (tmp_path / "file").read_bytes() == data
