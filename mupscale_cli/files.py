"""Plain files: open them without waiting, limit how much is read, tell when one changes, and flush what is written.

A path that a user passes may lead to a pipe that nobody writes to or to a device without an end. Functions that read
raise `OSError` with a reason for people in `strerror`, which `read_errors` turns into an error of the caller's kind.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mupscale_cli.errors import CheckpointError, MupscaleError
from mupscale_cli.text import bytes_text

SMALL_BYTES = 16_000_000  # no config, job file, card or document is longer
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF)

Identity = tuple[int, ...]


def plain(path: str, flags: int) -> int:
    """Open a plain file, as the `opener` of `open`.

    Raises:
        OSError: the file cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    handle = os.open(path, flags | _NO_WAIT, 0o666)
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind == stat.S_IFREG:
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'not a file')}, expected a plain file", path)


@contextmanager
def read_errors(path: Path, kind: type[MupscaleError] = CheckpointError) -> Iterator[None]:
    """Turn an `OSError` inside the context into an error for users.

    Args:
        path: the file that is read, for the message.
        kind: class of the error.
    """
    try:
        yield
    except OSError as error:
        hint = "check the path" if isinstance(error, FileNotFoundError) else None
        raise kind(f"cannot read `{path}`: {error.strerror or error}", hint=hint) from error


def require_plain(file: Path, limit: int | None = None) -> None:
    """Check that a file that another library will open is a plain one of at most `limit` bytes.

    Raises:
        OSError: the file cannot be opened, is not a plain file, or is longer.
    """
    with open(file, "rb", opener=plain) as stream:
        if limit is not None and os.fstat(stream.fileno()).st_size > limit:
            raise _too_large(file, limit)


def read_bytes(file: Path, limit: int = SMALL_BYTES) -> bytes:
    """Read a plain file of at most `limit` bytes.

    Raises:
        OSError: the file cannot be read, is not a plain file, or is longer.
    """
    with open(file, "rb", opener=plain) as stream:
        data = stream.read(limit + 1)  # the size that the file system reports may be wrong
    if len(data) > limit:
        raise _too_large(file, limit)
    return data


def _too_large(file: Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {bytes_text(limit)}", str(file))


def read_text(file: Path, limit: int = SMALL_BYTES) -> str:
    """Read a plain file of at most `limit` bytes as UTF-8.

    Raises:
        OSError: the file cannot be read, is not a plain file, is longer, or is not UTF-8.
    """
    try:
        return read_bytes(file, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 text: {error.reason} at byte {error.start}"
        raise OSError(errno.EILSEQ, reason, str(file)) from error


def identities(files: Iterable[Path]) -> dict[Path, Identity | None]:
    """Return device, inode, size in bytes and modification time of each file; None for a missing file."""
    return {file: _identity(file) for file in files}


def _identity(file: Path) -> Identity | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def require_unchanged(before: Mapping[Path, Identity | None]) -> None:
    """Check that the files an output was made from are still the ones that were opened.

    Args:
        before: their `identities` before anything was read.

    Raises:
        CheckpointError: a file was modified, replaced or removed in between.
    """
    for file, identity in before.items():
        if _identity(file) != identity:
            raise CheckpointError(f"`{file}` changed while it was being read", hint="widen again")


def flush(path: Path) -> None:
    """Flush a file or a folder to disk; a folder on a system that cannot flush folders is skipped.

    Raises:
        OSError: the system cannot write it.
    """
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what it may write
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_FLUSH):
            raise


def flush_tree(folder: Path) -> None:
    """Flush everything below a folder to disk, and then the folder.

    Raises:
        OSError: the system cannot write a file or a folder.
    """
    for path in folder.iterdir():
        flush_tree(path) if path.is_dir() else flush(path)
    flush(folder)
