"""Temporary folders. Folders that a killed run left behind are removed by the next run."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from mupscale_cli.checkpoints.lock import release, try_lock

_MARKER = ".mupscale-scratch"  # the lock; only a folder that contains it is ever removed
_PREFIX = "mupscale-"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a temporary folder and remove it when the context ends.

    The folder contains a lock of our own name while it is in use. Folders next to it whose lock nobody holds were left
    behind by killed runs.

    Args:
        parent: parent folder; the new folder's name is hidden there. Default: the system's temporary folder, which also
            replaces a parent that is not writable.
    """
    is_inside = parent is not None and os.access(parent, os.W_OK)
    where = parent if parent is not None and is_inside else Path(tempfile.gettempdir())
    prefix = f".{_PREFIX}" if is_inside else _PREFIX
    _remove_abandoned(where, prefix)
    folder, lock = _create_locked(where, prefix)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _create_locked(where: Path, prefix: str) -> tuple[Path, FileLock]:
    """Create a folder and lock it; retry if a concurrent run removed the folder before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock = try_lock(folder / _MARKER)
        if lock is not None and (folder / _MARKER).exists():
            return folder, lock


def _remove_abandoned(where: Path, prefix: str) -> None:
    for folder in where.glob(f"{prefix}*"):
        try:
            lock = try_lock(folder / _MARKER) if _is_scratch(folder) else None
        except OSError:  # another user's
            continue
        if lock is not None:
            _remove(folder, lock)


def _is_scratch(folder: Path) -> bool:
    """Tell whether we made a folder: it and its lock belong to this user and are no links."""
    found, lock = folder.lstat(), (folder / _MARKER).lstat()
    is_own = not hasattr(os, "geteuid") or found.st_uid == lock.st_uid == os.geteuid()
    return is_own and stat.S_ISDIR(found.st_mode) and stat.S_ISREG(lock.st_mode)


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a locked folder, its lock last: if this is interrupted, the next run still recognizes the folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _MARKER:
                path.unlink()
        release(lock)
        folder.rmdir()
