"""Progress events of long-running work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Events:
    """Callbacks for progress; each one does nothing by default.

    Attributes:
        phase: called with a name and a total number of bytes when a phase starts.
        advance: called with the number of bytes just processed.
        note: called with a message that is worth showing next to the result.
        warn: called with a message that the user needs even if no progress is shown.
    """

    phase: Callable[[str, int], None] = lambda _name, _total: None
    advance: Callable[[int], None] = lambda _count: None
    note: Callable[[str], None] = lambda _text: None
    warn: Callable[[str], None] = lambda _text: None


SILENT = Events()
