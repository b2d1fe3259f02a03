"""What people see: results on stdout, everything else on stderr, readable without colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from mupscale_cli.cli.progress import shown
from mupscale_cli.cli.tables import OpenTable
from mupscale_cli.errors import MupscaleError
from mupscale_cli.figures import bytes_text, count_text, counted, number_text
from mupscale_cli.widening import Events

__all__ = ["OpenTable", "bytes_text", "count_text", "counted", "note", "number_text",
           "print_error", "print_json", "progress", "stderr", "stdout", "table"]  # fmt: skip

_PIPED_WIDTH = 1000  # a pipe has no width; wide enough that no table or line is cut


def stdout() -> Console:
    """The console for results."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if is_terminal else _PIPED_WIDTH)


def print_json(document: Any) -> None:
    """One JSON document, and nothing else, on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_error(error: MupscaleError) -> None:
    """What failed and where, then after a blank line what to do."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.excerpt:
        console.print(escape(error.excerpt), soft_wrap=True)
    if error.hint:
        console.print(f"\n[bold cyan]hint:[/] {escape(error.hint)}")


def note(text: str) -> None:
    """A line for people beside the result."""
    stderr().print(text, markup=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> OpenTable:
    """A table without a box, whose cells break between words and behind the dots of names."""
    return OpenTable(*columns, right=right)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Events]:
    """Events that show a bar on a terminal, and lines otherwise."""
    if quiet:
        yield Events()
        return
    console = stderr()
    with shown(console, live=sys.stderr.isatty() and not console.is_dumb_terminal) as events:
        yield events
