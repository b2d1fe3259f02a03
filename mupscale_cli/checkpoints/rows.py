"""Reading rows of tensors from their files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import plain


@runtime_checkable
class ComputedTensor(Protocol):
    """A tensor whose bytes are computed while they are read, since no file has them."""

    def compute(self, reader: RowReader, start: int, into: memoryview) -> None:
        """Fill a buffer with the tensor's bytes, starting at byte `start`.

        Raises:
            CheckpointError: a file is shorter than its header says.
        """


class RowReader:
    """Reads rows of tensors into buffers and keeps one file open at a time. A context manager."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._stream: BinaryIO | None = None

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._file = self._stream = None

    def read(self, tensor: ReadableTensor, start: int, into: memoryview) -> None:
        """Fill a buffer with a tensor's bytes, starting at byte `start`.

        Raises:
            CheckpointError: a file is shorter than its header says, for instance because it was truncated meanwhile.
        """
        if isinstance(tensor, ComputedTensor):
            tensor.compute(self, start, into)
            return
        done = 0
        for byte_range in tensor.byte_ranges(start, len(into)):
            stream = self._open(byte_range.file)
            stream.seek(byte_range.offset)
            end = done + byte_range.num_bytes
            while done < end:
                count = stream.readinto(into[done:end])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError(
                        f"`{byte_range.file}` ends in the middle of `{tensor.spec.name}`: "
                        "the file was changed while it was read"
                    )
                done += count

    def _open(self, file: Path) -> BinaryIO:
        if self._file != file or self._stream is None:
            self.close()
            self._stream = open(file, "rb", buffering=0, opener=plain)  # noqa: SIM115 (closed by `close`)
            self._file = file
        return self._stream
