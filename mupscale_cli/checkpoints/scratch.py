"""Temporary folders. Folders that a killed run left behind are removed by the next run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mupscale_cli.checkpoints.lock import release, try_lock

_LOCK = ".lock"
_PREFIX = "mupscale-"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a temporary folder and remove it when the context ends.

    The folder contains a lock while it is in use. Unlocked folders next to it were left behind by killed runs.

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
        release(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _create_locked(where: Path, prefix: str) -> tuple[Path, FileLock]:
    """Create a folder and lock it; retry if a concurrent run removed the folder before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock = try_lock(folder / _LOCK)
        if lock is not None and (folder / _LOCK).exists():
            return folder, lock


def _remove_abandoned(where: Path, prefix: str) -> None:
    for folder in where.glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or not (folder / _LOCK).is_file():  # not a scratch folder, or not locked yet
                continue
            lock = try_lock(folder / _LOCK)
        except OSError:  # another user's
            continue
        if lock is not None:
            release(lock)
            shutil.rmtree(folder, ignore_errors=True)
