"""Ranks: the processes of a job that torchrun has started, and the communication between them.

Imports torch only if there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from mupscale_cli.errors import JobError, MupscaleError

T = TypeVar("T")
_TORCHRUN_VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(days=7)  # other processes wait while the first one verifies; torchrun ends them on a failure


@dataclass(frozen=True, slots=True)
class Ranks:
    """The position of this process among those that share a job.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process prepares and publishes the output."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def share(self, total: int) -> tuple[int, int]:
        """Return the start and the end of this process's even share of `total`."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def broadcast(self, value: T | None) -> T:
        """Return the first process's value in every process.

        Raises:
            JobError: another process has ended.
        """
        if self.is_alone:
            return value  # type: ignore[return-value]  # the only process is the first
        import torch.distributed as dist

        values: list[Any] = [value]
        with _job_errors():
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the first one, in rank order; an empty list in the others.

        Raises:
            JobError: another process has ended.
        """
        if self.is_alone:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.size if self.is_first else None
        with _job_errors():
            dist.gather_object(value, values, dst=0)
        return values or []

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run the block in every process; if it fails in any, end all of them and report the error once.

        Raises:
            MupscaleError: the error of the first process that failed, in that process.
            SystemExit: another process failed.
            JobError: another process has ended.
        """
        failed: MupscaleError | None = None
        try:
            yield
        except MupscaleError as error:
            failed = error
        flags = self.broadcast(self.gather(failed is not None))
        assert flags is not None
        if True in flags:
            if failed is not None and flags.index(True) == self.rank:
                raise failed
            raise SystemExit(MupscaleError.exit_code)


ALONE = Ranks()


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return this process's rank from torchrun's environment variables, without contacting the other processes."""
    if not all(environment.get(name) for name in _TORCHRUN_VARIABLES):
        return ALONE
    return Ranks(int(environment["RANK"]), int(environment["WORLD_SIZE"]))


@contextmanager
def join_ranks(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Connect to the other processes of the job inside the context; without torchrun, the process is alone.

    Raises:
        JobError: the other processes cannot be reached.
    """
    if launched_ranks(environment).is_alone:
        yield ALONE
        return
    import torch.distributed as dist

    with _job_errors():
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _job_errors() -> Iterator[None]:
    """Turn communication errors inside the context into `JobError`."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"another process of this job has ended or cannot be reached: {str(error).splitlines()[0]}",
            hint="see the error of that process; nothing was published",
        ) from error
