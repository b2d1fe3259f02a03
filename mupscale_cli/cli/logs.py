"""Log what a command does: on stderr as far as the user wants to see it, and whole in a file."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import typer

from mupscale_cli import __version__
from mupscale_cli.cli import consoles
from mupscale_cli.cli.consoles import Manner
from mupscale_cli.engine.ranks import launched_ranks
from mupscale_cli.errors import OutputError, without_secrets

PRINTED = logging.getLogger("mupscale")
"""What a command prints on stderr, for the log file alone: people have seen it already."""
_PACKAGE = logging.getLogger("mupscale_cli")
_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [A-Z]+ ")  # the beginning of `_Lines`


class _OnStderr(logging.Handler):
    """Prints log records on stderr, dim below warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "dim" if record.levelno < logging.WARNING else None
        consoles.stderr().print(record.getMessage(), style=style, markup=False, soft_wrap=True)


_SHOWN = _OnStderr(logging.WARNING)
_PACKAGE.setLevel(logging.DEBUG)
_PACKAGE.addHandler(_SHOWN)
PRINTED.setLevel(logging.DEBUG)
PRINTED.propagate = False
PRINTED.addHandler(logging.NullHandler())


@contextmanager
def manner_of(chosen: Manner, log_file: Path | None = None) -> Iterator[None]:
    """Print and log in a manner, inside the context.

    Args:
        chosen: the manner. A command that another command runs inherits that command's.
        log_file: file that gets every log record, what is printed on stderr, and the traceback of an error.

    Raises:
        OutputError: the log file cannot be written, or is a file of another kind.
    """
    inner = chosen.within(consoles.manner.get())
    with ExitStack() as stack:
        stack.callback(consoles.manner.reset, consoles.manner.set(inner))
        stack.callback(_SHOWN.setLevel, _SHOWN.level)
        _SHOWN.setLevel(_shown_level(inner))
        if log_file is not None:
            stack.enter_context(_written_to(log_file))
        yield


def _shown_level(manner: Manner) -> int:
    """Return the lowest level of the records that are shown on stderr."""
    if manner.debug:
        return logging.DEBUG
    return logging.INFO if manner.verbose else logging.ERROR if manner.quiet else logging.WARNING


@contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """Append every record to a file, from the command line to how it ended."""
    handler = _open(path)
    for logger in (_PACKAGE, PRINTED):
        logger.addHandler(handler)
    try:
        PRINTED.info("version %s: %s", __version__, shlex.join(["mupscale", *sys.argv[1:]]))
        yield
        PRINTED.info("finished")
    except typer.Exit as end:
        PRINTED.info("ended with exit code %d", end.exit_code)
        raise
    except BaseException:
        PRINTED.exception("ended by an error")
        raise
    finally:
        for logger in (_PACKAGE, PRINTED):
            logger.removeHandler(handler)
        with suppress(OSError):  # `_LogFile` has warned that the disk is full
            handler.close()


def _open(path: Path) -> logging.FileHandler:
    """Open a log file, whose earlier lines stay.

    Raises:
        OutputError: it cannot be written, or is a file of another kind.
    """
    try:
        if path.is_file():
            with path.open("rb") as file:
                if (start := file.read(64)) and not _LINE.match(start):
                    raise OutputError(
                        f"`{path}` is not a log file of mupscale, and `--log-file` appends to it",
                        hint="pass another path",
                    )
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        hint = f"create the folder: `mkdir -p {path.parent}`" if not path.parent.exists() else "pass another path"
        raise OutputError(f"cannot write the log file `{path}`: {error.strerror}", hint=hint) from error
    handler.setFormatter(_Lines())
    return handler


class _LogFile(logging.FileHandler):
    """A log file. If the disk is full, it warns once and ends; the command continues."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (overrides)
        error = sys.exc_info()[1]
        self.setLevel(logging.CRITICAL + 1)
        consoles.stderr().print(f"warning: the log file `{self.baseFilename}` ends here: {error}", markup=False)


class _Lines(logging.Formatter):
    """Formats a record as its time, level, origin and text, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        ranks = launched_ranks()
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        rank = "" if ranks.is_alone else f" process {ranks.rank} of {ranks.size}"
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return without_secrets(f"{time} {record.levelname} {record.name}{rank}: {text}")
