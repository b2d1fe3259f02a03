"""What a format of optimizer state has to know, and what its parts hand to one another. No torch.

A format is one class in a file beside this one, and one entry of `finding.FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        markers: files beside a checkpoint that show a state of this format, the most telling first. A marker's first
            part is the state's own name: `optimizer/.metadata` marks the folder `optimizer`.
    """

    markers: tuple[str, ...]

    def files(self, name: str) -> tuple[str, ...]:
        """Return patterns that match every file of a state called `name`, relative to the folder that it is in."""

    def recognizes(self, path: Path) -> bool:
        """Tell whether a file or folder is of this format, as far as that shows without reading much of it."""

    def open(self, options: OpenOptions) -> OptimizerSource:
        """Read what a state consists of, without its data.

        Raises:
            CheckpointError: the state is not valid.
        """


@dataclass(frozen=True)
class OpenOptions:
    """Which state to open.

    Attributes:
        path: a file or folder that the format recognizes.
        config: config.json, by which numbered parameters may be named.
        key: dotted keys that lead to the state in a file that holds more than it.
        allow_pickle: read formats whose structure is a pickle that could run code.
    """

    path: Path
    config: Mapping[str, Any] | None
    key: str | None = None
    allow_pickle: bool = False


class OptimizerSource(Protocol):
    """An optimizer's state of one format; nothing of its data is in memory."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def stored(self) -> Mapping[str, ReadableTensor]:
        """Where its tensors are, by their names."""

    @property
    def content(self) -> Any:
        """What it holds, nested, with blank tensors; None where it holds nothing but tensors."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that hold its tensors."""

    def load(self) -> OptimizerTree:
        """Load the state into memory, by the names of parameters.

        Raises:
            CheckpointError: it cannot be read.
        """

    def widen(self, plan: Plan, policy: Policy) -> WideState:
        """Plan the widened state.

        Raises:
            MupscaleError: it does not belong to the weights, or has entries that are not understood.
        """


@dataclass(frozen=True)
class WriteOptions:
    """How a state is written.

    Attributes:
        directory: where to.
        name: of the file or folder.
        progress: called with the bytes just written.
        allow_nonfinite: copy NaNs and infinities, and count them.
        ranks: the processes that share the work.
        max_shard_bytes: the largest file of a format that has several; None for a single file.
    """

    directory: Path
    name: str
    progress: Progress = lambda _: None
    allow_nonfinite: bool = False
    ranks: Ranks = ALONE
    max_shard_bytes: int | None = None


@dataclass(frozen=True)
class StateFile:
    """A state that was written.

    Attributes:
        name: of the file or folder that it can be opened by.
        nonfinite: how many NaNs and infinities every tensor of the source holds, those that hold some.
        digest: of its files.
    """

    name: str
    nonfinite: dict[str, int]
    digest: str


@dataclass(frozen=True)
class WideState:
    """A widened state that is planned and not written.

    Attributes:
        tensors: how each of its tensors is made; the targets are named as the written file has them.
        stored: where the sources are, by name.
        write: writes it; None but for the first process.
        about: what there is to know of it, for the record.
        groups: of each wide group, the narrow group that it came from and the factor of its learning rate.
        copied: entries of the file that were copied as they are.
        content: what it holds, nested, with blank tensors; None where it holds nothing but tensors.
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
        """Of tensor data."""
        return sum(tensor.target.num_bytes for tensor in self.tensors)
