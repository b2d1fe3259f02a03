"""The processes of one job, as torchrun starts them: which of them this is, and what they tell one another.

Imports torch only where there are several.
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
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=7)  # others wait while the first one verifies; torchrun ends them when one has failed


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of several processes that do the same job.

    Attributes:
        rank: number of this one, from 0 on.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prepares and publishes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def share(self, total: int) -> tuple[int, int]:
        """The part of this one of something that is divided evenly: from where and to where."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def broadcast(self, value: T | None) -> T:
        """What the first one gives, for all of them.

        Raises:
            JobError: another process has ended.
        """
        if self.is_alone:
            return value  # type: ignore[return-value]  # the only one is the first
        import torch.distributed as dist

        values: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """What every one gives, in their order, for the first one; an empty list for the others.

        Raises:
            JobError: another process has ended.
        """
        if self.is_alone:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.size if self.is_first else None
        with _together():
            dist.gather_object(value, values, dst=0)
        return values or []

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """What every process does alike: where it fails in some, all end, and one says why.

        Raises:
            MupscaleError: what failed, in the first of the processes in which it did.
            SystemExit: in the others.
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
    """Which process of its job this is, by what torchrun says; nothing is told to the others."""
    if not all(environment.get(name) for name in _LAUNCHED):
        return ALONE
    return Ranks(int(environment["RANK"]), int(environment["WORLD_SIZE"]))


@contextmanager
def join_ranks(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """The job that this process belongs to, for as long as the context lasts; one of its own without torchrun.

    Raises:
        JobError: the others cannot be reached.
    """
    if launched_ranks(environment).is_alone:
        yield ALONE
        return
    import torch.distributed as dist

    with _together():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What goes wrong between processes, as an error for people."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"another process of this job has ended, or cannot be reached: {str(error).splitlines()[0]}",
            hint="its own message says why; nothing was published",
        ) from error
