"""Write blank torch.save files, then fill them from several threads and processes.

`torch.serialization.skip_data` writes a file that reserves space for its tensors. Tensors are then streamed into these
slots, like those of safetensors files, and finally the checksums of the zip archive are set.
"""

from __future__ import annotations

import os
import struct
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch.serialization import skip_data

from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.base import TensorSlot
from mupscale_cli.checkpoints.containers.checksums import Checksum, Stretches
from mupscale_cli.checkpoints.containers.nested import map_tensors
from mupscale_cli.checkpoints.digests import Segments
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.errors import OutputError
from mupscale_cli.text import first_line


def save_blank(file: Path, content: Any) -> None:
    """Write a new torch.save file whose tensors have no data yet.

    Args:
        file: the file, which must not exist.
        content: nested mappings and sequences with blank tensors.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
    """
    try:
        with output_errors(file), skip_data():
            torch.save(
                map_tensors(content, (), lambda _, tensor: _UnwrittenTensor(tensor)), file, pickle_module=stand_ins
            )
    except RuntimeError as error:  # torch's own writer reports a full disk this way
        raise OutputError(f"cannot write `{file}`: {first_line(error)}") from error


@dataclass(frozen=True)
class _UnwrittenTensor:
    """A blank tensor that is saved like a tensor of the CPU.

    torch.save does the same with a FakeTensor, but importing its machinery takes longer than total else.
    """

    tensor: torch.Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=self.tensor.untyped_storage(), dtype=self.tensor.dtype, _internal=True
        )
        storage._fake_device = torch.device("cpu")  # noqa: SLF001
        shape = tuple(self.tensor.shape), self.tensor.stride()
        return torch._utils._rebuild_tensor_v2, (storage, 0, *shape, False, OrderedDict())  # noqa: SLF001


def find_slots(file: Path) -> list[TensorSlot]:
    """Return the slot of every storage in a blank file, in the order of its directory.

    Raises:
        OutputError: the file cannot be read back.
    """
    try:
        with output_errors(file), open(file, "rb", buffering=0) as stream, zipfile.ZipFile(file) as archive:
            return list(_slots(file, stream, archive))
    except zipfile.BadZipFile as error:  # also hides errors of the system
        raise OutputError(f"cannot write `{file}`: what was written cannot be read back: {error}") from error


def _slots(file: Path, stream: FileIO, archive: zipfile.ZipFile) -> Iterator[TensorSlot]:
    position = archive.start_dir
    for info in archive.infolist():
        stream.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
        start = info.header_offset + 30 + name_length + extra_length
        has_descriptor = bool(info.flag_bits & 8)  # sizes and checksum follow the data
        local = start + info.file_size + 4 if has_descriptor else info.header_offset + 14
        if info.filename.rpartition("/")[0].endswith("/data"):
            yield TensorSlot(file, start, info.file_size, (local, position + 16))
        stream.seek(position + 28)
        position += 46 + sum(struct.unpack("<HHH", stream.read(6)))


class ArchiveWriter:
    """Context manager that writes tensors into the slots of blank files.

    Attributes:
        slots: the slot of each tensor.
        segments: for each closed file, the digests of the segments that this writer wrote entirely.
        checksums: the checksum of each tensor, over the bytes that this writer wrote.
    """

    def __init__(self, slots: Mapping[str, TensorSlot]) -> None:
        self.slots = slots
        self.segments: dict[Path, Segments] = {}
        self.checksums: dict[str, Checksum] = {}
        self._open: dict[Path, PlacedFile] = {}
        self._unfinished: dict[Path, set[str]] = {}
        for name, slot in slots.items():
            self._unfinished.setdefault(slot.file, set()).add(name)
        self._lock = threading.Lock()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for file in list(self._open):
            self._close(file, is_synced=kind is None)

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces of a tensor from byte `start`; several threads may call this at once."""
        slot = self.slots[name]
        with self._lock:
            checksum = self.checksums.setdefault(name, Checksum())
            out = self._open.get(slot.file)
            if out is None:
                out = self._open[slot.file] = PlacedFile(slot.file, "r+b")
        out.write(slot.offset + start, pieces)
        checksum.add(start, pieces)
        if checksum.value(slot.num_bytes) is not None:
            unfinished = self._unfinished[slot.file]
            with self._lock:  # two threads may both see a complete tensor; one of them must close the file
                is_last = unfinished == {name}
                unfinished.discard(name)
            if is_last:  # a distributed checkpoint may have thousands of files; keep few open
                self._close(slot.file, is_synced=True)

    def _close(self, file: Path, *, is_synced: bool) -> None:
        with self._open.pop(file) as out:
            if is_synced:
                out.sync()
            self.segments[file] = {**self.segments.get(file, {}), **out.segments}


def write_checksums(slots: Mapping[str, TensorSlot], parts: Iterable[Mapping[str, Stretches]]) -> None:
    """Put the checksums of tensors into their archives.

    Args:
        slots: the slot of each tensor.
        parts: the stretches of each tensor's checksum that each process knows.

    Raises:
        OutputError: a part of a tensor was never written, or a file cannot be written.
    """
    checksums = {name: Checksum() for name in slots}
    for part in parts:
        for name, stretches in part.items():
            checksums[name].merge(stretches)
    by_file: dict[Path, list[str]] = {}
    for name, slot in slots.items():
        by_file.setdefault(slot.file, []).append(name)
    for file, names in by_file.items():
        with output_errors(file), open(file, "r+b", buffering=0) as stream:
            for name in names:
                value = checksums[name].value(slots[name].num_bytes)
                if value is None:
                    raise OutputError(f"`{name}` is incomplete in `{file}`")
                for place in slots[name].checksums:
                    _patch(stream, place, value)
            os.fsync(stream.fileno())


def _patch(stream: FileIO, place: int, value: int) -> None:
    stream.seek(place)
    stream.write(struct.pack("<I", value))
