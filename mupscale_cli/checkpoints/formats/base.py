"""The interface of a weight format: which files it consists of and how their headers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mupscale_cli.checkpoints.header import StoredTensor, open_file


@dataclass(frozen=True)
class Folder:
    """A model directory, whose weight files may be remote, or a single file.

    Attributes:
        path: local directory with at least the JSON files; or the file.
        names: names of all files in the directory, local or remote; empty for a single file.
        open: opens a weight file for reading, local or remote; several may be open at once.
    """

    path: Path
    names: frozenset[str]
    open: Callable[[Path], AbstractContextManager[BinaryIO]] = open_file


@dataclass(frozen=True)
class Weights:
    """All tensors of a set of weight files by name, in file and data order, and the metadata of the first file."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


class WeightsFormat(Protocol):
    """Finds the weights of one format by file name and reads their headers.

    Attributes:
        suffixes: usual file name suffixes.
        indices: names of JSON files that map tensors to weight files.
    """

    suffixes: tuple[str, ...]
    indices: tuple[str, ...]

    def recognizes(self, file: Path) -> bool:
        """Tell from its name whether a file may be of this format."""

    def files(self, folder: Folder) -> tuple[Path, ...]:
        """Return the weight files of a folder in this format, in order; empty if there are none.

        Raises:
            CheckpointError: a file is missing, or the choice of files is ambiguous.
        """

    def read(self, folder: Folder, files: tuple[Path, ...]) -> Weights:
        """Read the headers of weight files.

        Raises:
            CheckpointError: a file is invalid, or the files contradict each other.
        """
