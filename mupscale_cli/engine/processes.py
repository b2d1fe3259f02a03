"""Forked processes that share work like ranks, so that Python code does not wait for the interpreter lock."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple, NoReturn, TypeVar

from mupscale_cli.engine.ranks import Ranks
from mupscale_cli.engine.threads import num_workers, one_worker
from mupscale_cli.errors import JobError

T = TypeVar("T")
# Not on macOS, whose system libraries do not survive a fork.
_CAN_FORK = hasattr(os, "fork") and hasattr(signal, "SIGKILL") and sys.platform == "linux"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MIN_BYTES = 64 << 20  # of work per process; less is finished before another process has started
_COUNTER_BYTES = 8
_FAILED = -1
_POLL_SECONDS = 0.1  # between two checks of the other processes' progress


def worthwhile(num_bytes: int) -> int:
    """Return how many processes are worth starting for an output of `num_bytes`."""
    return max(1, min(num_workers(), num_bytes // _MIN_BYTES)) if _CAN_FORK else 1


@dataclass(frozen=True, slots=True)
class Forks(Ranks):
    """The position of this process among those that the first one has forked.

    Attributes:
        advance: called with the bytes just processed; the first process reports the total of all processes.
    """

    advance: Callable[[int], None] = field(default=lambda _: None)
    pipes: tuple[Connection, ...] = ()  # in the first process: to all others; in the others: to the first

    def broadcast(self, value: T | None) -> T:
        if not self.is_first:
            return _receive(self.pipes[0])  # type: ignore[no-any-return]
        for pipe in self.pipes:
            with suppress(BrokenPipeError):  # the process has failed; the next `gather` reports it
                pipe.send_bytes(pickle.dumps(value))
        return value  # type: ignore[return-value]  # the first process has the value

    def gather(self, value: T) -> list[T]:
        if self.is_first:
            values = [value, *map(self._awaited, self.pipes)]
            self.advance(0)  # report what the others have done since
            return values
        self.pipes[0].send_bytes(pickle.dumps(value))
        return []

    def _awaited(self, pipe: Connection) -> Any:
        """Wait for another process's value; report progress meanwhile."""
        while not pipe.poll(_POLL_SECONDS):
            self.advance(0)
        return _receive(pipe)


def run_forked(size: int, work: Callable[[Forks], T], progress: Callable[[int], None] = lambda _: None) -> T:
    """Run a function in several processes, each on one thread; return what it returns in this one.

    The other processes are forked, so the function may use anything that this one holds. They end with the function, or
    when this process ends for any reason.

    Args:
        size: number of processes, including this one.
        work: called in each process with its position among them.
        progress: called in this process with the bytes just processed by all processes.

    Raises:
        Exception: the error of another process, when this one reports progress or waits for a value.
        JobError: another process was killed, or processes cannot be forked.
    """
    if size == 1:
        return work(Forks(advance=progress))
    if not _CAN_FORK:
        raise JobError(f"{size} processes cannot share the work on this system", hint="omit `--processes`")
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        stack.enter_context(one_worker())
        counts = memoryview(mmap.mmap(-1, size * _COUNTER_BYTES)).cast("q")
        lifeline = stack.enter_context(_Lifeline(*context.Pipe(duplex=False)))
        pipes: list[Connection] = []
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            child = Forks(rank, size, _child_counter(counts, rank), (theirs,))
            process = context.Process(target=_run_child, args=(work, child, counts, lifeline), daemon=True)
            _start(process)
            stack.callback(_kill, process)
            stack.callback(ours.close)
            theirs.close()
            pipes.append(ours)
        return work(Forks(0, size, _total_counter(counts, pipes, progress), tuple(pipes)))


class _Lifeline(NamedTuple):
    """A pipe that is never written to: its end tells the children that the parent has ended."""

    read: Connection
    write: Connection

    def __enter__(self) -> _Lifeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.read.close()
        self.write.close()


def _start(process: ForkProcess) -> None:
    """Start a child; stop signals wait until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        with warnings.catch_warnings():
            # Python warns if there are threads, such as that of the progress bar, because they may hold locks. The
            # child does not print or exit normally, and torch's locks are free because nothing is being computed.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError as error:
        raise JobError(
            f"cannot start another process: {error.strerror}", hint="`widen --processes 1` needs only one"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_child(work: Callable[[Forks], object], child: Forks, counts: memoryview, lifeline: _Lifeline) -> NoReturn:
    """Do a child's work and exit without cleaning up anything that belongs to the parent."""
    (pipe,) = child.pipes
    try:
        _initialize_child(lifeline)
        work(child)
    except BaseException as error:  # noqa: BLE001 (raised in the first process)
        text = traceback.format_exc()
        try:
            message = pickle.dumps(_Failure(error, text))
        except Exception:  # noqa: BLE001 (the error may hold any object)
            message = pickle.dumps(_Failure(RuntimeError(repr(error)), text))
        counts[child.rank] = _FAILED
        with suppress(OSError):
            pipe.send_bytes(message)
    finally:
        os._exit(0)


def _initialize_child(lifeline: _Lifeline) -> None:
    lifeline.write.close()
    gc.freeze()  # a garbage collection would touch, and therefore copy, all inherited memory
    for number in _STOP_SIGNALS:  # the parent receives these signals too, and ends its children
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    threading.Thread(target=_exit_with_parent, args=(lifeline.read,), daemon=True).start()


def _exit_with_parent(lifeline: Connection) -> NoReturn:
    lifeline.poll(None)
    os._exit(1)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The error of a child and its traceback."""

    error: BaseException
    text: str


def _receive(pipe: Connection) -> Any:
    try:
        value = pickle.loads(pipe.recv_bytes())  # noqa: S301 (our own process)
    except (EOFError, OSError) as error:
        raise JobError(
            "another process of this command was killed",
            hint="if memory ran out, use a single process: `widen --processes 1`",
        ) from error
    if isinstance(value, _Failure):
        raise value.error from RuntimeError(value.text)
    return value


def _child_counter(counts: memoryview, rank: int) -> Callable[[int], None]:
    def advance(count: int) -> None:
        counts[rank] += count

    return advance


def _total_counter(
    counts: memoryview, pipes: list[Connection], progress: Callable[[int], None]
) -> Callable[[int], None]:
    reported = [0] * len(counts)

    def advance(count: int) -> None:
        for rank, pipe in enumerate(pipes, start=1):
            done = counts[rank]
            if done == _FAILED:
                while True:  # skip earlier values; the failure is raised here
                    _receive(pipe)
            count += done - reported[rank]
            reported[rank] = done
        progress(count)

    return advance


def _kill(process: ForkProcess) -> None:
    process.kill()
    process.join()
