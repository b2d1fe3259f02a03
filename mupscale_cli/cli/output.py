"""Print results on stdout and everything else on stderr, readable without color."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from mupscale_cli.cli.progress import show_progress
from mupscale_cli.cli.tables import OpenTable
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import launched_ranks
from mupscale_cli.errors import MupscaleError
from mupscale_cli.text import bytes_text, count_text, counted, number_text

__all__ = [
    "OpenTable",
    "Verbosity",
    "bytes_text",
    "count_text",
    "counted",
    "discard_stdout",
    "is_quiet",
    "note",
    "number_text",
    "print_document",
    "print_error",
    "progress",
    "report",
    "stderr",
    "stdout",
    "table",
    "use_verbosity",
    "warn",
]

_IDLE = re.compile(r"token|use_cache|initializer|drop|pretraining_tp|summary")  # keys that no output depends on
_PIPE_WIDTH = 1000  # columns; no table is that wide, so nothing is wrapped in a pipe


@dataclass(frozen=True, slots=True)
class Verbosity:
    """How much a command prints in addition to its result.

    Attributes:
        quiet: print only results, warnings and errors.
        verbose: explain decisions on stderr.
        debug: print every log record, and the tracebacks of errors.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


_verbosity: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity())  # noqa: B039 (it is frozen)


@contextmanager
def use_verbosity(chosen: Verbosity) -> Iterator[None]:
    """Set the verbosity inside the context. A command that another command runs inherits that command's flags.

    With `verbose` and `debug`, the records of the logger `mupscale_cli` are printed.
    """
    outer = _verbosity.get()
    inner = Verbosity(chosen.quiet or outer.quiet, chosen.verbose or outer.verbose, chosen.debug or outer.debug)
    logger, handler = logging.getLogger("mupscale_cli"), _StderrHandler()
    level, is_new = logger.level, (inner.verbose or inner.debug) and not (outer.verbose or outer.debug)
    token = _verbosity.set(inner)
    if inner.quiet and not is_new:
        logger.setLevel(logging.ERROR)
    if is_new:
        logger.setLevel(logging.DEBUG if inner.debug else logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        _verbosity.reset(token)


class _StderrHandler(logging.Handler):
    """Prints log records as dim lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr().print(record.getMessage(), style="dim", markup=False, soft_wrap=True)


def is_quiet() -> bool:
    """Tell whether `--quiet` is given."""
    return _verbosity.get().quiet


def stdout() -> Console:
    """Return the console for the result that the user requested."""
    return _console(sys.stdout.isatty(), stderr=False)


def report(*, as_json: bool = False) -> Console:
    """Return the console for a command's report of its work. It is silent under `--quiet` and `--json`."""
    return _console(sys.stdout.isatty(), stderr=False, quiet=as_json or is_quiet())


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool, quiet: bool = False) -> Console:
    """Return a console as wide as COLUMNS or, without it, the terminal."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else None if is_terminal else _PIPE_WIDTH
    height = None if width is None else 25  # rich ignores a dumb terminal's width unless it has both
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=width, height=height, quiet=quiet)


def print_document(name: str, document: Mapping[str, Any]) -> None:
    """Print a JSON document on stdout, with the name and version of its schema first."""
    from mupscale_cli.record.documents import document_head

    sys.stdout.write(json.dumps({**document_head(name), **document}, indent=2, ensure_ascii=False) + "\n")


def discard_stdout() -> None:
    """Redirect stdout to nowhere, so that Python does not fail to flush a closed pipe when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: MupscaleError) -> None:
    """Print what failed and where and, after a blank line, the hint."""
    console, ranks = stderr(), launched_ranks()
    where = "" if ranks.is_alone else f" in process {ranks.rank} of {ranks.size}"
    console.print(f"[bold red]error{where}:[/] {escape(error.message)}")
    if error.excerpt:
        console.print(escape(error.excerpt), soft_wrap=True)
    if error.hint:
        console.print(f"\n[bold cyan]hint:[/] {escape(error.hint)}")


def note(text: str) -> None:
    """Print a line on stderr, unless `--quiet` is given."""
    if not is_quiet():
        stderr().print(text, markup=False)


def assumed_text(keys: Mapping[str, Any]) -> str:
    """Return what a config that was made from shapes has from its class, as far as it may change the function."""
    named = ", ".join(f"{key} = {value}" for key, value in keys.items() if not _IDLE.search(key))
    return f"made from shapes, with defaults of its class, which `--set KEY=VALUE` changes: {named}" if named else ""


def note_found(keys: Mapping[str, Any], assumed: Mapping[str, Any]) -> None:
    """Print the config keys that were recognized, because the checkpoint's config lacks them, and the assumed ones."""
    if text := assumed_text(assumed):
        warn(f"there is no config.json; it is {text}")
    if keys:
        named = ", ".join(f"{key} = {value}" for key, value in keys.items())
        note(f"read off the tensors, because the config lacks it: {named}")


def warn(text: str) -> None:
    """Print a warning on stderr, even under `--quiet`."""
    stderr().print(f"warning: {text}", markup=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> OpenTable:
    """Return a table without a box. Its cells wrap between words and after the dots of names."""
    return OpenTable(*columns, right=right)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Events]:
    """Yield events that show a progress bar on a terminal, and lines elsewhere."""
    if quiet or is_quiet():
        yield SILENT
        return
    console = stderr()
    with show_progress(console, live=console.is_terminal and not console.is_dumb_terminal) as events:
        yield events
