"""Several threads that take jobs from one sequence, each with a room of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

Job = TypeVar("Job")
_MOST = 4  # a disk is busy with fewer
_limit: ContextVar[int] = ContextVar("limit", default=_MOST)


def num_workers() -> int:
    """How many threads are worth starting."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _limit.get())


@contextmanager
def one_worker() -> Iterator[None]:
    """Work on one thread, as where other processes work on the other cores."""
    token = _limit.set(1)
    try:
        with one_thread():
            yield
    finally:
        _limit.reset(token)


def work_through(jobs: Iterable[Job], workers: Sequence[Callable[[Job], None]]) -> None:
    """Do all jobs, each by whichever worker is free; they begin in order.

    Args:
        jobs: taken one at a time, so that they may be made as they are needed.
        workers: one for each thread; a single one works in this thread.

    Raises:
        Exception: that of the first job that failed, in their order; no further job is begun then.
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
        except BaseException:  # an interrupt, which arrives in this thread
            queue.stop()
            queue.wait(sum(thread.ident is not None for thread in threads))
            raise
    if queue.failed:
        raise queue.failed[min(queue.failed)]


class _Queue(Generic[Job]):
    """Jobs for several threads, which are awaited by a count of those that ended.

    Not by joining them: before Python 3.13, a join that is interrupted takes its thread for ended, and a
    process that ends while a thread is at work in torch is aborted.
    """

    def __init__(self, jobs: Iterator[Job]) -> None:
        self.jobs = jobs
        self.lock = threading.Lock()
        self.num_begun = 0
        self.failed: dict[int, BaseException] = {}  # by the number of the job; those before it have all begun
        self.is_stopped = False
        self.ended = threading.Semaphore(0)
        self.num_awaited = 0

    def stop(self) -> None:
        self.is_stopped = True

    def wait(self, count: int) -> None:
        """Until so many threads have ended."""
        while self.num_awaited < count:
            self.ended.acquire()
            self.num_awaited += 1

    def serve(self, worker: Callable[[Job], None]) -> None:
        """Take jobs until there are none, or one fails."""
        torch.set_num_threads(1)
        number = 0
        try:
            while not self.is_stopped:
                with self.lock:
                    number = self.num_begun
                    self.num_begun += 1
                    job = next(self.jobs, None)
                if job is None:
                    return
                worker(job)
        except BaseException as error:  # noqa: BLE001 (raised again where all threads are awaited)
            self.failed[number] = error
            self.stop()
        finally:
            self.ended.release()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, where its own would compete with others or wait for one another over tiny models.

    The setting is partly global, so it is put back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
