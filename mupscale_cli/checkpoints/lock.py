"""Locks that end with their process, however that ends."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def try_lock(file: Path) -> FileLock | None:
    """Lock a file, which is created if need be; None if another process has.

    On a file system without locks it always succeeds.

    Raises:
        OSError: the file cannot be opened.
    """
    lock = FileLock(file, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


def release(lock: FileLock) -> None:
    """Let go of a lock, and remove its file."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
