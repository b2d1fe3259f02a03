"""File locks that the system releases when their process ends, even when it is killed."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def try_lock(file: Path) -> FileLock | None:
    """Lock a file, creating it if necessary; return None if another process holds the lock.

    On a file system without locks this always succeeds.

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
    """Release a lock and remove its file."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
