"""The interface of a format of optimizer state, and the values that pass through it. No torch.

A format is one class in a file next to this one, and one entry of `finding.FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan

Progress = Callable[[int], None]


class StateFormat(Protocol):
    """Finds and opens the states of one format.

    Attributes:
        markers: files in a checkpoint's folder that reveal a state of this format, the most specific first. The first
            part of a marker is the state's name: `optimizer/.metadata` marks the folder `optimizer`.
        has_groups: whether a state holds groups of parameters, whose learning rates a scheduler's state follows.
    """

    markers: tuple[str, ...]
    has_groups: bool = True

    def files(self, name: str) -> tuple[str, ...]:
        """Return patterns that match every file of a state called `name`, relative to its parent folder."""

    def recognizes(self, path: Path) -> bool:
        """Tell whether a file or folder has this format, without reading much of it."""

    def open(self, options: OpenOptions) -> OptimizerSource:
        """Read the structure of a state without its data.

        Raises:
            CheckpointError: the state is invalid.
        """


@dataclass(frozen=True)
class OpenOptions:
    """Which state to open.

    Attributes:
        path: a file or folder that the format recognizes.
        config: config.json, from which numbered parameters may get their names.
        key: dotted keys that lead to the state in a file that holds more.
        kinds: the optimizers that the user says the state belongs to; empty to let it tell.
        weights: the shape of each weight that the trainer saved in another file, in the order of the model.
    """

    path: Path
    config: Mapping[str, Any] | None
    key: str | None = None
    kinds: tuple[str, ...] = ()
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class OptimizerSource(Protocol):
    """Opened optimizer state of one format; its data is not in memory."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def stored(self) -> Mapping[str, ReadableTensor]:
        """The tensors and where their bytes are, by name."""

    @property
    def content(self) -> Any:
        """Everything else that the files hold: nested values with blank tensors, or the metadata."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""

    def load(self) -> OptimizerTree:
        """Load the state into memory.

        Raises:
            CheckpointError: the state cannot be read.
        """

    def widen(self, plan: Plan, policy: Policy) -> WideState:
        """Plan the widened state.

        Raises:
            MupscaleError: the state does not belong to the weights, or has unknown entries.
        """


@dataclass(frozen=True)
class WriteOptions:
    """How to write a state.

    Attributes:
        directory: the folder to write to.
        name: the name of the file or folder to write.
        progress: called with the number of bytes just written.
        allow_nonfinite: copy NaNs and infinities, and count them.
        ranks: the processes that share the work.
        max_shard_bytes: largest file of a format with several files; None for a single file.
    """

    directory: Path
    name: str
    progress: Progress = lambda _: None
    allow_nonfinite: bool = False
    ranks: Ranks = ALONE
    max_shard_bytes: int | None = None


@dataclass(frozen=True)
class StateFile:
    """A written state.

    Attributes:
        name: the file or folder to open it by.
        nonfinite: the number of NaNs and infinities in each tensor of the source that has any.
        digest: the digest of its files.
        stds: the standard deviation of the noise, by widened tensor with noise.
        overflowed: widened tensors in which scaling turned finite values into infinities.
        digests: the digest of each file, by its path.
    """

    name: str
    nonfinite: dict[str, int]
    digest: str
    stds: dict[str, float] = field(default_factory=dict)
    overflowed: tuple[str, ...] = ()
    digests: Mapping[Path, str] = field(default_factory=dict)

    def beside(self, directory: Path) -> list[str]:
        """Return the names of its files in the output's folder other than `name`, and not in a folder of that name."""
        names = (file.relative_to(directory) for file in self.digests)
        return sorted(name.as_posix() for name in names if name.parts[0] != self.name)


@dataclass(frozen=True)
class WideState:
    """A planned widened state.

    Attributes:
        tensors: the plans of its tensors; each target has its name in the written file.
        stored: the narrow tensors, by name.
        write: writes the state; returns None except in the first process.
        about: entries for the record.
        groups: for each wide group, the index of its narrow group and the factor of its learning rate.
        copied: entries of the file that are copied unchanged.
        content: everything else to write: nested values with blank tensors, or the metadata.
    """

    tensors: tuple[TensorPlan, ...]
    stored: Mapping[str, ReadableTensor]
    write: Callable[[WriteOptions], StateFile | None]
    about: dict[str, Any]
    groups: tuple[tuple[int, float], ...] = ()
    copied: tuple[str, ...] = ()
    content: Any = None

    @property
    def num_bytes(self) -> int:
        """The bytes of tensor data."""
        return sum(tensor.target.num_bytes for tensor in self.tensors)
