"""How much memory each kind of work takes, and how much this process may still take. No torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDENING_BYTES = 500_000_000  # bytes, whatever the model's size: blocks, buffers and torch itself
_OVERHEAD = 1.2  # activations, and what loading holds beside the weights
_TRAINING_COPIES = 6  # weights, gradients, up to three entries of state, and what one step holds
_M_MMAP_THRESHOLD = -3  # malloc.h


def inference_bytes(num_parameters: int, element_bytes: int) -> float:
    """Memory to run a model, in bytes.

    Args:
        num_parameters: of the model; of two that are compared, one is loaded at a time.
        element_bytes: of the type that it runs in.
    """
    return _OVERHEAD * num_parameters * element_bytes


def training_bytes(num_parameters: int) -> int:
    """Memory to train models side by side in float64, in bytes; `num_parameters` is that of all of them."""
    return _TRAINING_COPIES * num_parameters * 8


def free_memory() -> int | None:
    """Bytes that the machine, a container and the shell's limit on data leave; None where the system does not tell."""
    return min((*_of_machine(), *_of_container(), *_of_shell()), default=None)


def return_freed_memory() -> None:
    """Have freed blocks of more than a megabyte given back to the system at once, where that can be asked for.

    The allocator of the GNU C library begins to keep blocks once such sizes have been freed (mallopt(3),
    M_MMAP_THRESHOLD), up to 32 MB; a model whose layers come and go then takes the memory of many layers.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _of_machine() -> Iterator[int]:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        yield int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_container() -> Iterator[int]:
    """Of control groups of both versions; a container sees its own group at the root, others under its name."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers in ("", "memory"):
            files = _FIRST if controllers else _SECOND
            for folder in dict.fromkeys((files.root / group.strip("/"), files.root)):
                yield from files.left(folder)


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version of control groups calls its files."""

    root: Path
    limit: str
    usage: str

    def left(self, folder: Path) -> Iterator[int]:
        """What a group may still take. Pages of files count as used, but are given back when memory is short."""
        try:
            limit, usage = ((folder / name).read_text(encoding="ascii").strip() for name in (self.limit, self.usage))
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            of_files = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
            if limit != "max":
                yield max(0, int(limit) - int(usage) + of_files)
        except (OSError, ValueError):
            return


_FIRST = _Files(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
_SECOND = _Files(Path("/sys/fs/cgroup"), "memory.max", "memory.current")


def _of_shell() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        yield max(0, most - _data_bytes())


def _data_bytes() -> int:
    """What counts against the limit on a process's data; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (OSError, StopIteration, ValueError):
        return 0
