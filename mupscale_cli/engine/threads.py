"""Threads that work through a sequence of jobs, and torch's own number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

from mupscale_cli.engine.cores import MAX_WORKERS, num_cores

Job = TypeVar("Job")
_limit: ContextVar[int] = ContextVar("limit", default=MAX_WORKERS)
_outside: ContextVar[int | None] = ContextVar("outside", default=None)  # torch's threads outside of `one_thread`


def num_workers() -> int:
    """Return how many threads are worth starting: one per available core, up to a limit."""
    return min(num_cores(), _limit.get())


def num_threads() -> int:
    """Return how many threads torch's operations may use, or might outside of `one_thread`."""
    return _outside.get() or torch.get_num_threads()


@contextmanager
def one_worker() -> Iterator[None]:
    """Limit work inside the context to one thread, for instance because other processes use the other cores."""
    limit, outside = _limit.set(1), _outside.set(1)
    try:
        with one_thread():
            yield
    finally:
        _limit.reset(limit)
        _outside.reset(outside)


def run_jobs(jobs: Iterable[Job], workers: Sequence[Callable[[Job], None]]) -> None:
    """Run all jobs, started in order, each on the next free worker.

    Args:
        jobs: jobs, taken one at a time; may be a generator.
        workers: one function per thread; a single one runs in the calling thread.

    Raises:
        Exception: the error of the first failed job, in job order. No job starts after a failure.
    """
    if len(workers) == 1:
        for job in jobs:
            workers[0](job)
        return
    queue = _Queue(iter(jobs))
    with one_thread():
        threads = [threading.Thread(target=queue.serve, args=(worker,)) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            queue.wait(len(threads))
        except BaseException:  # an interrupt, which Python raises in the main thread
            queue.stop()
            queue.wait(sum(thread.ident is not None for thread in threads))
            raise
    if queue.failed:
        raise queue.failed[min(queue.failed)]


class _Queue(Generic[Job]):
    """Jobs for several threads. A semaphore counts the threads that have ended.

    Threads are not joined: before Python 3.13, an interrupted join marks its thread as ended, and a process that exits
    while a thread is running in torch is aborted.
    """

    def __init__(self, jobs: Iterator[Job]) -> None:
        self.jobs = jobs
        self.lock = threading.Lock()
        self.num_started = 0
        self.failed: dict[int, BaseException] = {}  # by job number; all earlier jobs have started
        self.is_stopped = False
        self.ended = threading.Semaphore(0)
        self.num_ended = 0

    def stop(self) -> None:
        self.is_stopped = True

    def wait(self, count: int) -> None:
        """Wait until `count` threads have ended."""
        while self.num_ended < count:
            self.ended.acquire()
            self.num_ended += 1

    def serve(self, worker: Callable[[Job], None]) -> None:
        """Run jobs until none are left or one fails."""
        torch.set_num_threads(1)
        number = 0
        try:
            while not self.is_stopped:
                with self.lock:
                    number = self.num_started
                    self.num_started += 1
                    job = next(self.jobs, None)
                if job is None:
                    return
                worker(job)
        except BaseException as error:  # noqa: BLE001 (raised again by `run_jobs`)
            self.failed[number] = error
            self.stop()
        finally:
            self.ended.release()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit each of torch's operations to one thread inside the context.

    More threads would compete with ours, or spend their time waiting for each other on small tensors. The setting is
    partly global, so the context restores it.
    """
    before, token = torch.get_num_threads(), _outside.set(num_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _outside.reset(token)
