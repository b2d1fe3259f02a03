"""Renames that a plain `rename` cannot do in one step: exchange two paths, or refuse to replace one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NO_REPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2
_FROM_HERE = -100  # AT_FDCWD
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; return False, and change nothing, where the system cannot.

    Raises:
        OSError: the paths cannot be renamed.
    """
    return _rename(first, second, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename a path unless the new name is taken.

    Where the system cannot check both in one step, something that appears in between may be replaced.

    Raises:
        FileExistsError: the new name is taken.
        OSError: the path cannot be renamed.
    """
    if not _rename(source, target, _NO_REPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Call renameat2; return False if the system or the file system does not have it."""
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is None:
        return False
    if function(_FROM_HERE, os.fsencode(source), _FROM_HERE, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
