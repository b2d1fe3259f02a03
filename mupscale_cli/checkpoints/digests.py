"""XXH3-128 digests of files. They detect accidents, not forgery.

A source file is hashed from start to end, so its digest is what `xxhsum -H2` prints. An output file is hashed while
several threads and processes write it in any order: it is cut into segments, and its digest is the XXH3-128 of the
concatenated segment digests. Segments that no process wrote as a whole are read back from the finished file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from xxhash import xxh3_128, xxh3_128_digest, xxh3_128_hexdigest

from mupscale_cli.checkpoints.header import header_without_record, open_file
from mupscale_cli.files import plain, read_errors

SEGMENT_BYTES = 256 << 10
Segments = Mapping[int, bytes]  # digests by segment number
_NO_SEGMENTS: Segments = MappingProxyType({})
_BLOCK_BYTES = 1 << 20


def file_digest(file: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the XXH3-128 of a file in hexadecimal, as `xxhsum -H2` prints it.

    Args:
        file: file to hash.
        progress: called with the number of bytes just read.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK_BYTES))
    with read_errors(file), open(file, "rb", buffering=0, opener=plain) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
            progress(count)
    return digest.hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as the Hub states it for large files.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with read_errors(file), open(file, "rb", buffering=0, opener=plain) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def segment_digest(pieces: Iterable[memoryview]) -> bytes:
    """Return the digest of a segment, given as consecutive pieces."""
    digest = xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def segments_digest(file: Path, known: Segments = _NO_SEGMENTS) -> str:
    """Return the digest of an output file, computed from segments that start at multiples of `SEGMENT_BYTES`.

    The header of a safetensors file may contain the record, which in turn contains this digest. Such a header is
    hashed without the record, and the segments begin after it.

    Args:
        file: file to hash.
        known: digests of segments that were hashed while they were written; all others are read from the file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    header, start = header_without_record(file) if file.suffix == ".safetensors" else (b"", 0)
    digests = [xxh3_128_digest(header)] if header else []
    with open_file(file) as stream:
        for number in range(start // SEGMENT_BYTES, -(-os.fstat(stream.fileno()).st_size // SEGMENT_BYTES)):
            begin, end = number * SEGMENT_BYTES, (number + 1) * SEGMENT_BYTES
            digest = known.get(number) if begin >= start else None
            if digest is None:
                stream.seek(max(begin, start))
                digest = xxh3_128_digest(stream.read(end - stream.tell()))
            digests.append(digest)
    return xxh3_128_hexdigest(b"".join(digests))


def files_digest(files: Iterable[Path], digest: Callable[[Path], str] = file_digest) -> str:
    """Combine the digests of several files, sorted by name, into one; a single file keeps its own digest.

    Args:
        files: files to hash.
        digest: computes the digest of each file.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digests = [digest(file) for file in sorted(files)]
    return digests[0] if len(digests) == 1 else xxh3_128_hexdigest(bytes.fromhex("".join(digests)))
