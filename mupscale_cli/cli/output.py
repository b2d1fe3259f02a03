"""What people see: results on stdout, everything else on stderr, readable without colour."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from mupscale_cli.cli.progress import shown
from mupscale_cli.cli.tables import OpenTable
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import launched_ranks
from mupscale_cli.errors import MupscaleError
from mupscale_cli.text import bytes_text, count_text, counted, number_text

__all__ = [
    "OpenTable",
    "Voice",
    "bytes_text",
    "count_text",
    "counted",
    "hang_up",
    "is_quiet",
    "note",
    "number_text",
    "print_document",
    "print_error",
    "progress",
    "report",
    "speaking",
    "stderr",
    "stdout",
    "table",
    "warn",
]

_PIPED_WIDTH = 1000  # a pipe has no width; wide enough that no table or line is cut


@dataclass(frozen=True, slots=True)
class Voice:
    """How much a command says beside its result.

    Attributes:
        quiet: nothing but results, warnings and errors.
        verbose: the reasons for what it decides, on stderr.
        debug: everything that it notes, and tracebacks.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


_voice: ContextVar[Voice] = ContextVar("voice", default=Voice())  # noqa: B039 (it is frozen)


@contextmanager
def speaking(voice: Voice) -> Iterator[None]:
    """Speak like this for a while; a command that another one runs is no louder than that one.

    Reasons are what the library notes with `logging` below `mupscale_cli`.
    """
    outer = _voice.get()
    inner = Voice(voice.quiet or outer.quiet, voice.verbose or outer.verbose, voice.debug or outer.debug)
    logger, handler = logging.getLogger("mupscale_cli"), _Reasons()
    level, is_heard = logger.level, (inner.verbose or inner.debug) and not (outer.verbose or outer.debug)
    token = _voice.set(inner)
    if is_heard:
        logger.setLevel(logging.DEBUG if inner.debug else logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        _voice.reset(token)


class _Reasons(logging.Handler):
    """Shows what the library notes, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr().print(record.getMessage(), style="dim", markup=False, soft_wrap=True)


def is_quiet() -> bool:
    """Whether only what a script would use is to be printed."""
    return _voice.get().quiet


def stdout() -> Console:
    """The console for results: what was asked for."""
    return _console(sys.stdout.isatty(), stderr=False)


def report(*, as_json: bool = False) -> Console:
    """The console for what a command tells of what it did; silent under `--quiet`, and where a document says it."""
    return _console(sys.stdout.isatty(), stderr=False, quiet=as_json or is_quiet())


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool, quiet: bool = False) -> Console:
    """A console as wide as its terminal, or as COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else None if is_terminal else _PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=width, quiet=quiet)


def print_document(name: str, document: Mapping[str, Any]) -> None:
    """One JSON document, and nothing else, on stdout; it says its name and its version."""
    from mupscale_cli.record.documents import document_head

    sys.stdout.write(json.dumps({**document_head(name), **document}, indent=2, ensure_ascii=False) + "\n")


def hang_up() -> None:
    """Nobody reads stdout any more; say nothing about it when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: MupscaleError) -> None:
    """What failed and where, then after a blank line what to do."""
    console, ranks = stderr(), launched_ranks()
    where = "" if ranks.is_alone else f" in process {ranks.rank} of {ranks.size}"
    console.print(f"[bold red]error{where}:[/] {escape(error.message)}")
    if error.excerpt:
        console.print(escape(error.excerpt), soft_wrap=True)
    if error.hint:
        console.print(f"\n[bold cyan]hint:[/] {escape(error.hint)}")


def note(text: str) -> None:
    """A line for people beside the result."""
    if not is_quiet():
        stderr().print(text, markup=False)


def warn(text: str) -> None:
    """What to know before the result is relied on; `--quiet` does not silence it."""
    stderr().print(f"warning: {text}", markup=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> OpenTable:
    """A table without a box, whose cells break between words and behind the dots of names."""
    return OpenTable(*columns, right=right)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Events]:
    """Events that show a bar on a terminal, and lines otherwise."""
    if quiet or is_quiet():
        yield SILENT
        return
    console = stderr()
    with shown(console, live=console.is_terminal and not console.is_dumb_terminal) as events:
        yield events
