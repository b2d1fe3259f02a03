"""Forked processes that share work like ranks, so that Python code does not wait for the interpreter lock."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

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
    _pipes: tuple[Connection, ...] = ()  # in the first process: to all others; in the others: to the first

    def broadcast(self, value: T | None) -> T:
        if not self.is_first:
            return _receive(self._pipes[0])  # type: ignore[no-any-return]
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # the process has failed; the next `gather` reports it
                pipe.send_bytes(pickle.dumps(value))
        return value  # type: ignore[return-value]  # the first process has the value

    def gather(self, value: T) -> list[T]:
        if self.is_first:
            values = [value, *map(self._awaited, self._pipes)]
            self.advance(0)  # report what the others have done since
            return values
        self._pipes[0].send_bytes(pickle.dumps(value))
        return []

    def _awaited(self, pipe: Connection) -> Any:
        """Wait for another process's value; report progress meanwhile."""
        while not pipe.poll(_POLL_SECONDS):
            self.advance(0)
        return _receive(pipe)


@contextmanager
def forked(size: int, progress: Callable[[int], None]) -> Iterator[Forks]:
    """Run the block in `size` processes; only the parent continues after it.

    Each process works on one thread. The children end with the block, or when the parent ends for any reason.

    Args:
        size: number of processes, including this one.
        progress: called in this process with the bytes just processed by all processes.

    Raises:
        Exception: the error of another process, when this one reports progress or waits for a value.
        JobError: another process was killed, or processes cannot be forked.
    """
    if size == 1:
        yield Forks(advance=progress)
        return
    if not _CAN_FORK:
        raise JobError(f"{size} processes cannot share the work on this system", hint="omit `--processes`")
    with ExitStack() as stack:
        stack.enter_context(one_worker())
        shared = mmap.mmap(-1, size * _COUNTER_BYTES)
        counts = memoryview(shared).cast("q")
        alive, lifeline = os.pipe()  # never written to; its closing tells the children that this process has ended
        stack.callback(os.close, alive)
        stack.callback(os.close, lifeline)
        pipes: list[Connection] = []
        for rank in range(1, size):
            ours, theirs = Pipe()
            with _blocked_signals():
                process = _fork()
                if process == 0:  # the child runs the block here and never returns from it
                    child = Forks(rank, size, _child_counter(counts, rank), (theirs,))
                    yield from _run_child(child, theirs, counts, partial(_initialize_child, alive, lifeline))
            theirs.close()
            stack.callback(_kill, process)
            stack.callback(ours.close)
            pipes.append(ours)
        yield Forks(0, size, _total_counter(counts, pipes, progress), tuple(pipes))


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Delay stop signals, so that a new child does not handle them like the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns if there are threads, such as that of the progress bar, because they may hold locks. The child
        # does not print or exit normally, and torch's locks are free because nothing is being computed.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return os.fork()
        except OSError as error:
            raise JobError(
                f"cannot start another process: {error.strerror}", hint="`widen --processes 1` needs only one"
            ) from error


def _initialize_child(alive: int, lifeline: int) -> None:
    os.close(lifeline)
    gc.freeze()  # a garbage collection would touch, and therefore copy, all inherited memory
    for number in _STOP_SIGNALS:  # the parent receives these signals too, and ends its children
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(alive,), daemon=True).start()


def _exit_with_parent(alive: int) -> NoReturn:
    os.read(alive, 1)
    os._exit(1)


def _run_child(child: Forks, pipe: Connection, counts: memoryview, initialize: Callable[[], None]) -> Iterator[Forks]:
    """Run the block in a child and exit without cleaning up anything that belongs to the parent."""
    try:
        initialize()
        yield child
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


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
