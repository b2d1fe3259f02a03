"""The space on disk that outputs and downloads need, estimated from headers. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.optimizers.finding import state_files, state_name
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan import Plan
from mupscale_cli.tasks.source import Source


@dataclass(frozen=True)
class Disk:
    """The space that is needed on a file system.

    Attributes:
        place: a directory on the file system.
        needed: bytes that are written there.
        free: free bytes, including those that a killed run has already written.
    """

    place: Path
    needed: int
    free: int

    @property
    def has_room(self) -> bool:
        """Whether the outputs fit."""
        return self.needed <= self.free

    def as_record(self) -> dict[str, Any]:
        """Return the document of these needs."""
        return {"place": str(self.place), "needed": self.needed, "free": self.free, "has_room": self.has_room}


def wide_state_bytes(source: Source, plan: Plan, options: StateOptions, made: Mapping[Path, int]) -> int:
    """Estimate the size of the wide optimizer state in bytes; it grows as the parameters do.

    Args:
        source: the narrow checkpoint.
        plan: the plan of its weights.
        options: which state is widened.
        made: the size of the state of each output that earlier steps of a job will write, by its resolved path.
    """
    before, after = plan.num_parameters
    return narrow_state_bytes(source, options, made) * after // max(before, 1)


def narrow_state_bytes(source: Source, options: StateOptions, made: Mapping[Path, int]) -> int:
    """Return the size of the optimizer state in bytes, with arguments as for the wide one; 0 if there is none."""
    if options.optimizer == "none":
        return 0
    checkpoint = source.checkpoint
    if (planned := made.get(checkpoint.path.resolve())) is not None:
        return planned
    if source.remote is not None and options.optimizer == "auto":
        name, sizes = state_name(source.remote.sizes), source.remote.sizes
        return 0 if name is None else sum(sizes[file] for file in state_files(sizes, name))
    if not checkpoint.path.exists():
        return 0
    if (trained := checkpoint.trained) is not None and trained.state is not None:  # in the file of the weights
        return max(sum(file.stat().st_size for file in trained.files) - checkpoint.num_bytes, 0)
    path = options.find(checkpoint)
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def disks(files: Iterable[tuple[Path, int]]) -> Iterator[Disk]:
    """Yield the space that outputs and downloads need on each file system.

    Args:
        files: the path of each file or folder that will be written, and its size in bytes.
    """
    needed: dict[int, tuple[Path, int, int]] = {}
    for target, num_bytes in files:
        place = next(parent for parent in target.resolve().parents if parent.exists())
        device = place.stat().st_dev
        place, total, reused = needed.get(device, (place, 0, 0))
        needed[device] = (place, total + num_bytes, reused + _partial_bytes(target))
    for place, total, reused in needed.values():
        yield Disk(place, total, shutil.disk_usage(place).free + reused)


def _partial_bytes(target: Path) -> int:
    """Return the bytes that a killed run has already written of an output."""
    parts = target.parent.glob(f".{target.name}.partial-*/*") if target.parent.exists() else ()
    return sum(file.stat().st_size for file in parts if file.is_file())
