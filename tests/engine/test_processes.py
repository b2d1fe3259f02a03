"""Forked processes share the writing of an output: same bytes, errors reach the parent, no process is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.engine import processes
from mupscale_cli.engine.events import Events
from mupscale_cli.engine.processes import run_forked, worthwhile
from mupscale_cli.engine.threads import num_workers
from mupscale_cli.errors import CheckpointError, JobError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")


def has_ended(process):
    """Return whether a process has ended; a zombie has not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_exchange_values(size):
    def work(ranks):
        assert num_workers() == 1 or size == 1
        heard = ranks.broadcast("from the first" if ranks.is_first else None)
        return ranks.gather((ranks.rank, heard, os.getpid()))

    values = run_forked(size, work)
    assert [rank for rank, _, _ in values] == list(range(size))
    assert {heard for _, heard, _ in values} == {"from the first"}
    processes = [process for _, _, process in values]
    assert processes[0] == os.getpid()
    assert len(set(processes)) == size
    assert all(has_ended(process) for process in processes[1:])


def test_settings_of_the_parent_are_restored():
    before = torch.get_num_threads(), num_workers()
    run_forked(2, lambda _: None)
    assert (torch.get_num_threads(), num_workers()) == before


def test_progress_of_all_processes_is_reported():
    counts = []

    def work(ranks):
        for _ in range(4):
            ranks.advance(10 + ranks.rank)
        ranks.gather(None)

    run_forked(3, work, counts.append)
    assert sum(counts) == 4 * (10 + 11 + 12)


def test_an_error_of_a_child_is_raised_in_the_parent_with_its_traceback():
    def work(ranks):
        if not ranks.is_first:
            raise CheckpointError("a tensor is odd", hint="look at it")
        ranks.gather(None)

    with pytest.raises(CheckpointError, match="a tensor is odd") as caught:
        run_forked(2, work)
    assert caught.value.hint == "look at it"
    assert "engine/test_processes.py" in str(caught.value.__cause__)


def test_an_error_of_a_child_is_raised_while_the_parent_works():
    def work(ranks):
        if not ranks.is_first:
            1 / 0  # noqa: B018
        for _ in range(1000):
            time.sleep(0.01)
            ranks.advance(1)

    with pytest.raises(ZeroDivisionError):
        run_forked(2, work)


def test_an_error_that_cannot_be_pickled_is_reported():
    class Local(Exception):  # noqa: N818
        pass

    def work(ranks):
        if not ranks.is_first:
            raise Local("here")
        ranks.gather(None)

    with pytest.raises(RuntimeError, match="Local"):
        run_forked(2, work)


def test_a_killed_process_is_an_error():
    def work(ranks):
        if not ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.gather(None)

    with pytest.raises(JobError, match="was killed") as caught:
        run_forked(2, work)
    assert "--processes 1" in caught.value.hint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_children_ignore_stop_signals(number):
    """A terminal sends Ctrl-C to all processes; only the parent handles it."""

    def work(ranks):
        if not ranks.is_first:
            os.kill(os.getpid(), number)
        return ranks.gather(ranks.rank)

    assert run_forked(2, work) == [0, 1]


def test_children_end_with_the_parent(tmp_path):
    script = """
import os, sys, time
from mupscale_cli.engine.processes import run_forked

def work(ranks):
    processes = ranks.gather(os.getpid())
    if ranks.is_first:
        print(*processes, flush=True)
    time.sleep(100)

run_forked(3, work)
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    processes = [int(word) for word in first.stdout.readline().split()]
    assert len(processes) == 3
    first.kill()
    first.wait()
    deadline = time.monotonic() + 20
    while not all(has_ended(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(has_ended(process) for process in processes)


def test_small_outputs_use_one_process(monkeypatch):
    monkeypatch.setattr(processes, "num_workers", lambda: 4)
    assert [worthwhile(size) for size in (0, 1 << 20, 64 << 20, 128 << 20, 1 << 40)] == [1, 1, 1, 2, 4]


def test_a_system_without_fork_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "_CAN_FORK", False)
    assert worthwhile(1 << 40) == 1
    with pytest.raises(JobError, match="2 processes cannot share"):
        run_forked(2, lambda _: None)


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch):
    def refused():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(JobError, match="temporarily unavailable") as caught:
        run_forked(2, lambda _: None)
    assert "--processes 1" in caught.value.hint


def test_a_child_that_cannot_start_does_not_clean_up_for_the_parent(monkeypatch, tmp_path):
    """The error in the child must not run through the surrounding contexts."""
    tidied = tmp_path / "tidied"

    def refused(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(processes, "_initialize_child", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        try:
            run_forked(2, lambda ranks: ranks.gather(None))
        finally:
            with tidied.open("a") as stream:
                stream.write("once ")
    assert tidied.read_text() == "once "


def every_content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(("kind", "layers"), [("safetensors", 5), ("torch", None), ("distributed", 5)])
def test_several_processes_write_the_bytes_of_one(kind, layers, tmp_path):
    source = save_state(tmp_path / "narrow", kind)
    counts, records = {}, {}
    for size in (1, 3):
        counts[size] = []
        records[size] = widen(
            source,
            tmp_path / f"wide-{size}",
            3,
            layers=layers,
            max_shard_size=30_000,
            noise=0.1,
            verify=False,
            events=Events(advance=counts[size].append),
            processes=size,
        ).record
    assert every_content(tmp_path / "wide-3") == every_content(tmp_path / "wide-1")
    assert records[3] == records[1]
    assert sum(counts[3]) == sum(counts[1])
    wide = tmp_path / "wide-3"
    if kind == "safetensors":
        for name in ("optimizer.safetensors", "model-00002"):  # a byte of a state, then one of the weights
            file = next(file for file in wide.rglob("*.safetensors") if name.partition(".")[0] in file.name)
            flip(file)
    found = [verify(wide, source, only=("weights", "files"), processes=size) for size in (1, 3)]
    assert found[0] == found[1]
    assert found[0].agrees == (kind != "safetensors")
    if kind == "safetensors":
        assert len(found[0].weights.differences) == len(found[0].files.state.differences) == 1


def test_a_failed_run_leaves_nothing_behind(tmp_path):
    source = save_state(tmp_path / "narrow", "safetensors")
    tensors = load_file(source / "model.safetensors")
    name = max(tensors)  # the last process writes this tensor
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        widen(source, tmp_path / "wide", 2, max_shard_size=30_000, processes=3)
    assert [path.name for path in tmp_path.iterdir()] == ["narrow"]
