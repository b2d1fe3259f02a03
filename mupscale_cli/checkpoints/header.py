"""The header of a safetensors file: read and checked without its data, and written.

The format (huggingface/safetensors): eight bytes with the header's length, little-endian; a JSON
object from tensor name to `dtype`, `shape` and `data_offsets` relative to the end of the header;
then the data, without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard

from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import CheckpointError, is_printable

METADATA_KEY = "mupscale"  # of the record, in the header of an output that is a single file
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_ALIGNMENT = 4096  # data starts on a page, so that any way of writing it is aligned
_LENGTH_BYTES = 8
_MAX_NAME = 1000  # characters; names are matched with every rule of a recipe
_MAX_DIMS = 64
_MAX_BYTES = 2**63  # of a tensor, as far as files can reach


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Neighboring bytes of a tensor that are neighbors in a file too.

    Attributes:
        file: the file that holds them.
        offset: of the first one, from the start of the file.
        num_bytes: how many.
    """

    file: Path
    offset: int
    num_bytes: int


class ReadableTensor(Protocol):
    """A tensor whose bytes are in files."""

    @property
    def spec(self) -> TensorSpec:
        """Name, data type and shape."""

    def byte_ranges(self, start: int, num_bytes: int) -> Iterable[ByteRange]:
        """Where its bytes are, from byte `start` on, in their order.

        Raises:
            CheckpointError: some of them are nowhere.
        """


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose bytes lie together.

    Attributes:
        spec: name, data type and shape.
        file: the file that holds it.
        offset: of its first byte, from the start of the file.
    """

    spec: TensorSpec
    file: Path
    offset: int

    def byte_ranges(self, start: int, num_bytes: int) -> Iterable[ByteRange]:
        """Where its bytes are, from byte `start` on: in one place."""
        return (ByteRange(self.file, self.offset + start, num_bytes),)


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors, in the order of their data, and its metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read or is not what its header says: truncated,
            gaps or overlaps, sizes that contradict shapes, unknown data types.
    """
    with open_file(file) as stream:
        return parse_header(stream, file)


@contextmanager
def open_file(file: Path) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
        CheckpointError: it cannot be read, now or within the context.
    """
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error


def parse_header(stream: BinaryIO, file: Path) -> Header:
    """Read and check a header from wherever the file is; nothing behind it is read.

    Args:
        stream: of the file.
        file: what it is called.

    Raises:
        CheckpointError: the file is not what its header says.
    """
    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if file_size < _LENGTH_BYTES or length > min(MAX_HEADER_BYTES, file_size - _LENGTH_BYTES):
        raise _broken(file, f"its first eight bytes announce a header of {length} bytes in a file of {file_size}")
    text = stream.read(length)
    entries = _parse(text, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(file, "its metadata is not a mapping of texts")
    if not all(_is_unicode(text) for pair in metadata.items() for text in pair):
        raise _broken(file, "its metadata is not Unicode")
    start = _LENGTH_BYTES + length
    tensors = [_stored(name, entry, file, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.spec.num_bytes))
    _check_coverage(tensors, file, start, file_size)
    return Header(tuple(tensors), metadata)


def _broken(file: Path, what: str) -> CheckpointError:
    hint = "the file is truncated or damaged, or not a safetensors file; download or save it again"
    return CheckpointError(f"`{file}` is not a valid safetensors file: {what}", hint=hint)


def _parse(text: bytes, file: Path) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise _broken(file, "its header names a tensor twice")
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
        raise _broken(file, f"a tensor's name is longer than {_MAX_NAME} characters or cannot be shown: {name[:80]!a}")
    if not isinstance(entry, dict):
        raise _broken(file, f"the entry of `{name}` is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _broken(file, f"`{name}` has no data type")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"`{name}` in `{file}` has the data type {dtype[:20]}, which is not supported",
            hint=f"supported: {', '.join(DTYPES)}",
        )
    if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2 and len(shape) <= _MAX_DIMS):
        raise _broken(file, f"`{name}` has no valid shape and offsets")
    spec = TensorSpec(name, dtype, tuple(shape))
    if spec.num_bytes >= _MAX_BYTES:
        raise _broken(file, f"`{name}` has a shape of more bytes than a file can have")
    begin, end = offsets
    if end - begin != spec.num_bytes:
        raise _broken(
            file, f"`{name}` has {end - begin} bytes of data, its shape {list(shape)} in {dtype} takes {spec.num_bytes}"
        )
    return StoredTensor(spec, file, start + begin)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _is_unicode(text: str) -> bool:
    """Whether it can be written again: JSON may escape halves of surrogate pairs, which are no text."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def _check_coverage(tensors: list[StoredTensor], file: Path, start: int, file_size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            what = "a gap before" if tensor.offset > position else "an overlap at"
            raise _broken(file, f"there is {what} the data of `{tensor.spec.name}`")
        position += tensor.spec.num_bytes
    if position != file_size:
        raise _broken(file, f"its tensors end at byte {position}, the file at byte {file_size}")


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str], reserve: int = 0) -> bytes:
    """The first bytes of a safetensors file that holds these tensors, in this order.

    Args:
        specs: the tensors; their data follow one another without gaps.
        metadata: texts for the header's `__metadata__`.
        reserve: bytes of blank space to leave at least, so that the metadata can be rewritten.

    Returns:
        The length and the header, padded with spaces to a whole number of pages.
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
    """Length, header text and spaces, `total` bytes together.

    Raises:
        ValueError: the text does not fit.
    """
    length = total - _LENGTH_BYTES
    if len(text) > length:
        raise ValueError(f"a header of {len(text)} bytes does not fit in {length}")
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)


def header_without_record(file: Path) -> tuple[bytes, int]:
    """What a header that holds the record says beside it, and where the data begin; nothing and 0 if it holds none.

    Raises:
        CheckpointError: the file cannot be read or has no header.
    """
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            entries = _parse(stream.read(min(length, MAX_HEADER_BYTES)), file)
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error
    metadata = entries.get("__metadata__")
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        return b"", 0
    others = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    return json.dumps({**entries, "__metadata__": others}, separators=(",", ":")).encode(), _LENGTH_BYTES + length


def replace_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Rewrite the metadata of a file in place, within the header's blank space."""
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        entries = _parse(stream.read(length), file)
        text = json.dumps({**entries, "__metadata__": dict(metadata)}, separators=(",", ":")).encode()
        stream.seek(0)
        stream.write(pad_header(text, _LENGTH_BYTES + length))
        stream.flush()
        os.fsync(stream.fileno())
