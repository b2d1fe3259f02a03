"""Reading, checking and writing the header of a safetensors file, without its data.

The format (huggingface/safetensors) starts with eight bytes for the header's length, little-endian. The header is a
JSON object that maps tensor names to `dtype`, `shape` and `data_offsets`, which count from the end of the header. The
data follow without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard

from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import CheckpointError, is_printable
from mupscale_cli.files import plain, read_errors
from mupscale_cli.text import counted

METADATA_KEY = "mupscale"  # holds the record when the output is a single file
MAX_HEADER_BYTES = 100_000_000  # limit of the reference implementation
_ALIGNMENT = 4096  # data start on a page boundary, which keeps direct and buffered writes aligned
_LENGTH_BYTES = 8
_MAX_NAME = 1000  # characters; each name is matched against every rule of a recipe
_MAX_DIMS = 64
_MAX_BYTES = 2**63  # per tensor: file offsets are signed 64-bit integers


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Consecutive bytes of a tensor that are also consecutive in a file.

    Attributes:
        file: file that contains them.
        offset: offset of the first byte from the start of the file.
        num_bytes: length in bytes.
    """

    file: Path
    offset: int
    num_bytes: int


class ReadableTensor(Protocol):
    """A tensor whose bytes are stored in one or more files."""

    @property
    def spec(self) -> TensorSpec:
        """Name, data type and shape."""

    def byte_ranges(self, start: int, num_bytes: int) -> Iterable[ByteRange]:
        """Locate `num_bytes` of the tensor from byte `start`, in order.

        Raises:
            CheckpointError: no file contains some of the bytes.
        """


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose bytes are consecutive in one file.

    Attributes:
        spec: name, data type and shape.
        file: file that contains it.
        offset: offset of its first byte from the start of the file.
    """

    spec: TensorSpec
    file: Path
    offset: int

    def byte_ranges(self, start: int, num_bytes: int) -> Iterable[ByteRange]:
        """Locate `num_bytes` of the tensor from byte `start`: a single range."""
        return (ByteRange(self.file, self.offset + start, num_bytes),)


@dataclass(frozen=True, slots=True)
class JoinedTensor:
    """A tensor whose rows, or parts of all its rows, are stored in several places.

    Attributes:
        spec: name, data type and shape.
        parts: the parts, in their order along `dim`.
        dim: the dimension along which they are joined.
    """

    spec: TensorSpec
    parts: tuple[StoredTensor, ...]
    dim: int = 0

    def byte_ranges(self, start: int, num_bytes: int) -> Iterable[ByteRange]:
        """Locate `num_bytes` of the tensor from byte `start`."""
        stop, num_blocks = start + num_bytes, max(1, math.prod(self.spec.shape[: self.dim]))
        block = max(1, self.spec.num_bytes // num_blocks)  # bytes in which every part has one stretch
        for index in range(start // block, -(-stop // block)):
            first = index * block
            for part in self.parts:
                length = part.spec.num_bytes // num_blocks
                low, high = max(start, first), min(stop, first + length)
                if low < high:
                    yield from part.byte_ranges(index * length + low - first, high - low)
                first += length


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file in data order, and its metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or has gaps, overlaps, sizes that contradict shapes,
            or unsupported data types.
    """
    with open_file(file) as stream:
        return parse_header(stream, file)


@contextmanager
def open_file(file: Path) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
        CheckpointError: the file cannot be opened, or reading fails inside the context.
    """
    with read_errors(file), open(file, "rb", opener=plain) as stream:
        yield stream


def parse_header(stream: BinaryIO, file: Path) -> Header:
    """Read and check a header from an open file, local or remote, without reading the data.

    Args:
        stream: the open file; must be seekable.
        file: its path, for messages and for the tensors' `file`.

    Raises:
        CheckpointError: the header is invalid or contradicts the file's size.
    """
    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if file_size < _LENGTH_BYTES:
        raise _broken(file, f"it has {counted(file_size, 'byte')}, but its header begins with {_LENGTH_BYTES}")
    if length > min(MAX_HEADER_BYTES, file_size - _LENGTH_BYTES):
        raise _broken(
            file, f"its first eight bytes announce a header of {length} bytes, but the file has {file_size} bytes"
        )
    text = stream.read(length)
    entries = _parse(text, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(file, "its metadata is not a mapping of strings")
    if not all(_is_unicode(text) for pair in metadata.items() for text in pair):
        raise _broken(file, "its metadata is not Unicode")
    start = _LENGTH_BYTES + length
    tensors = [_stored(name, entry, file, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.spec.num_bytes))
    _check_coverage(tensors, file, start, file_size)
    return Header(tuple(tensors), metadata)


def _broken(file: Path, what: str) -> CheckpointError:
    hint = "the file is truncated, damaged, or in another format; download or save it again"
    return CheckpointError(f"`{file}` is not a valid safetensors file: {what}", hint=hint)


def _parse(text: bytes, file: Path) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise _broken(file, "its header has duplicate keys")
        return entries

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _broken(file, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _broken(file, "its header is not a JSON object")
    return entries


def _stored(name: str, entry: object, file: Path, start: int) -> StoredTensor:
    if len(name) > _MAX_NAME or not is_printable(name):
        raise _broken(file, f"a tensor name is longer than {_MAX_NAME} characters or not printable: {name[:80]!a}")
    if not isinstance(entry, dict):
        raise _broken(file, f"the entry of `{name}` is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _broken(file, f"`{name}` has no data type")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"`{name}` in `{file}` has the unsupported data type {dtype[:20]}",
            hint=f"supported: {', '.join(DTYPES)}",
        )
    if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2 and len(shape) <= _MAX_DIMS):
        raise _broken(file, f"`{name}` has no valid shape and offsets")
    spec = TensorSpec(name, dtype, tuple(shape))
    if spec.num_bytes >= _MAX_BYTES:
        raise _broken(file, f"the shape of `{name}` takes more bytes than a file can hold")
    begin, end = offsets
    if end - begin != spec.num_bytes:
        raise _broken(
            file,
            f"`{name}` has {end - begin} bytes of data, but its shape {list(shape)} in {dtype} takes {spec.num_bytes}",
        )
    return StoredTensor(spec, file, start + begin)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded again: JSON may escape lone surrogates, which UTF-8 cannot represent."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def _check_coverage(tensors: list[StoredTensor], file: Path, start: int, file_size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            problem = "have a gap before" if tensor.offset > position else "overlap at"
            raise _broken(file, f"its data {problem} `{tensor.spec.name}`")
        position += tensor.spec.num_bytes
    if position != file_size:
        raise _broken(file, f"its tensors end at byte {position}, but the file ends at byte {file_size}")


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str], reserve: int = 0) -> bytes:
    """Encode the start of a safetensors file up to its data.

    Args:
        specs: tensors in data order; their data follow one another without gaps.
        metadata: strings for the header's `__metadata__`.
        reserve: minimum number of blank bytes, for metadata that are rewritten later.

    Returns:
        The header's length and the header, padded with spaces to a whole number of pages.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    total = _LENGTH_BYTES + len(text) + reserve
    return pad_header(text, total + -total % _ALIGNMENT)


def pad_header(text: bytes, total: int) -> bytes:
    """Return the header's length, its text and padding spaces, `total` bytes in all.

    Raises:
        ValueError: the text does not fit.
    """
    length = total - _LENGTH_BYTES
    if len(text) > length:
        raise ValueError(f"a header of {len(text)} bytes does not fit in {length}")
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)


def header_without_record(file: Path) -> tuple[bytes, int]:
    """Return the header of a file without the record, and the offset of the data.

    Returns:
        The header as compact JSON and the offset in bytes; `(b"", 0)` if the header contains no record.

    Raises:
        CheckpointError: the file cannot be read or has no valid header.
    """
    with open_file(file) as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        entries = _parse(stream.read(min(length, MAX_HEADER_BYTES)), file)
    metadata = entries.get("__metadata__")
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        return b"", 0
    others = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    return json.dumps({**entries, "__metadata__": others}, separators=(",", ":")).encode(), _LENGTH_BYTES + length


def replace_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Rewrite the metadata of a file in place and flush it to disk; the header keeps its length.

    Raises:
        ValueError: the new metadata do not fit.
    """
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        entries = _parse(stream.read(length), file)
        text = json.dumps({**entries, "__metadata__": dict(metadata)}, separators=(",", ":")).encode()
        stream.seek(0)
        stream.write(pad_header(text, _LENGTH_BYTES + length))
        stream.flush()
        os.fsync(stream.fileno())
