"""Print and document what becomes of the files of a checkpoint."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from mupscale_cli.checkpoints.fates import Decision, PlannedFile, grouped
from mupscale_cli.text import counted

_FATES = ("widened", "rewritten", "carried", "left behind")
_LABEL = 13  # columns
_MOST_NAMES = 20  # of files that are left behind for one reason
_MOST_NAMED = 4  # of files in one line


def print_summary(console: Console, files: Sequence[PlannedFile]) -> None:
    """Print what was rewritten and what was carried, in one line each, and what was left behind by reason."""
    groups = grouped(files)
    for fate in ("rewritten", "carried"):
        named = {name: count for group, names in groups.items() if group.fate == fate for name, count in names.items()}
        _print(console, fate, [_listed(named, _MOST_NAMED)] if named else [])
    left = (_reasoned(group, names, _MOST_NAMES) for group, names in groups.items() if group.fate == "left behind")
    _print(console, "left behind", left)


def print_plan(console: Console, files: Sequence[PlannedFile]) -> None:
    """Print every file by its fate and reason."""
    groups = grouped(files)
    for fate in _FATES:
        _print(console, fate, (_reasoned(group, names) for group, names in groups.items() if group.fate == fate))


def files_document(files: Iterable[PlannedFile]) -> list[dict[str, Any]]:
    """Return the files as part of a JSON document."""
    return [{"name": file.name, "bytes": file.num_bytes, "fate": file.fate, "reason": file.reason} for file in files]


def _print(console: Console, label: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        start = ("" if number else label).ljust(_LABEL)
        wrapped = textwrap.wrap(
            line,
            console.width,
            initial_indent=start,
            subsequent_indent=" " * (_LABEL + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in wrapped:
            console.print(part, markup=False, highlight=False, soft_wrap=True)


def _reasoned(group: Decision, names: Mapping[str, int], most: int | None = None) -> str:
    return f"{group.reason}: {_listed(names, most)}"


def _listed(names: Mapping[str, int], most: int | None) -> str:
    shown = list(_counted_names(names))
    more = len(shown) - len(shown[:most])
    return ", ".join(shown[:most]) + (f" and {more} more" if more else "")


def _counted_names(names: Mapping[str, int]) -> Iterator[str]:
    for name, count in names.items():
        yield f"{name} ({counted(count, 'file')})" if count > 1 else name
