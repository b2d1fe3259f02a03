"""Hashes of safetensors files that are taken while their bytes go by, in whatever order those come.

A tensor is cut into leaves: whole rows (slices of its first dimension), as few as take 1024 bytes. Its
hash is the SHA-256 of the sums of its leaves (see `leaf_sums`), a file's that of its header and of its
tensors' hashes. So blocks can be read and written in any order and by several threads, a row that is
written many times is summed once, and a flipped bit anywhere shows; it is meant for accidents, not for
forgers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.header import Stored, read_header
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import DTYPES, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

Runs = Sequence[tuple[int, int]]  # parts of a buffer: first byte and number of bytes
LEAF_BYTES = 1024  # a leaf takes at least that: below, hashing would be all overhead
_BLOCK_BYTES = 1 << 20
_OWN_METADATA = "mupscale"  # the record, which holds hashes itself
_WORD = 8  # bytes
_SEGMENT = 1 << 13  # words whose weights differ; a power of `_STEP` tells segments of a leaf apart
_STEP = -0x61C8864680B583EB  # odd


class RowBuffer:
    """Bytes of a tensor in memory, of which some go to several places; their sums are taken once.

    Attributes:
        data: the bytes, which stay what they are as long as this is used.
    """

    def __init__(self, data: memoryview, repeats: tuple[RowBuffer, Tensor] | None = None) -> None:
        """Wrap bytes.

        Args:
            data: the bytes.
            repeats: where its rows are those of another buffer, that buffer and the row of each; a row is a leaf.
        """
        self.data = data
        self._repeats = repeats
        self._sums: array[int] | None = None

    def pieces(self, runs: Runs) -> list[memoryview]:
        """The bytes of runs, one after the other."""
        pieces, last = [], None
        for run in runs:  # there are as many as rows, most of them like the one before
            if run != last:
                piece, last = self.data[run[0] : sum(run)], run
            pieces.append(piece)
        return pieces

    def sums(self, leaf_bytes: int) -> array[int]:
        """The sums of all leaves, where each run is of whole leaves."""
        if self._sums is None and self._repeats is not None:
            buffer, rows = self._repeats
            self._sums = _selected(buffer.sums(leaf_bytes), rows)
        elif self._sums is None:
            self._sums = leaf_sums(self.data, leaf_bytes)
        return self._sums


def _selected(sums: array[int], rows: Tensor) -> array[int]:
    import torch

    found = array("q", bytes(_WORD * len(rows)))
    known, selected = (torch.frombuffer(each, dtype=torch.int64) for each in (sums, found))
    torch.index_select(known, 0, rows, out=selected)
    return found


def leaf_sums(data: memoryview, leaf_bytes: int) -> array[int]:
    """The sum of each leaf of some bytes, 64 bits each; the last leaf may be shorter, as if zeros followed it.

    A multilinear hash (Lemire & Kaser 2014) of the leaf's 32-bit words x_i: the sum of c_i x_i modulo 2^64, with
    random c_i. A change of one word always shows, and two different leaves of at most a segment have the same sum
    with a probability of about 2^-32. It is computed as two products of a matrix of 64-bit words with a vector, of
    which the second one reads the words at an offset of 32 bits: with w and v as vectors, c is w_i + 2^32 v_(i-1)
    for the lower half of word i and v_i + 2^32 w_i for the upper one.

    Args:
        data: leaves, one after the other.
        leaf_bytes: size of a leaf.
    """
    import torch

    count, words = -(-len(data) // leaf_bytes), -(-leaf_bytes // _WORD)
    sums = array("q", bytes(_WORD * count))
    if not count:
        return sums
    if len(data) != count * words * _WORD or data.readonly:
        data = _padded(data, leaf_bytes, words * _WORD)
    total = torch.frombuffer(sums, dtype=torch.int64)
    for first in range(0, words, _SEGMENT):
        size = min(_SEGMENT, words - first)
        weights, shifted_weights = _weights_of(size)
        if first:
            total.mul_(_STEP)
        total.addmv_(_words(data, first * _WORD, (count, size), words), weights)
        if size > 1:
            total.addmv_(_words(data, first * _WORD + _WORD // 2, (count, size - 1), words), shifted_weights)
    return sums


def _words(data: memoryview, start: int, shape: tuple[int, int], stride: int) -> Tensor:
    """64-bit words of some bytes as a matrix of which each row begins `stride` words after the one before."""
    import torch

    length = (shape[0] - 1) * stride + shape[1]
    return torch.frombuffer(data, dtype=torch.int64, count=length, offset=start).as_strided(shape, (stride, 1))


def _padded(data: memoryview, leaf_bytes: int, padded_bytes: int) -> memoryview:
    """A copy of leaves with zeros behind each of them."""
    import torch

    num_whole, rest = divmod(len(data), leaf_bytes)
    padded = memoryview(bytearray((num_whole + (rest > 0)) * padded_bytes))
    if num_whole:
        whole = torch.frombuffer(bytearray(data[: num_whole * leaf_bytes]), dtype=torch.uint8)
        leaves = torch.frombuffer(padded, dtype=torch.uint8).view(-1, padded_bytes)
        leaves[:num_whole, :leaf_bytes] = whole.view(num_whole, leaf_bytes)
    padded[num_whole * padded_bytes : num_whole * padded_bytes + rest] = data[len(data) - rest :]
    return padded


@lru_cache(maxsize=256)
def _weights_of(size: int) -> tuple[Tensor, Tensor]:
    """The weights of words at their places, and of those at an offset of half a word, of which there is one less."""
    weights, shifted_weights = _weights()
    return weights[:size], shifted_weights[: size - 1]


@lru_cache(maxsize=1)
def _weights() -> Tensor:
    """Odd random numbers, (2, words of a segment)."""
    import torch

    stream = bytearray(hashlib.shake_128(b"mupscale").digest(2 * _SEGMENT * _WORD))
    numbers = torch.frombuffer(stream, dtype=torch.int64)
    if sys.byteorder != "little":
        numbers = numbers.view(torch.uint8).view(-1, _WORD).flip(1).contiguous().view(torch.int64).flatten()
    return (numbers | 1).view(2, _SEGMENT)


@dataclass(frozen=True, slots=True)
class DigestState:
    """What a `TensorDigest` knows, to be told to another process.

    Attributes:
        digest: the hash, None while bytes are missing; then nothing else is needed.
        sums: of the leaves, eight bytes each, little-endian.
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
        self._sums = array("q", bytes(_WORD * num_leaves))
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

    def add(self, start: int, buffer: RowBuffer, runs: Runs | None = None) -> None:
        """Take consecutive runs of a buffer, or all of it, as the tensor's bytes from `start` on."""
        if self._digest is not None:
            return
        runs = ((0, len(buffer.data)),) if runs is None else runs
        if math.gcd(start, len(buffer.data), *itertools.chain.from_iterable(runs)) % self.leaf_bytes:
            for piece in buffer.pieces(runs):
                self._add_ragged(start, piece)
                start += len(piece)
            return
        sums, found, last = buffer.sums(self.leaf_bytes), array("q"), None
        for run in runs:
            if run != last:
                part, last = sums[run[0] // self.leaf_bytes : sum(run) // self.leaf_bytes], run
            found += part
        self._put(start // self.leaf_bytes, found)

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
        sums = array("q")
        sums.frombytes(state.sums)
        sums = _little_endian(sums)
        for first, end in _stretches(state.known):
            self._put(first, sums[first:end])
        for leaf, (held, filled) in state.edges.items():
            for first, end in _stretches(filled):
                self._edge(leaf * self.leaf_bytes + first, memoryview(held)[first:end])

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
            self._put(whole_start // size, leaf_sums(data[whole_start - start : whole_end - start], size))
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
        self._put(leaf, leaf_sums(memoryview(held), self.leaf_bytes))

    def _finish_if_done(self) -> None:
        if self._left == 0 and self._digest is None:
            self._finish(hashlib.sha256(_little_endian(self._sums)).digest())

    def _finish(self, digest: bytes) -> None:
        self._digest = digest
        self._sums, self._known, self._edges = array("q"), bytearray(), {}


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


def known_states(digests: Mapping[str, TensorDigest]) -> dict[str, DigestState]:
    """What is known of hashes, to be told to another process; those of which nothing is known are left away."""
    states = {name: digest.state for name, digest in digests.items()}
    return {name: state for name, state in states.items() if not state.is_blank}


def merge_states(digests: Mapping[str, TensorDigest], states: Mapping[str, DigestState]) -> None:
    """Take what another process knows of the same tensors."""
    for name, state in states.items():
        if name in digests:
            digests[name].merge(state)


def complete(digest: TensorDigest, tensor: Stored, reader: RowReader) -> bytes:
    """The hash of a stored tensor, reading it only if something of it is missing.

    Raises:
        CheckpointError: it cannot be read.
    """
    if digest.digest is None:
        step = digest.leaf_bytes * max(1, _BLOCK_BYTES // digest.leaf_bytes)
        for start in range(0, digest.num_bytes, step):
            data = memoryview(bytearray(min(step, digest.num_bytes - start)))
            reader.read(tensor, start, data)
            digest.add(start, RowBuffer(data))
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


def tensors_digest(digests: Mapping[TensorSpec, bytes]) -> str:
    """The hash of tensors that are not in a safetensors file: as if they were in one, in the order of their names.

    Args:
        digests: the hash of each of them.
    """
    ordered = sorted(digests, key=lambda spec: spec.name)
    return combined(header_digest(ordered, {}), [digests[spec] for spec in ordered])


def files_digest(digests: Mapping[str, str]) -> str:
    """The hash of several files from theirs, in the order of their names."""
    return combined(b"", (bytes.fromhex(digests[name]) for name in sorted(digests)))


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
