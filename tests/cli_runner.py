"""Run the command line in this process, through its real entry point, or in a new one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import mupscale_cli
from mupscale_cli.cli.commands import application
from mupscale_cli.cli.main import main


@dataclass(frozen=True)
class Result:
    """Output and exit code of a command."""

    code: int
    out: str
    err: str


def run(*arguments: str) -> Result:
    """Run `mupscale ARGUMENTS` and capture its output, which is not a terminal."""
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


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `mupscale` in a new interpreter."""
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mupscale_cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def commands_of() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command."""
    yield from dict.fromkeys(tuple(name.split()) for name, _ in options_of() if name)


def options_of(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every option and argument of every command with the command's name."""
    command = typer.main.get_command(application()) if command is None else command
    for parameter in command.params:
        yield name, parameter
    for inner, sub in getattr(command, "commands", {}).items():
        yield from options_of(sub, f"{name} {inner}".strip())
