"""File locks that the system releases when their process ends, even when it is killed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def try_lock(file: Path, seconds: float = 0) -> FileLock | None:
    """Lock a file, creating it if necessary; return None if another process holds the lock.

    On a file system without locks this always succeeds.

    Args:
        file: file to lock.
        seconds: how long to wait for the other process.

    Raises:
        OSError: the file cannot be opened.
    """
    if not file.parent.is_dir():  # filelock would create it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    lock = FileLock(file, timeout=seconds, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


def unlock(lock: FileLock) -> None:
    """Release a lock and leave its file. A lock that the system does not release ends with this process."""
    with suppress(OSError):
        lock.release()


def release(lock: FileLock) -> None:
    """Release a lock and remove its file, if the system permits."""
    if os.name == "nt":  # removes no open file
        unlock(lock)
    with suppress(OSError):  # before the release elsewhere, so that no process locks a file that is then removed
        Path(lock.lock_file).unlink(missing_ok=True)
    unlock(lock)
