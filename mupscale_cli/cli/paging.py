"""Show long text with the user's pager, as git and man do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress

_DEFAULTS = {"LESS": "FRX", "LV": "-c"}  # git's: `less` ends by itself if everything fits, and shows colors


def show(text: str, *, paged: bool) -> None:
    """Print a text on stdout; through the pager if that is wanted and a person is at the terminal."""
    command = _pager() if paged and sys.stdin.isatty() and sys.stdout.isatty() else None
    if command is None:
        sys.stdout.write(text)
        return
    pager = subprocess.Popen(  # noqa: S602 (PAGER is a line for the shell)
        command, shell=True, stdin=subprocess.PIPE, text=True, encoding="utf-8", env={**_DEFAULTS, **os.environ}
    )
    assert pager.stdin is not None
    with suppress(BrokenPipeError), pager.stdin as pipe:  # the reader may have seen enough
        pipe.write(text)
    while pager.poll() is None:
        with suppress(KeyboardInterrupt):  # Ctrl-C is for the pager
            pager.wait()


def _pager() -> str | None:
    """Return the command line of the pager, or None for none."""
    command = os.environ.get("PAGER", shutil.which("less"))
    return None if command in (None, "", "cat") or os.environ.get("TERM") == "dumb" else command
