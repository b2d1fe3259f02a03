"""The consoles that commands print on: for results, reports and messages, colored as the user wishes."""

from __future__ import annotations

import errno
import os
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TextIO

from mupscale_cli.errors import UsageError

if TYPE_CHECKING:  # `mupscale --help` needs none
    from rich.console import Console

COLORS = ("auto", "always", "never")
_PIPE_WIDTH = 1000  # columns; no table is that wide, so nothing is wrapped in a pipe


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command prints.

    Attributes:
        quiet: print only results, warnings and errors.
        verbose: explain decisions on stderr.
        debug: print every log record, and the tracebacks of errors.
        color: one of `COLORS`.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    color: str = "auto"

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise UsageError(f"`--color {self.color}` is none of {', '.join(COLORS)}")

    def within(self, outer: Manner) -> Manner:
        """Return the manner of a command that a command of another manner runs: it inherits the other's flags."""
        return Manner(
            self.quiet or outer.quiet,
            self.verbose or outer.verbose,
            self.debug or outer.debug,
            outer.color if self.color == "auto" else self.color,
        )


manner: ContextVar[Manner] = ContextVar("manner", default=Manner())  # noqa: B039 (it is frozen)


def forced_color() -> bool | None:
    """Tell whether output is colored, terminal or not; None leaves it to the terminal.

    `--color` comes first, then what no-color.org, force-color.org and bixense.com/clicolors say of variables.
    """
    color, environ = manner.get().color, os.environ
    if color != "auto":
        return color == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR") or environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return False if environ.get("CLICOLOR") == "0" else None


def is_quiet() -> bool:
    """Tell whether `--quiet` is given."""
    return manner.get().quiet


def stdout() -> Console:
    """Return the console for the result that the user requested."""
    return _console(sys.stdout)


def report(*, as_json: bool = False) -> Console:
    """Return the console for a command's report of its work. It is silent under `--quiet` and `--json`."""
    return _console(sys.stdout, quiet=as_json or is_quiet())


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _console(sys.stderr)


def _console(stream: TextIO, *, quiet: bool = False) -> Console:
    """Return a console as wide as COLUMNS or, without it, the terminal."""
    from rich.console import Console

    is_terminal = stream.isatty()
    can_color = is_terminal and os.environ.get("TERM") not in ("dumb", "unknown")
    forced = forced_color()
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else None if is_terminal else _PIPE_WIDTH
    console = Console(
        file=stream,
        force_terminal=is_terminal,  # else FORCE_COLOR would draw a bar in a log
        color_system="auto" if can_color and forced is not False else "standard" if forced else None,
        no_color=False,  # because `color_system` heeds NO_COLOR
        highlight=False,
        soft_wrap=False,
        width=width,
        height=None if width is None else 25,  # rich ignores a dumb terminal's width unless it has both
        quiet=quiet,
    )
    console.on_broken_pipe = _leave_pipe  # type: ignore[method-assign]
    return console


def _leave_pipe() -> NoReturn:
    """Replace rich's exit with 1, which would mean that the models differ."""
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
