"""Writing safetensors files in pieces, in any order, from several threads and processes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.digests import Segments, segments_digest
from mupscale_cli.checkpoints.header import encode_header
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import OutputError


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """One process's part of a file.

    Attributes:
        num_bytes: bytes of tensor data written.
        segments: digests of the segments that the process wrote as a whole.
    """

    num_bytes: int
    segments: Segments


class ShardWriter:
    """Writes one safetensors file: the header first, then tensor data at its final position. A context manager.

    Args:
        file: path of the file.
        specs: tensors of the file in data order.
        metadata: strings for the header's `__metadata__`.
        reserve: minimum number of blank bytes in the header.
        is_shared: whether other processes write parts of the file at the same time.

    Attributes:
        offsets: offset of each tensor's data in the file, by name.
    """

    def __init__(
        self,
        file: Path,
        specs: tuple[TensorSpec, ...],
        metadata: Mapping[str, str],
        reserve: int = 0,
        *,
        is_shared: bool = False,
    ) -> None:
        self.file = file
        self.is_shared = is_shared
        header = encode_header(specs, metadata, reserve)
        self.offsets: dict[str, int] = {}
        position = len(header)
        for spec in specs:
            self.offsets[spec.name] = position
            position += spec.num_bytes
        self._size = position
        self._header = header
        self._out: PlacedFile | None = None

    def __enter__(self) -> ShardWriter:
        self._out = PlacedFile(self.file, "shared" if self.is_shared else "xb")
        self._out.write(0, (memoryview(self._header),))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._out is not None
        with output_errors(self.file), self._out as out:  # closing can fail too
            if kind is None:
                out.sync()
                if not self.is_shared:
                    self._check_size()

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write consecutive pieces of a tensor, starting at its byte `start`. Thread-safe."""
        assert self._out is not None
        self._out.write(self.offsets[name] + start, pieces)

    @property
    def written(self) -> WrittenPart:
        """The part that this writer has written; valid after the context has ended."""
        assert self._out is not None
        return WrittenPart(self._out.num_bytes - len(self._header), self._out.segments)

    def finish(self, parts: Iterable[WrittenPart]) -> str:
        """Check that the parts of all processes make up the whole file, and return its digest.

        Raises:
            OutputError: a part of the file was never written.
        """
        parts = tuple(parts)
        self._check_size()
        if sum(part.num_bytes for part in parts) != self._size - len(self._header):
            raise OutputError(f"`{self.file}` is incomplete: some of its data was never written")
        return segments_digest(self.file, ChainMap(*(dict(part.segments) for part in parts)))

    def _check_size(self) -> None:
        size = self.file.stat().st_size
        if size != self._size:
            raise OutputError(f"`{self.file}` has {size} bytes, expected {self._size}")
