"""Output that appears under its final name only when it is complete and on the disk."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mupscale_cli.checkpoint.header import encode_header
from mupscale_cli.checkpoint.source import RECORD
from mupscale_cli.errors import OutputError
from mupscale_cli.specs import TensorSpec

_DISK_SLACK = 64 << 20  # headers, config, tokenizer


class Staging:
    """A directory beside the output under a temporary name; `publish` renames what is in it.

    Used as a context manager: whatever happens before `publish`, the final name is untouched and
    the temporary directory is removed. Only a kill leaves it, under a name that says what it is.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.overwrite = overwrite
        self.directory = output.parent / f".{output.name}.partial-{secrets.token_hex(4)}"

    def __enter__(self) -> Staging:
        with reported(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def publish_directory(self) -> None:
        """Give the staged directory its final name; an existing one is replaced if that was asked."""
        with reported(self.output):
            for file in self.directory.iterdir():
                _sync(file)
            _sync(self.directory)
            replaced = self.directory.with_name(self.directory.name.replace(".partial-", ".replaced-"))
            if self.output.exists():
                self._refuse_existing()
                self.output.rename(replaced)
            self.directory.rename(self.output)
            _sync(self.output.parent)
            shutil.rmtree(replaced, ignore_errors=True)

    def publish_file(self, staged: str, beside: Mapping[str, Path]) -> None:
        """Give a staged file its final name, after those that go beside it."""
        with reported(self.output):
            for file in self.directory.iterdir():
                _sync(file)
            if self.output.exists():
                self._refuse_existing()
            for name, final in beside.items():
                (self.directory / name).replace(final)
            (self.directory / staged).replace(self.output)
            _sync(self.output.parent)

    def _refuse_existing(self) -> None:
        if not self.overwrite:
            raise OutputError(
                f"`{self.output}` exists", hint="choose another name with `-o`, or replace it with `--overwrite`"
            )


def check_output(output: Path, source: Path, *, needed_bytes: int, overwrite: bool) -> None:
    """Refuse, before anything is read, an output that could not be published.

    Raises:
        OutputError: it exists, lies in the source or around it, is no checkpoint that could be
            replaced, or the disk is too small.
    """
    real, real_source = _resolved(output), _resolved(source)
    if real == real_source:
        raise OutputError(f"output and input are both `{source}`", hint="choose another name with `-o`")
    if real_source.is_dir() and real.is_relative_to(real_source):
        raise OutputError(
            f"the output `{output}` is inside of the input `{source}`", hint="choose a name outside of it with `-o`"
        )
    if real_source.is_relative_to(real):
        raise OutputError(
            f"the input `{source}` is inside of the output `{output}`", hint="choose another name with `-o`"
        )
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise OutputError(
                f"`{output}` exists", hint="choose another name with `-o`, or replace it with `--overwrite`"
            )
        _refuse_replacing(output, source)
    existing = next(parent for parent in _resolved(output).parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(
            f"`{existing}` is not a directory that can be written to", hint="choose another place with `-o`"
        )
    free = shutil.disk_usage(existing).free
    if needed_bytes + _DISK_SLACK > free:
        raise OutputError(
            f"not enough disk: the output takes {needed_bytes / 1e9:.2f} GB, `{existing}` has {free / 1e9:.2f} GB free",
            hint="free some space, or write to another disk with `-o`",
        )


def _refuse_replacing(output: Path, source: Path) -> None:
    if output.is_symlink() or output.is_dir() == source.is_file():
        kind = "file" if source.is_file() else "directory"
        raise OutputError(f"`{output}` is not a {kind}, so `--overwrite` does not replace it")
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise OutputError(
            f"`{output}` was not written by mupscale (it holds no {RECORD}), so `--overwrite` does not replace it",
            hint="remove it yourself, or choose another name with `-o`",
        )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


class ShardWriter:
    """Writes one safetensors file: the header first, then tensor data at its final place."""

    def __init__(
        self, file: Path, specs: tuple[TensorSpec, ...], metadata: Mapping[str, str], reserve: int = 0
    ) -> None:
        self.file = file
        header = encode_header(specs, metadata, reserve)
        self.offsets: dict[str, int] = {}
        position = len(header)
        for spec in specs:
            self.offsets[spec.name] = position
            position += spec.num_bytes
        self._size = position
        self._header = header
        self._stream: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        with reported(self.file):
            self._stream = open(self.file, "xb", buffering=0)
            write_all(self._stream, memoryview(self._header))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._stream is not None
        with self._stream as stream, reported(self.file):
            if kind is None:
                if os.fstat(stream.fileno()).st_size != self._size:
                    raise OutputError(f"`{self.file}` has not the size that was planned")
                os.fsync(stream.fileno())

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor from its byte `start` on."""
        assert self._stream is not None
        with reported(self.file):
            self._stream.seek(self.offsets[name] + start)
            write_all(self._stream, data)


def write_all(stream: BinaryIO, data: memoryview) -> None:
    """Write all of it, however many calls the system makes of that."""
    done = 0
    while done < len(data):
        done += stream.write(data[done:])


def write_json(file: Path, content: Any) -> None:
    """Write a new JSON file and flush it to the disk."""
    with reported(file), open(file, "x", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def replace_json(file: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        write_json(temporary, content)
        with reported(file):
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, directory: Path) -> None:
    """Copy a file's content under its own name; what a symbolic link points to, not the link."""
    with reported(directory / source.name):
        shutil.copyfile(source, directory / source.name)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a message for the user."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint="nothing was left under the final name"
        ) from None


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no directories
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems do not flush directories
    finally:
        os.close(handle)
