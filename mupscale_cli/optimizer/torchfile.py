"""Files of torch.save that hold an optimizer's state: read and written without loading their tensors.

`torch.load` under FakeTensorMode gives the structure of a file with tensors that have no data but
know where theirs are; `torch.serialization.skip_data` writes a file whose tensors are still blank.
Between the two, tensors are streamed from place to place as those of safetensors files are.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.target import PlacedFile, reported
from mupscale_cli.errors import CheckpointError, OutputError
from mupscale_cli.specs import TensorSpec

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_TORCH = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_CRC_BLOCK = 1 << 20
Place = tuple[Any, ...]  # the keys and indices that lead to a value


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
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"`{path}` is not a file that torch.save has written since torch 1.6",
            hint="load it with torch and save it again",
        )
    try:
        with FakeTensorMode():
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 (whatever an unpickler meets in a broken file)
        raise CheckpointError(
            f"cannot read `{path}`: {str(error).splitlines()[0]}",
            hint="only tensors and plain values are read; a pickle could run code",
        ) from None
    tensors = {place: _stored(path, place, tensor) for place, tensor in walk(content)}
    return TorchFile(path, content, tensors)


def walk(content: Any, place: Place = ()) -> Iterator[tuple[Place, torch.Tensor]]:
    """Every tensor in nested mappings and sequences, with its place."""
    if isinstance(content, torch.Tensor):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from walk(value, (*place, key))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from walk(value, (*place, index))


def place_name(place: Place) -> str:
    """A place as text: `optimizer/state/0/exp_avg`."""
    return "/".join(map(str, place))


def _stored(path: Path, place: Place, tensor: torch.Tensor) -> StoredTensor:
    name = place_name(place)
    if tensor.dtype not in DTYPE_NAMES:
        raise CheckpointError(f"`{name}` in `{path}` has the data type {tensor.dtype}, which is not supported")
    if not tensor.is_contiguous():
        raise CheckpointError(
            f"`{name}` in `{path}` is not contiguous in memory", hint="save it again after `.contiguous()`"
        )
    storage: Any = tensor.untyped_storage()
    # Set by torch.load under FakeTensorMode, and documented for this purpose.
    offset = storage._checkpoint_offset + tensor.storage_offset() * tensor.element_size()  # noqa: SLF001
    return StoredTensor(TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)), path, offset)


def blank(spec: TensorSpec) -> torch.Tensor:
    """A tensor without data that stands for one in a structure to be written."""
    with FakeTensorMode():
        return torch.empty(spec.shape, dtype=_TORCH[spec.dtype])


class TorchWriter:
    """Writes a file of torch.save: the structure first, then tensors at their places. A context manager.

    Args:
        file: must not exist.
        content: the structure, with `blank` tensors.
    """

    def __init__(self, file: Path, content: Any) -> None:
        self.file = file
        try:
            with reported(file), skip_data(materialize_fake_tensors=True):
                torch.save(content, file)
        except RuntimeError as error:  # torch's own writer reports a full disk this way
            raise OutputError(f"cannot write `{file}`: {str(error).splitlines()[0]}") from None
        self.offsets = {tensor.spec.name: tensor.offset for tensor in read_torch_file(file).tensors.values()}
        self._out = PlacedFile(file, "r+b")

    def __enter__(self) -> TorchWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._out as out, reported(self.file):
            if kind is None:
                _write_checksums(self.file, out.stream)
                os.fsync(out.stream.fileno())

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces of a tensor from its byte `start` on."""
        self._out.write(self.offsets[name] + start, pieces)


def _write_checksums(file: Path, stream: BinaryIO) -> None:
    """Put the checksums of the data that were written after the zip archive was made."""
    with zipfile.ZipFile(file) as archive:
        infos, position = archive.infolist(), archive.start_dir
    for info in infos:
        stream.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
        start = info.header_offset + 30 + name_length + extra_length
        checksum = struct.pack("<I", _checksum(stream, start, info.file_size))
        if info.flag_bits & 8:  # sizes and checksum follow the data
            _patch(stream, start + info.file_size + 4, checksum)
        else:
            _patch(stream, info.header_offset + 14, checksum)
        stream.seek(position + 28)
        lengths = struct.unpack("<HHH", stream.read(6))
        _patch(stream, position + 16, checksum)
        position += 46 + sum(lengths)


def _checksum(stream: BinaryIO, start: int, size: int) -> int:
    stream.seek(start)
    value = 0
    while size:
        data = stream.read(min(size, _CRC_BLOCK))
        value = zlib.crc32(data, value)
        size -= len(data)
    return value


def _patch(stream: BinaryIO, position: int, data: bytes) -> None:
    stream.seek(position)
    stream.write(data)
