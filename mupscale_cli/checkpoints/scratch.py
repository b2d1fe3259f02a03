"""Temporary folders that a killed run does not leave for ever: the next one that makes such a folder removes them."""

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
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder for as long as the context lasts.

    It holds a lock while it is in use. Folders of that kind in the same place without one are what killed runs left.

    Args:
        beside: the folder in which it is made, under a hidden name; where there is none or it cannot be written to,
            the system's temporary one.
    """
    is_beside = beside is not None and os.access(beside, os.W_OK)
    where = beside if beside is not None and is_beside else Path(tempfile.gettempdir())
    prefix = f".{_PREFIX}" if is_beside else _PREFIX
    _remove_left(where, prefix)
    folder, lock = _locked(where, prefix)
    try:
        yield folder
    finally:
        release(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _locked(where: Path, prefix: str) -> tuple[Path, FileLock]:
    """A new folder with its lock; another one where a run beside this one took it for left before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock = try_lock(folder / _LOCK)
        if lock is not None and (folder / _LOCK).exists():
            return folder, lock


def _remove_left(where: Path, prefix: str) -> None:
    for folder in where.glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or not (folder / _LOCK).is_file():  # not of this kind, or not locked yet
                continue
            lock = try_lock(folder / _LOCK)
        except OSError:  # another user's
            continue
        if lock is not None:
            release(lock)
            shutil.rmtree(folder, ignore_errors=True)
