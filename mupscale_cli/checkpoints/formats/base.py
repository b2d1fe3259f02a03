"""What a format of weights has to know: which files it consists of, and how their headers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mupscale_cli.checkpoints.header import StoredTensor, open_file


@dataclass(frozen=True)
class Folder:
    """A model directory, whose weights may be elsewhere, or a single file.

    Attributes:
        path: the directory, where at least its JSON files are; or the file.
        names: of all its files; none of a single file.
        open: how one of its weight files is opened for reading, wherever that is; several may be open at once.
    """

    path: Path
    names: frozenset[str]
    open: Callable[[Path], AbstractContextManager[BinaryIO]] = open_file


@dataclass(frozen=True)
class Weights:
    """Every tensor of some files by name, in the order of files and of data, and the first file's metadata."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


class WeightsFormat(Protocol):
    """Finds and opens the weights of one format, by names and headers alone.

    Attributes:
        suffixes: what the names of its files usually end with.
        indices: JSON files of a folder that say which weights are where, if it has some.
    """

    suffixes: tuple[str, ...]
    indices: tuple[str, ...]

    def recognizes(self, file: Path) -> bool:
        """Tell whether a file that was given by name is of this format, as far as its name shows."""

    def files(self, folder: Folder) -> tuple[Path, ...]:
        """Return the files that hold a folder's weights in this format, in their order; none if it has none.

        Raises:
            CheckpointError: some are missing, or it cannot be told which ones are meant.
        """

    def read(self, folder: Folder, files: tuple[Path, ...]) -> Weights:
        """Read the headers of weight files.

        Raises:
            CheckpointError: a file is not valid, or they do not belong together.
        """
