"""Read the metadata of torch.distributed.checkpoint, a pickle, without running code.

The pickle names only the classes below, which hold plain values. Any other name is refused.
"""

from __future__ import annotations

import enum
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import plain

_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
}

# Classes of other programs with the fields of torch's, by name: the module of torch's.
_SAME = {
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"): "torch.distributed.checkpoint.filesystem",
}


def read_metadata(file: Path) -> Metadata:
    """Read the `.metadata` of a distributed checkpoint.

    Raises:
        CheckpointError: the file names other classes than torch writes, or is not metadata.
    """
    with open(file, "rb", opener=plain) as stream:
        metadata = _Unpickler(stream, file).load()
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"`{file}` is not the metadata of a distributed checkpoint")
    return metadata


class _Unpickler(pickle.Unpickler):
    """Finds only the classes of metadata, data types and sizes."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype) or found is torch.Size:
            return found
        if (module, name) == ("builtins", "getattr"):
            return self._member
        module = _SAME.get((module, name), module)
        if name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        raise self._refusal(module, name)

    def _member(self, kind: Any, name: Any) -> Any:
        """Return the member of an enumeration, which Python 3.11.0 to 3.11.3 pickle as `getattr(kind, name)`."""
        if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
            raise self._refusal("builtins", "getattr")
        return kind.__members__[name]

    def _refusal(self, module: str, name: str) -> CheckpointError:
        return CheckpointError(
            f"`{self._file}` names `{module}.{name}`, whose code could run",
            hint="load the checkpoint with the program that wrote it, and save only tensors and plain values",
        )
