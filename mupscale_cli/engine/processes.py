"""Processes that this one forks, so that a piece of Python does not wait for another's; they share work as ranks do."""

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
# Not on macOS, where what the system's own libraries hold does not survive it.
_CAN_FORK = hasattr(os, "fork") and hasattr(signal, "SIGKILL") and sys.platform == "linux"
_ASKING = (signal.SIGINT, signal.SIGTERM)
_LEAST_BYTES = 64 << 20  # of work for a process; less is done before it has begun
_COUNT = 8  # bytes of a count
_FAILED = -1
_PATIENCE = 0.1  # seconds between two looks at how far the others are


def worthwhile(num_bytes: int) -> int:
    """How many processes are worth having for an output of so many bytes."""
    return max(1, min(num_workers(), num_bytes // _LEAST_BYTES)) if _CAN_FORK else 1


@dataclass(frozen=True, slots=True)
class Forks(Ranks):
    """One of some processes of which the first forked the others.

    Attributes:
        advance: to be called with the bytes just done; what all of them did reaches the first one's caller.
    """

    advance: Callable[[int], None] = field(default=lambda _: None)
    _pipes: tuple[Connection, ...] = ()  # of the first one, to each of the others; of those, to the first

    def broadcast(self, value: T | None) -> T:
        if not self.is_first:
            return _received(self._pipes[0])  # type: ignore[no-any-return]
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # it has failed, which the next gathering finds
                pipe.send_bytes(pickle.dumps(value))
        return value  # type: ignore[return-value]  # the first one has it

    def gather(self, value: T) -> list[T]:
        if self.is_first:
            values = [value, *map(self._awaited, self._pipes)]
            self.advance(0)  # by what they did since
            return values
        self._pipes[0].send_bytes(pickle.dumps(value))
        return []

    def _awaited(self, pipe: Connection) -> Any:
        """What another process gives; it is told meanwhile how far all of them are."""
        while not pipe.poll(_PATIENCE):
            self.advance(0)
        return _received(pipe)


@contextmanager
def forked(size: int, progress: Callable[[int], None]) -> Iterator[Forks]:
    """So many processes that do the body of the context, of which only this one goes on after it.

    Each works on one thread. The others end with the body, or with this process, whatever ends that.

    Args:
        size: how many, this one among them.
        progress: called in this process with the bytes just done, by all of them.

    Raises:
        Exception: what another process raised, as soon as this one tells of its progress or awaits what that gives.
        JobError: another process was ended from outside.
    """
    if size == 1:
        yield Forks(advance=progress)
        return
    if not _CAN_FORK:
        raise JobError(f"{size} processes cannot share the work on this system", hint="leave `--processes` away")
    with ExitStack() as stack:
        stack.enter_context(one_worker())
        shared = mmap.mmap(-1, size * _COUNT)
        counts = memoryview(shared).cast("q")
        alive, lifeline = os.pipe()  # nobody writes to it; the reader notices when this process is gone
        stack.callback(os.close, alive)
        stack.callback(os.close, lifeline)
        pipes: list[Connection] = []
        for rank in range(1, size):
            ours, theirs = Pipe()
            with _held_signals():
                process = _fork()
                if process == 0:  # the body goes on here, in the new process, and never gets beyond
                    child = Forks(rank, size, _counting(counts, rank), (theirs,))
                    yield from _until_the_end(child, theirs, counts, partial(_begin, alive, lifeline))
            theirs.close()
            stack.callback(_end, process)
            stack.callback(ours.close)
            pipes.append(ours)
        yield Forks(0, size, _gathering(counts, pipes, progress), tuple(pipes))


@contextmanager
def _held_signals() -> Iterator[None]:
    """Let signals wait that ask a process to end: a new one must not act as the first would."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns where there are threads, as of the progress bar: they may hold locks. The new process neither
        # prints nor ends as a program does, and torch's locks are free, since nothing is computed now.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return os.fork()
        except OSError as error:
            raise JobError(
                f"another process cannot be started: {error.strerror}", hint="`widen --processes 1` needs no other"
            ) from error


def _begin(alive: int, lifeline: int) -> None:
    """What a new process does first."""
    os.close(lifeline)
    gc.freeze()  # looking at what is there would copy all of it
    for number in _ASKING:  # the first process is asked too, and ends the others
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: int) -> NoReturn:
    os.read(alive, 1)
    os._exit(1)


def _until_the_end(child: Forks, pipe: Connection, counts: memoryview, begin: Callable[[], None]) -> Iterator[Forks]:
    """The body in a process that was forked: it ends with it, and nothing is tidied up that is the first one's."""
    try:
        begin()
        yield child
    except BaseException as error:  # noqa: BLE001 (raised in the first process)
        text = traceback.format_exc()
        try:
            told = pickle.dumps(_Failed(error, text))
        except Exception:  # noqa: BLE001 (whatever it holds)
            told = pickle.dumps(_Failed(RuntimeError(repr(error)), text))
        counts[child.rank] = _FAILED
        with suppress(OSError):
            pipe.send_bytes(told)
    finally:
        os._exit(0)


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a process raised, and its traceback."""

    error: BaseException
    text: str


def _received(pipe: Connection) -> Any:
    try:
        found = pickle.loads(pipe.recv_bytes())  # noqa: S301 (our own process)
    except (EOFError, OSError) as error:
        raise JobError(
            "another process of this command was ended from outside",
            hint="perhaps there was not enough memory, of which one process needs less (`widen --processes 1`)",
        ) from error
    if isinstance(found, _Failed):
        raise found.error from RuntimeError(found.text)
    return found


def _counting(counts: memoryview, rank: int) -> Callable[[int], None]:
    def advance(count: int) -> None:
        counts[rank] += count

    return advance


def _gathering(counts: memoryview, pipes: list[Connection], progress: Callable[[int], None]) -> Callable[[int], None]:
    told = [0] * len(counts)

    def advance(count: int) -> None:
        for rank, pipe in enumerate(pipes, start=1):
            done = counts[rank]
            if done == _FAILED:
                while True:  # what it gave before comes first
                    _received(pipe)
            count += done - told[rank]
            told[rank] = done
        progress(count)

    return advance


def _end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
