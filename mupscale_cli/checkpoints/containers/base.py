"""The interface of a container, and the values that pass through it. No torch.

A container is one class in `kinds.py` and the functions that it calls in modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mupscale_cli.checkpoints.containers.places import Place
from mupscale_cli.checkpoints.header import ReadableTensor

ZIP = b"PK\x03\x04"  # the first bytes of a file of torch.save


@dataclass(frozen=True)
class Contents:
    """The structure of a container; its tensors stay on disk.

    Attributes:
        path: the file or folder.
        content: nested mappings and sequences with blank tensors.
        tensors: where the bytes of each tensor are, by its place.
    """

    path: Path
    content: Any
    tensors: Mapping[Place, ReadableTensor]


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """The space that a blank container reserves for a tensor's data.

    Attributes:
        file: the file that contains it.
        offset: the place of the first byte.
        num_bytes: the size of the data.
        checksums: the two places of the data's CRC in the archive: with the data, and in the directory.
    """

    file: Path
    offset: int
    num_bytes: int
    checksums: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Share:
    """A stretch of a tensor's bytes, and where in a container it goes.

    Attributes:
        slot: the name of the slot.
        first: the place of the stretch in the slot, in bytes.
        start: its place in the tensor, in bytes.
        num_bytes: its length.
    """

    slot: str
    first: int
    start: int
    num_bytes: int


class Container(Protocol):
    """A way to store nested values with tensors.

    Attributes:
        name: its name in records.
    """

    name: str

    def recognizes(self, path: Path) -> bool:
        """Tell whether a file or folder may be such a container, without reading much of it."""

    def root(self, file: Path) -> Path:
        """Return the container that one of its files belongs to."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the files of a container."""

    def read(self, path: Path) -> Contents:
        """Read the structure of a container without running its code or loading its tensors.

        Args:
            path: the file or folder.

        Raises:
            CheckpointError: the container is damaged, or holds values other than tensors and plain values.
        """

    def load(self, contents: Contents) -> Any:
        """Load a container with its tensors.

        Raises:
            CheckpointError: torch cannot read the container.
        """

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        """Write a new container whose tensors have no data yet.

        Args:
            path: the file or folder, which must not exist.
            content: nested mappings and sequences with blank tensors.

        Returns:
            The slot of each tensor that has data, by the name of its place.

        Raises:
            OutputError: the disk is full, or a file cannot be written.
        """

    def shares(self, _content: Any, /) -> Mapping[str, tuple[Share, ...]]:
        """Return where the bytes of each tensor go, by the name of its place, if that is not one slot of this name.

        The argument is what `write_blank` gets.
        """
        return {}

    def resized(self, _shapes: Mapping[str, tuple[int, ...]], /) -> Container:
        """Return the container for the state of a model of other sizes, given all shapes in the order of the model."""
        return self
