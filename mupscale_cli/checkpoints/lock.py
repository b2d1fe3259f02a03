"""A lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """One process's hold on a file; `try_lock` makes one."""

    def __init__(self, handle: int, file: Path) -> None:
        self._handle: int | None = handle
        self.file = file

    def release(self) -> None:
        """Let go of it, and remove the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self.file.unlink(missing_ok=True)


def try_lock(file: Path) -> FileLock | None:
    """Lock a file, which is created if need be; None if another process has.

    On a file system without locks it always succeeds.

    Raises:
        OSError: the file cannot be opened.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    if _is_taken(handle):
        os.close(handle)
        return None
    return FileLock(handle, file)


def _is_taken(handle: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False  # there are no locks here
    return False
