"""Files of torch.save that hold an optimizer's state: read and written without loading their tensors.

`torch.load` under FakeTensorMode gives the structure of a file with tensors that have no data but
know where theirs are; `torch.serialization.skip_data` writes a file whose tensors are still blank.
Between the two, tensors are streamed from place to place as those of safetensors files are.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from mupscale_cli.checkpoint.digest import RowBuffer, Runs
from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.target import PlacedFile, reported
from mupscale_cli.errors import CheckpointError, OutputError
from mupscale_cli.specs import TensorSpec
from mupscale_cli.workers import num_workers, work_through

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_TORCH = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_CRC_BLOCK = 1 << 20
_MAX_PICKLE = 100_000_000  # bytes of structure, as of a safetensors header
_MAX_VALUES = 5_000_000
_MAX_DEPTH = 64
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
    if not _is_archive(path):
        raise CheckpointError(
            f"`{path}` is not a file that torch.save has written since torch 1.6",
            hint="load it with torch and save it again",
        )
    check_archive(path)
    try:
        with FakeTensorMode():
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 (whatever an unpickler meets in a broken file)
        raise CheckpointError(
            f"cannot read `{path}`: {first_line(error)}",
            hint="only tensors and plain values are read; a pickle could run code",
        ) from None
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
        raise CheckpointError(f"cannot read `{path}`: {first_line(error)}") from None
    pickles = sum(info.file_size for info in infos if info.filename.endswith("data.pkl"))
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > size:
        raise CheckpointError(f"`{path}` was not written by torch.save: it is compressed, or its parts overlap")
    if pickles > _MAX_PICKLE:
        raise CheckpointError(f"`{path}` has a structure of more than {_MAX_PICKLE // 10**6} MB, its tensors aside")


def first_line(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_structure(content: Any, path: Path) -> None:
    """Refuse what cannot be gone through: a pickle may hold itself, or one list a million times.

    Raises:
        CheckpointError: it does.
    """
    level, left = [content], _MAX_VALUES
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, (Mapping, list, tuple, set)):
                left -= len(value) + 1
                if left < 0:
                    break
                inner.extend(value.values() if isinstance(value, Mapping) else value)
        level = inner
        if not level or left < 0:
            break
    if level or left < 0:
        raise CheckpointError(
            f"`{path}` holds more than {_MAX_VALUES} values, or is nested deeper than {_MAX_DEPTH} levels"
        )


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
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise CheckpointError(
            f"`{name}` in `{path}` is not contiguous in memory", hint="save it again after `.contiguous()`"
        )
    storage: Any = tensor.untyped_storage()
    # Set by torch.load under FakeTensorMode, and documented for this purpose; meta tensors have none.
    start = getattr(storage, "_checkpoint_offset", None)
    spec = TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
    first = tensor.storage_offset() * tensor.element_size()
    if start is None or first < 0 or start + first + spec.num_bytes > path.stat().st_size:
        raise CheckpointError(f"`{name}` in `{path}` has no data there")
    return StoredTensor(spec, path, start + first)


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
            raise OutputError(f"cannot write `{file}`: {first_line(error)}") from None
        self.offsets = {tensor.spec.name: tensor.offset for tensor in read_torch_file(file).tensors.values()}
        self._out = PlacedFile(file, "r+b")

    def __enter__(self) -> TorchWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._out as out, reported(self.file):
            if kind is None:
                _write_checksums(self.file)
                os.fsync(out.stream.fileno())

    def write(self, name: str, start: int, buffer: RowBuffer, runs: Runs) -> None:
        """Write consecutive runs of a buffer from a tensor's byte `start` on."""
        self._out.write(self.offsets[name] + start, buffer.pieces(runs))


@dataclass(frozen=True)
class _Entry:
    """Where data lie in a zip archive, and the two places of their checksum."""

    start: int
    size: int
    checksums: tuple[int, int]


def _write_checksums(file: Path) -> None:
    """Put the checksums of the data that were written after the zip archive was made."""
    with ExitStack() as stack:
        streams = [stack.enter_context(open(file, "r+b", buffering=0)) for _ in range(num_workers())]
        work_through(list(_entries(file, streams[0])), [partial(_write_checksum, stream=each) for each in streams])


def _entries(file: Path, stream: FileIO) -> Iterator[_Entry]:
    with zipfile.ZipFile(file) as archive:
        infos, position = archive.infolist(), archive.start_dir
    for info in infos:
        stream.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
        start = info.header_offset + 30 + name_length + extra_length
        behind = bool(info.flag_bits & 8)  # sizes and checksum follow the data
        local = start + info.file_size + 4 if behind else info.header_offset + 14
        yield _Entry(start, info.file_size, (local, position + 16))
        stream.seek(position + 28)
        position += 46 + sum(struct.unpack("<HHH", stream.read(6)))


def _write_checksum(entry: _Entry, stream: FileIO) -> None:
    stream.seek(entry.start)
    value, left, buffer = 0, entry.size, memoryview(bytearray(min(entry.size, _CRC_BLOCK)))
    while left:
        size = stream.readinto(buffer[: min(left, _CRC_BLOCK)])
        if not size:
            raise OSError(errno.EIO, "is shorter than it was written")
        value = zlib.crc32(buffer[:size], value)
        left -= size
    for position in entry.checksums:
        _patch(stream, position, struct.pack("<I", value))


def _patch(stream: FileIO, position: int, data: bytes) -> None:
    stream.seek(position)
    stream.write(data)
