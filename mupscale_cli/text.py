"""Numbers, names and values as people write them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_SHOWN = 200  # characters of a value


def bytes_text(count: float) -> str:
    """A number of bytes as people write it: 1.7 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def count_text(count: float) -> str:
    """A number of parameters as people write it: 254 M."""
    for unit in ("", " k", " M", " B", " T"):
        if count < 999.5 or unit == " T":
            return f"{count:.0f}{unit}" if unit == "" or count >= 999.5 else f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def number_text(value: float) -> str:
    """A coefficient as a whole number or the inverse of one where it is, else as a decimal."""
    if abs(value - round(value)) < 1e-12 * abs(value):  # powers of sqrt(k) multiply to whole numbers, almost
        return str(round(value))
    inverse = 1 / value
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-12 * inverse else f"{value:.4g}"


def time_text(seconds: float) -> str:
    """A duration as people write it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shown(value: object) -> str:
    """A value of a config in a message, however large it is."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def suggest(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known name, and all of them where they are few."""
    known = sorted(known)
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=1)
    parts = [f"did you mean `{near[0]}`?"] if near else []
    if known and len(known) <= 30:
        parts.append(f"known: {', '.join(known)}")
    return " ".join(parts) or None
