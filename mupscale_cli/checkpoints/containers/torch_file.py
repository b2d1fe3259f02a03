"""Read torch.save files without loading their tensors.

`torch.load` onto the meta device returns the structure of a file; its tensors have no data, but know where it is.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.base import ZIP, Contents, TensorSlot
from mupscale_cli.checkpoints.containers.blank import find_slots, save_blank
from mupscale_cli.checkpoints.containers.nested import check_structure, walk
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.checkpoints.other_formats import describe
from mupscale_cli.dtypes import DTYPES, TensorSpec, dtype_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import first_line, listed

_MAX_PICKLE = 100_000_000  # bytes of structure, the limit of safetensors for a header


class StridedTensorError(CheckpointError):
    """A tensor is not contiguous in memory.

    Attributes:
        content: the structure of its file, as far as it is known; it may tell that saving it again is of no use.
    """

    content: Any = None


def read_torch_file(path: Path) -> Contents:
    """Read the structure of a torch.save file without running its code or loading its tensors.

    Raises:
        CheckpointError: the file is not in the format of torch.save since torch 1.6, or holds values other than
            contiguous tensors and plain values.
    """
    if not _is_archive(path):
        raise _not_an_archive(path)
    check_archive(path)
    try:
        content = _structure(path)
    except Exception as error:
        raise CheckpointError(
            f"cannot read `{path}`: {first_line(error)}",
            hint=stand_ins.PLAIN_ONLY,
        ) from error
    check_structure(content, path)
    try:
        tensors = {place: stored_tensor(path, place, tensor) for place, tensor in walk(content)}
    except StridedTensorError as error:
        error.content = content
        raise
    if len(set(map(place_name, tensors))) != len(tensors):
        raise CheckpointError(f"`{path}` holds two tensors whose places have the same name")
    return Contents(path, content, tensors)


def load_torch_file(contents: Contents) -> Any:
    """Load a torch.save file with its tensors onto the CPU, without running its code."""
    return stand_ins.load(contents.path, "cpu")


def write_blank_file(file: Path, content: Any) -> dict[str, TensorSlot]:
    """Write a blank file; return the slot of each place's data."""
    save_blank(file, content)
    slots = {slot.offset: slot for slot in find_slots(file)}
    stored = [stored_tensor(file, place, tensor) for place, tensor in walk(_structure(file))]
    return {tensor.spec.name: slots[tensor.offset] for tensor in stored if tensor.spec.num_bytes}


def _structure(path: Path) -> Any:
    return stand_ins.load(path, "meta")


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an archive that spans several disks
        return False


def _not_an_archive(path: Path) -> CheckpointError:
    """Return the error for a file that torch.save did not write, or did not finish."""
    with path.open("rb") as file:
        is_begun = file.read(len(ZIP)) == ZIP
    if is_begun:
        about = f"ends after {path.stat().st_size} bytes, before the list of contents that torch.save writes last"
        return CheckpointError(f"`{path}` {about}", hint="copy, download or save it again")
    found = describe(path)
    return CheckpointError(f"`{path}` is {found.about}, not a file of torch.save", hint=found.hint)


def check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size, since torch.save does not compress.

    Raises:
        CheckpointError: the archive is compressed, has overlapping parts or too much structure, or cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = archive.namelist()
        size = path.stat().st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, EOFError, struct.error) as error:
        raise CheckpointError(f"cannot read `{path}`: {first_line(error)}") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"`{path}` is a zip archive without `data.pkl`, which torch.save writes; it holds {listed(names, 5)}",
            hint="unpack it, and pass the checkpoint that is inside",
        )
    pickles = sum(info.file_size for info in infos if info.filename.endswith("data.pkl"))
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > size:
        raise CheckpointError(f"`{path}` was not written by torch.save: it is compressed, or its parts overlap")
    if pickles > _MAX_PICKLE:
        raise CheckpointError(
            f"the structure of `{path}` is larger than {_MAX_PICKLE // 10**6} MB, not counting tensors"
        )


def stored_tensor(path: Path, place: Place, tensor: torch.Tensor) -> StoredTensor:
    """Return where the data of a tensor is that was loaded from a file onto the meta device."""
    return StoredTensor(
        TensorSpec(place_name(place), dtype_name(tensor.dtype, place_name(place), path), tuple(tensor.shape)),
        path,
        data_offset(path, place_name(place), tensor, path.stat().st_size),
    )


def data_offset(path: Path, name: str, tensor: torch.Tensor, size: int) -> int:
    """Return the offset of the data of a tensor that was loaded onto the meta device.

    Args:
        path: the file, for messages.
        name: the tensor's name, for messages.
        tensor: the tensor without data.
        size: bytes of the archive; the offset counts from its first byte.

    Raises:
        CheckpointError: the data is not contiguous, or not in the archive.
    """
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise StridedTensorError(
            f"`{name}` in `{path}` is not contiguous in memory",
            hint="call `.contiguous()` on it and save the file again",
        )
    storage: Any = tensor.untyped_storage()
    # Set by torch.load; missing if the archive lacks the storage.
    start = getattr(storage, "_checkpoint_offset", None)
    first = int(tensor.storage_offset()) * tensor.element_size()
    if start is None or first < 0 or start + first + tensor.numel() * tensor.element_size() > size:
        raise CheckpointError(f"the data of `{name}` is not in `{path}`")
    return int(start) + first


def dtype_name(dtype: torch.dtype, name: str, path: Path) -> str:
    """Return the name that a safetensors header has for a data type.

    Raises:
        CheckpointError: the data type is not supported.
    """
    try:
        return dtype_of(dtype).name
    except KeyError as error:
        raise CheckpointError(f"`{name}` in `{path}` has the unsupported data type {dtype}") from error


def blank_tensor(spec: TensorSpec) -> torch.Tensor:
    """Create a tensor without data, the placeholder of a tensor in content to be written."""
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype].torch, device="meta")
