"""Runs the command line in this process, through its real entry point."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from dataclasses import dataclass

from mupscale_cli.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def run(*arguments: str) -> Result:
    """Run `mupscale ARGUMENTS` with its output caught; not a terminal."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["mupscale", *arguments]
    handler = signal.getsignal(signal.SIGTERM)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Result(code, out.getvalue(), err.getvalue())
