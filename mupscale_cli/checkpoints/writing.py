"""Safetensors files whose tensors are written in pieces, in any order, from several threads and processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mupscale_cli.checkpoints.digests import RowBuffer, Runs, combined, header_digest, tensor_digests
from mupscale_cli.checkpoints.header import encode_header
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.checkpoints.staging import reported
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import OutputError


class ShardWriter:
    """Writes one safetensors file: the header first, then tensor data at its final place.

    Attributes:
        file: the file.
        is_shared: whether other processes write parts of it at the same time.
        digests: the hash of each tensor, as far as it was written here.
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
        self.digests = tensor_digests(specs)
        header = encode_header(specs, metadata, reserve)
        self.offsets: dict[str, int] = {}
        position = len(header)
        for spec in specs:
            self.offsets[spec.name] = position
            position += spec.num_bytes
        self._size = position
        self._header = header
        self._specs, self._metadata = specs, metadata
        self._out: PlacedFile | None = None

    def __enter__(self) -> ShardWriter:
        self._out = PlacedFile(self.file, "shared" if self.is_shared else "xb")
        self._out.write(0, (memoryview(self._header),))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._out is not None
        with reported(self.file), self._out as out:  # closing may fail too
            if kind is None:
                out.sync()
                if not self.is_shared:
                    self.check_size()

    def write(self, name: str, start: int, buffer: RowBuffer, runs: Runs) -> None:
        """Write consecutive runs of a buffer from a tensor's byte `start` on; from several threads at once."""
        assert self._out is not None
        self._out.write(self.offsets[name] + start, buffer.pieces(runs))
        self.digests[name].add(start, buffer, runs)

    def check_size(self) -> None:
        """Refuse a file that is not as long as it was planned.

        Raises:
            OutputError: something was not written.
        """
        if self.file.stat().st_size != self._size:
            raise OutputError(f"`{self.file}` has not the size that was planned")

    @property
    def digest(self) -> str:
        """The hash of the file, once it is complete.

        Raises:
            OutputError: some of it was never written.
        """
        parts = []
        for spec in self._specs:
            part = self.digests[spec.name].digest
            if part is None:
                raise OutputError(f"not all of `{spec.name}` was written to `{self.file}`")
            parts.append(part)
        return combined(header_digest(self._specs, self._metadata), parts)
