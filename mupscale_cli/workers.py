"""Several threads that take jobs from one sequence, each with a room of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Job = TypeVar("Job")
_MOST = 4  # a disk is busy with fewer


def num_workers() -> int:
    """How many threads are worth starting."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST)


def work_through(jobs: Iterable[Job], workers: Sequence[Callable[[Job], None]]) -> None:
    """Do all jobs, each by whichever worker is free; they begin in order.

    Args:
        jobs: taken one at a time, so that they may be made as they are needed.
        workers: one for each thread; a single one works in this thread.

    Raises:
        Exception: the first that a worker, or making a job, raised; no further job is begun then.
    """
    if len(workers) == 1:
        for job in jobs:
            workers[0](job)
        return
    queue = _Queue(iter(jobs))
    with _one_thread_each():
        threads = [threading.Thread(target=queue.serve, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # an interrupt, which arrives in this thread
            queue.stop()
            for thread in threads:
                thread.join()
            raise
    if queue.failed is not None:
        raise queue.failed


class _Queue(Generic[Job]):
    def __init__(self, jobs: Iterator[Job]) -> None:
        self.jobs = jobs
        self.lock = threading.Lock()
        self.failed: BaseException | None = None
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True

    def serve(self, worker: Callable[[Job], None]) -> None:
        """Take jobs until there are none, or one fails."""
        torch.set_num_threads(1)
        try:
            while not self.is_stopped:
                with self.lock:
                    job = next(self.jobs, None)
                if job is None:
                    return
                worker(job)
        except BaseException as error:  # noqa: BLE001 (raised again where all threads are awaited)
            self.failed = self.failed or error
            self.stop()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch's own threads would compete with these; the setting is partly global, so it is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
