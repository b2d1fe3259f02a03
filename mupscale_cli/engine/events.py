"""What a caller hears of work that takes a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Events:
    """What a caller wants to be told while it works; every field may be left as it is.

    Attributes:
        phase: called with a name and a number of bytes when a phase begins.
        advance: called with the bytes just done.
        note: called with what is good to know beside the result.
    """

    phase: Callable[[str, int], None] = lambda _name, _total: None
    advance: Callable[[int], None] = lambda _count: None
    note: Callable[[str], None] = lambda _text: None


SILENT = Events()
