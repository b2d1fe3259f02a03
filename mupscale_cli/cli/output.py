"""Print results on stdout and everything else on stderr, readable without color."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.markup import escape

from mupscale_cli.cli.consoles import is_quiet, report, stderr, stdout
from mupscale_cli.cli.logs import PRINTED
from mupscale_cli.cli.progress import show_progress
from mupscale_cli.cli.tables import OpenTable
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import launched_ranks
from mupscale_cli.errors import MupscaleError
from mupscale_cli.text import bytes_text, count_text, counted, number_text

__all__ = [
    "OpenTable",
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
    "warn",
]

BROKEN_PIPE = 141  # exit code; a shell reports SIGPIPE as this
_IDLE = re.compile(r"token|use_cache|initializer|drop|pretraining_tp|summary")  # keys that no output depends on


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
    PRINTED.info("%s", text.strip())
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
    PRINTED.warning("%s", text)
    stderr().print(f"warning: {text}", markup=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> OpenTable:
    """Return a table without a box. Its cells wrap between words and after the dots of names."""
    return OpenTable(*columns, right=right)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Events]:
    """Yield events that show a progress bar on a terminal, and lines elsewhere; `--quiet` leaves only warnings."""
    if quiet or is_quiet():
        yield _logged(SILENT, quiet=quiet)
        return
    console = stderr()
    with show_progress(console, live=console.is_terminal and not console.is_dumb_terminal) as events:
        yield _logged(events, quiet=quiet)


def _logged(events: Events, *, quiet: bool) -> Events:
    """Return events that the log file gets too, with warnings unless `quiet` says that another process prints them."""

    def phase(name: str, num_bytes: int) -> None:
        PRINTED.info("%s", f"{name} ({bytes_text(num_bytes)})" if num_bytes else name)
        events.phase(name, num_bytes)

    def note(text: str) -> None:
        PRINTED.info("%s", text)
        events.note(text)

    return Events(phase, events.advance, note, SILENT.warn if quiet else warn)
