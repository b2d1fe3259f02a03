"""Formatting numbers, names and values for messages."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

NUMBER_IN_NAME = re.compile(r"(?<![^.])\d+(?![^.])")  # a number between dots in a name, such as a layer's index
_MAX_RUNS = 4  # runs of numbers to list before abbreviating


def bytes_text(count: float) -> str:
    """Format a number of bytes: `1.7 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def count_text(count: float) -> str:
    """Format a number of parameters: `254 M`."""
    for unit in ("", " k", " M", " B", " T"):
        if count < 999.5 or unit == " T":
            return f"{count:.0f}{unit}" if unit == "" or count >= 999.5 else f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with a noun: `1 file`, `2 files`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def number_text(value: float) -> str:
    """Format a coefficient as a whole number, the inverse of one, or a decimal: `4`, `1/4`, `1.414`."""
    if abs(value - round(value)) < 1e-12 * abs(value):  # products of powers of sqrt(k) are inexact
        return str(round(value))
    inverse = 1 / value
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-12 * inverse else f"{value:.4g}"


def time_text(seconds: float) -> str:
    """Format a duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def growth_factor(size: int | None, wide_size: int | None, copies: int) -> str:
    """Return by how much an axis grows: `x2`, or `x1.5` if some of its new units are fresh.

    Args:
        size: its units before; None if they vary.
        wide_size: its units after; None if they vary.
        copies: copies of each unit.
    """
    return f"x{wide_size / size:.4g}" if size and wide_size else f"x{copies}"


def numbers_text(numbers: Iterable[int]) -> str:
    """Format whole numbers as runs: `0-5`, `0-5, 7`, `0, 2 .. 26`."""
    ascending = sorted(set(numbers))
    steps = {later - earlier for earlier, later in itertools.pairwise(ascending)}
    if len(ascending) > _MAX_RUNS and len(steps) == 1 and steps != {1}:
        return f"{ascending[0]}, {ascending[1]} .. {ascending[-1]}"
    runs: list[list[int]] = []
    for number in ascending:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(texts) > 2 * _MAX_RUNS:
        texts = [*texts[:_MAX_RUNS], "..", *texts[-1:]]
    return ", ".join(texts).replace(", .., ", " .. ")


def listed(names: Iterable[str], most: int | None = None) -> str:
    """Format names as a list: "`a`, `b` and 3 more".

    Args:
        names: the names.
        most: maximum number of names to list. Default: all.
    """
    names = list(names)
    more = len(names) - len(names[:most])
    return ", ".join(f"`{name}`" for name in names[:most]) + (f" and {more} more" if more else "")


def starred(name: str) -> str:
    """Replace the numbers in a tensor's name by `*`."""
    return NUMBER_IN_NAME.sub("*", name)


def shortened(text: str, most: int) -> str:
    """Cut a text off after `most` characters, and mark the cut with `…`."""
    return text if len(text) <= most else f"{text[:most]}…"


def shown(value: object, most: int = 200) -> str:
    """Return the `repr` of a value, cut off after `most` characters."""
    return shortened(repr(value), most)


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Return a hint with the known name most similar to `name`, and all known names if there are at most 30."""
    known = sorted(known)
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=1)
    parts = [f"did you mean `{near[0]}`?"] if near else []
    if known and len(known) <= 30:
        parts.append(f"known: {', '.join(known)}")
    return " ".join(parts) or None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if the message is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
