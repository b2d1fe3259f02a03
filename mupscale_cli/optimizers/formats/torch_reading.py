"""Files of torch.save that hold an optimizer's state: read without loading their tensors.

`torch.load` onto the meta device gives the structure of a file with tensors that have no data but
know where theirs are.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.dtypes import DTYPES, TensorSpec, dtype_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.nested import Place, check_structure, place_name, walk

_MAX_PICKLE = 100_000_000  # bytes of structure, as of a safetensors header


@dataclass(frozen=True)
class TorchFile:
    """The structure of a file, its tensors by the place where they stand."""

    path: Path
    content: Any
    tensors: Mapping[Place, StoredTensor]


def read_torch_file(path: Path) -> TorchFile:
    """Read the structure of a file of torch.save; no code of it runs and no tensor is loaded.

    Raises:
        CheckpointError: it is none, is of the format before torch 1.6, holds anything but tensors and
            plain values, or tensors that are not contiguous.
    """
    if not _is_archive(path):
        raise CheckpointError(
            f"`{path}` is not a file that torch.save has written since torch 1.6",
            hint="it is truncated or damaged, or older; what torch can load, load and save again",
        )
    check_archive(path)
    try:
        content = torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:
        raise CheckpointError(
            f"cannot read `{path}`: {first_line(error)}",
            hint="only tensors and plain values are read; a pickle could run code",
        ) from error
    check_structure(content, path)
    tensors = {place: _stored(path, place, tensor) for place, tensor in walk(content)}
    if len(set(map(place_name, tensors))) != len(tensors):
        raise CheckpointError(f"`{path}` holds two tensors in places of the same name")
    return TorchFile(path, content, tensors)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks
        return False


def check_archive(path: Path) -> None:
    """Refuse a file that unpacks to more than it is: torch.save compresses nothing.

    Raises:
        CheckpointError: it does, or it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        size = path.stat().st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, EOFError, struct.error) as error:
        raise CheckpointError(f"cannot read `{path}`: {first_line(error)}") from error
    pickles = sum(info.file_size for info in infos if info.filename.endswith("data.pkl"))
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > size:
        raise CheckpointError(f"`{path}` was not written by torch.save: it is compressed, or its parts overlap")
    if pickles > _MAX_PICKLE:
        raise CheckpointError(f"`{path}` has a structure of more than {_MAX_PICKLE // 10**6} MB, its tensors aside")


def first_line(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _stored(path: Path, place: Place, tensor: torch.Tensor) -> StoredTensor:
    return StoredTensor(
        TensorSpec(place_name(place), dtype_name(tensor.dtype, place_name(place), path), tuple(tensor.shape)),
        path,
        data_offset(path, place_name(place), tensor, path.stat().st_size),
    )


def data_offset(path: Path, name: str, tensor: torch.Tensor, size: int) -> int:
    """Where the data of a tensor begin that was loaded onto the meta device.

    Args:
        path: the file, for messages.
        name: of the tensor, for messages.
        tensor: without data.
        size: bytes of the archive, from whose beginning the offset counts.

    Raises:
        CheckpointError: they are not contiguous, or not in the archive.
    """
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise CheckpointError(
            f"`{name}` in `{path}` is not contiguous in memory", hint="save it again after `.contiguous()`"
        )
    storage: Any = tensor.untyped_storage()
    # Set by torch.load; a storage that the file only announces has none.
    start = getattr(storage, "_checkpoint_offset", None)
    first = int(tensor.storage_offset()) * tensor.element_size()
    if start is None or first < 0 or start + first + tensor.numel() * tensor.element_size() > size:
        raise CheckpointError(f"`{name}` in `{path}` has no data there")
    return int(start) + first


def dtype_name(dtype: torch.dtype, name: str, path: Path) -> str:
    """The header's name of a tensor's data type.

    Raises:
        CheckpointError: it has none.
    """
    try:
        return dtype_of(dtype).name
    except KeyError as error:
        raise CheckpointError(f"`{name}` in `{path}` has the data type {dtype}, which is not supported") from error


def blank_tensor(spec: TensorSpec) -> torch.Tensor:
    """A tensor without data that stands for one in a structure to be written."""
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype].torch, device="meta")
