"""Digests of files, XXH3-128: against accidents, not against forgers.

A source is hashed whole and in order, so that its digest is what `xxhsum -H2` prints. An output is hashed while it
is written, in whatever order, by several threads and processes: it is cut into segments, and its digest is the
XXH3-128 of theirs, one after the other. What no process wrote as a whole segment is read from the file in the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from xxhash import xxh3_128, xxh3_128_digest, xxh3_128_hexdigest

from mupscale_cli.checkpoints.header import header_without_record
from mupscale_cli.errors import CheckpointError

SEGMENT_BYTES = 256 << 10  # what is written at once
Segments = Mapping[int, bytes]  # the digest of each, by its number
_NONE: Segments = MappingProxyType({})
_BLOCK_BYTES = 1 << 20


def file_digest(file: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """The XXH3-128 of a file, as `xxhsum -H2` prints it.

    Args:
        file: what is hashed.
        progress: called with the bytes just read.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK_BYTES))
    try:
        with open(file, "rb", buffering=0) as stream:
            while count := stream.readinto(block):
                digest.update(block[:count])
                progress(count)
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error
    return digest.hexdigest()


def segment_digest(pieces: Iterable[memoryview]) -> bytes:
    """The digest of a segment that comes in pieces, one after the other."""
    digest = xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def segments_digest(file: Path, known: Segments = _NONE) -> str:
    """The digest of an output by its segments, which begin at multiples of `SEGMENT_BYTES` of the file.

    The header of a safetensors file may hold the record, which holds this digest. Such a header counts without it, and
    the segments begin behind it.

    Args:
        file: what is hashed.
        known: digests of segments that were taken while they were written; the others are read.

    Raises:
        CheckpointError: it cannot be read.
    """
    said, start = header_without_record(file) if file.suffix == ".safetensors" else (b"", 0)
    digests = [xxh3_128_digest(said)] if said else []
    try:
        with open(file, "rb") as stream:
            for number in range(start // SEGMENT_BYTES, -(-os.fstat(stream.fileno()).st_size // SEGMENT_BYTES)):
                begin, end = number * SEGMENT_BYTES, (number + 1) * SEGMENT_BYTES
                digest = known.get(number) if begin >= start else None
                if digest is None:
                    stream.seek(max(begin, start))
                    digest = xxh3_128_digest(stream.read(end - stream.tell()))
                digests.append(digest)
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error
    return xxh3_128_hexdigest(b"".join(digests))


def files_digest(files: Iterable[Path], of: Callable[[Path], str] = file_digest) -> str:
    """The digest of several files from theirs, in the order of their names; of one file its own.

    Args:
        files: what is hashed.
        of: the digest of each.

    Raises:
        CheckpointError: one cannot be read.
    """
    digests = [of(file) for file in sorted(files)]
    return digests[0] if len(digests) == 1 else xxh3_128_hexdigest(bytes.fromhex("".join(digests)))
