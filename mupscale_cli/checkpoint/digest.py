"""Hashes of safetensors files that are taken while their bytes go by, in whatever order those come.

A tensor is cut into leaves: whole rows (slices of its first dimension), as few as take 1024 bytes. Its
hash is the SHA-256 of the CRC-32 of every leaf, a file's that of its header and of its tensors' hashes. So
blocks can be read and written in any order and by several threads, a row that is written many times is
summed once, and a flipped bit anywhere shows; it is meant for accidents, not for forgers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mupscale_cli.checkpoint.header import StoredTensor, read_header
from mupscale_cli.checkpoint.source import RowReader
from mupscale_cli.specs import DTYPES, TensorSpec

LEAF_BYTES = 1024  # a leaf takes at least that: below, hashing would be all overhead
_BLOCK_BYTES = 1 << 20
_OWN_METADATA = "mupscale"  # the record, which holds hashes itself


@dataclass(frozen=True, slots=True)
class DigestState:
    """What a `TensorDigest` knows, to be told to another process.

    Attributes:
        digest: the hash, None while bytes are missing; then nothing else is needed.
        sums: of the leaves, four bytes each, little-endian.
        known: for each leaf, whether its sum is known.
        edges: leaves of which only some bytes are known: these, and for each byte whether it is known.
    """

    digest: bytes | None
    sums: bytes = b""
    known: bytes = b""
    edges: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    @property
    def is_blank(self) -> bool:
        return self.digest is None and 1 not in self.known and not self.edges


class TensorDigest:
    """The hash of one tensor; may be fed from several threads."""

    def __init__(self, spec: TensorSpec) -> None:
        row_bytes = max(1, DTYPES[spec.dtype].size * math.prod(spec.shape[1:]))
        self.leaf_bytes = row_bytes * -(-LEAF_BYTES // row_bytes)
        self.num_bytes = spec.num_bytes
        num_leaves = -(-self.num_bytes // self.leaf_bytes)
        self._sums = array("I", bytes(4 * num_leaves))
        self._known = bytearray(num_leaves)
        self._left = num_leaves
        self._edges: dict[int, tuple[bytearray, bytearray]] = {}
        self._lock = threading.Lock()
        self._digest: bytes | None = None
        self._finish_if_done()

    @property
    def digest(self) -> bytes | None:
        """The hash; None while bytes are missing."""
        return self._digest

    def add(self, start: int, pieces: Sequence[memoryview]) -> None:
        """Take consecutive pieces of the tensor from its byte `start` on; a piece may come several times."""
        if self._digest is not None:
            return
        sums: dict[int, array[int]] = {}  # of the pieces of this call, by identity
        run, run_start = array("I"), start  # whole leaves that follow one another, put together: pieces may be small
        for piece in pieces:
            size = len(piece)
            if start % self.leaf_bytes == 0 and size % self.leaf_bytes == 0:
                found = sums.get(id(piece))
                if found is None:
                    found = sums[id(piece)] = self._leaf_sums(piece)
                run += found
            else:
                self._put(run_start // self.leaf_bytes, run)
                self._add_ragged(start, piece)
                run, run_start = array("I"), start + size
            start += size
        self._put(run_start // self.leaf_bytes, run)

    @property
    def state(self) -> DigestState:
        """What is known so far."""
        with self._lock:
            if self._digest is not None:
                return DigestState(self._digest)
            edges = {leaf: (bytes(held), bytes(filled)) for leaf, (held, filled) in self._edges.items()}
            return DigestState(None, _little_endian(self._sums).tobytes(), bytes(self._known), edges)

    def merge(self, state: DigestState) -> None:
        """Take what was found of the same tensor elsewhere."""
        if self._digest is not None:
            return
        if state.digest is not None:
            self._finish(state.digest)
            return
        sums = array("I")
        sums.frombytes(state.sums)
        sums = _little_endian(sums)
        for first, end in _stretches(state.known):
            self._put(first, sums[first:end])
        for leaf, (held, filled) in state.edges.items():
            for first, end in _stretches(filled):
                self._edge(leaf * self.leaf_bytes + first, memoryview(held)[first:end])

    def _leaf_sums(self, data: memoryview) -> array[int]:
        size = self.leaf_bytes
        if len(data) == size:
            return array("I", [zlib.crc32(data)])
        return array("I", [zlib.crc32(data[i : i + size]) for i in range(0, len(data), size)])

    def _put(self, first: int, sums: array[int]) -> None:
        with self._lock:
            if self._digest is not None or not sums:
                return
            end = first + len(sums)
            self._sums[first:end] = sums
            self._left -= self._known.count(0, first, end)
            self._known[first:end] = b"\1" * len(sums)
            self._finish_if_done()

    def _add_ragged(self, start: int, data: memoryview) -> None:
        """A piece that does not begin or end with a leaf: the whole leaves of it, and the edges apart."""
        size, end = self.leaf_bytes, start + len(data)
        whole_start = start + -start % size
        whole_end = end if end == self.num_bytes else end - end % size
        if whole_start < whole_end:
            self._put(whole_start // size, self._leaf_sums(data[whole_start - start : whole_end - start]))
        else:
            whole_start = whole_end = end
        for low, high in ((start, min(whole_start, end)), (whole_end, end)):
            cuts = (low, *range(low - low % size + size, high, size), high)
            for left, right in itertools.pairwise(cuts if low < high else ()):
                self._edge(left, data[left - start : right - start])

    def _edge(self, start: int, data: memoryview) -> None:
        leaf, begin = divmod(start, self.leaf_bytes)
        length = min(self.leaf_bytes, self.num_bytes - leaf * self.leaf_bytes)
        with self._lock:
            if self._digest is not None or self._known[leaf]:
                return
            held, filled = self._edges.setdefault(leaf, (bytearray(length), bytearray(length)))
            held[begin : begin + len(data)] = data
            filled[begin : begin + len(data)] = b"\1" * len(data)
            if 0 in filled:
                return
            del self._edges[leaf]
        self._put(leaf, array("I", [zlib.crc32(held)]))

    def _finish_if_done(self) -> None:
        if self._left == 0 and self._digest is None:
            self._finish(hashlib.sha256(_little_endian(self._sums)).digest())

    def _finish(self, digest: bytes) -> None:
        self._digest = digest
        self._sums, self._known, self._edges = array("I"), bytearray(), {}


def _little_endian(sums: array[int]) -> array[int]:
    """The same numbers in the byte order in which they are hashed; the same once more brings them back."""
    if sys.byteorder == "little":
        return sums
    swapped = sums[:]
    swapped.byteswap()
    return swapped


def _stretches(flags: bytes) -> Iterator[tuple[int, int]]:
    """Where flags are set: from where to where."""
    first = flags.find(1)
    while first >= 0:
        end = flags.find(0, first)
        end = len(flags) if end < 0 else end
        yield first, end
        first = flags.find(1, end)


def tensor_digests(specs: Iterable[TensorSpec]) -> dict[str, TensorDigest]:
    """An empty hash for every tensor."""
    return {spec.name: TensorDigest(spec) for spec in specs}


def complete(digest: TensorDigest, tensor: StoredTensor, reader: RowReader) -> bytes:
    """The hash of a stored tensor, reading it only if something of it is missing.

    Raises:
        CheckpointError: it cannot be read.
    """
    if digest.digest is None:
        step = digest.leaf_bytes * max(1, _BLOCK_BYTES // digest.leaf_bytes)
        for start in range(0, digest.num_bytes, step):
            data = memoryview(bytearray(min(step, digest.num_bytes - start)))
            reader.read(tensor, start, data)
            digest.add(start, (data,))
    assert digest.digest is not None
    return digest.digest


def header_digest(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The hash of what a header says: tensors in the order of their data, and metadata but for mupscale's record."""
    said = [{key: text for key, text in sorted(metadata.items()) if key != _OWN_METADATA}]
    entries = [[spec.name, spec.dtype, list(spec.shape)] for spec in tensors]
    return hashlib.sha256(json.dumps([said, entries], separators=(",", ":")).encode()).digest()


def combined(header: bytes, digests: Iterable[bytes]) -> str:
    """The hash of a file from those of its header and its tensors."""
    return hashlib.sha256(header + b"".join(digests)).hexdigest()


def safetensors_digest(file: Path, known: Mapping[str, TensorDigest] | None = None) -> str:
    """The hash of a safetensors file.

    Args:
        file: what is hashed.
        known: hashes of its tensors, as far as they have been taken.

    Raises:
        CheckpointError: it cannot be read or is not valid.
    """
    header = read_header(file)
    specs = [tensor.spec for tensor in header.tensors]
    with RowReader() as reader:
        digests = [
            complete((known or {}).get(tensor.spec.name) or TensorDigest(tensor.spec), tensor, reader)
            for tensor in header.tensors
        ]
    return combined(header_digest(specs, header.metadata), digests)
