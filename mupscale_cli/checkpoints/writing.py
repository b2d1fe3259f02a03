"""Safetensors files whose tensors are written in pieces, in any order, from several threads and processes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.digests import Segments, segments_digest
from mupscale_cli.checkpoints.header import encode_header
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.checkpoints.staging import output_errors
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import OutputError


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """What a process has written of a file.

    Attributes:
        num_bytes: of tensor data.
        segments: the digest of each segment that it wrote whole.
    """

    num_bytes: int
    segments: Segments


class ShardWriter:
    """Writes one safetensors file: the header first, then tensor data at its final place.

    Attributes:
        file: the file.
        is_shared: whether other processes write parts of it at the same time.
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
        with output_errors(self.file), self._out as out:  # closing may fail too
            if kind is None:
                out.sync()
                if not self.is_shared:
                    self._check_size()

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Write pieces one after the other from a tensor's byte `start` on; from several threads at once."""
        assert self._out is not None
        self._out.write(self.offsets[name] + start, pieces)

    @property
    def written(self) -> WrittenPart:
        """What was written here, once the context has ended."""
        assert self._out is not None
        return WrittenPart(self._out.num_bytes - len(self._header), self._out.segments)

    def finish(self, parts: Iterable[WrittenPart]) -> str:
        """Check the file, to which every process has written its part, and return its digest.

        Raises:
            OutputError: some of it was never written.
        """
        parts = tuple(parts)
        self._check_size()
        if sum(part.num_bytes for part in parts) != self._size - len(self._header):
            raise OutputError(f"not all of `{self.file}` was written")
        return segments_digest(self.file, ChainMap(*(dict(part.segments) for part in parts)))

    def _check_size(self) -> None:
        if self.file.stat().st_size != self._size:
            raise OutputError(f"`{self.file}` has not the size that was planned")
