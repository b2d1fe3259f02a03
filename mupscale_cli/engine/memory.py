"""Estimates of the memory that tasks need, and the memory that is available. Uses no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDENING_BYTES = 500_000_000  # for a model of any size: blocks, buffers and torch itself
_LIBRARIES = 700_000_000  # Python, torch and transformers
_OVERHEAD = 1.2  # activations, and temporary memory while loading
# Copies of a model in training: weights, gradients, up to three state entries, and temporary memory of a step. The
# narrow model trains with a copy of itself; its largest gradients, and its weights at three times, are kept.
_WIDE_COPIES, _NARROW_COPIES, _KEPT_COPIES = 6, 2 * 6 + 4, 3


def inference_bytes(num_parameters: int, element_bytes: int) -> float:
    """Return the memory that running a model takes, in bytes.

    Args:
        num_parameters: number of parameters. When two models are compared, only one is loaded at a time.
        element_bytes: bytes per parameter in the type that the model runs in.
    """
    return _OVERHEAD * num_parameters * element_bytes


def comparison_bytes(num_elements: int) -> float:
    """Return the memory that comparing what two models compute takes, in bytes.

    Args:
        num_elements: elements of the largest tensor, which is converted to float64 as a whole at worst; or the
            parameters of the larger model if its weights do not stay in their file.
    """
    return _LIBRARIES + inference_bytes(num_elements, 8)


def training_bytes(narrow: int, wide: int) -> float:
    """Return the memory that training both models in float64 takes, one after the other, in bytes.

    Args:
        narrow: number of parameters of the narrow model.
        wide: number of parameters of the wide model.
    """
    return _LIBRARIES + 8 * max(_NARROW_COPIES * narrow, _WIDE_COPIES * wide + _KEPT_COPIES * narrow)


def free_memory() -> int | None:
    """Return the available memory in bytes, limited by machine, container and `ulimit -d`; None if unknown."""
    return min((*_machine_bytes(), *_container_bytes(), *_ulimit_bytes()), default=None)


def _machine_bytes() -> Iterator[int]:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        yield int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> Iterator[int]:
    """Yield what control groups (v1 and v2) leave, read under the group's own path and at the root.

    Inside a container, the container's group is at the root; elsewhere it is under its path.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers in ("", "memory"):
            files = _CGROUP_V1 if controllers else _CGROUP_V2
            for folder in dict.fromkeys((files.root / group.strip("/"), files.root)):
                yield from files.available(folder)


@dataclass(frozen=True, slots=True)
class _ControlGroupFiles:
    """The file names of a version of control groups."""

    root: Path
    limit: str
    usage: str

    def available(self, folder: Path) -> Iterator[int]:
        """Yield the bytes that a group may still allocate; cached file pages count as available."""
        try:
            limit, usage = ((folder / name).read_text(encoding="ascii").strip() for name in (self.limit, self.usage))
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            cached = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
            if limit != "max":
                yield max(0, int(limit) - int(usage) + cached)
        except (OSError, ValueError):
            return


_CGROUP_V1 = _ControlGroupFiles(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
_CGROUP_V2 = _ControlGroupFiles(Path("/sys/fs/cgroup"), "memory.max", "memory.current")


def _ulimit_bytes() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        yield max(0, most - _data_bytes())


def _data_bytes() -> int:
    """Return how many bytes count against the process's data limit; 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (OSError, StopIteration, ValueError):
        return 0
