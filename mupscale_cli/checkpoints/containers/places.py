"""Places in nested mappings and sequences: the keys and indices that lead to a value. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Place = tuple[Any, ...]


def value_at(content: Any, place: Sequence[Any]) -> Any:
    """Return the value at a place in nested mappings and sequences; None if there is none."""
    for key in place:
        if isinstance(content, (list, tuple)):
            content = content[key] if isinstance(key, int) and key < len(content) else None
        else:
            content = content.get(key) if isinstance(content, Mapping) else None
    return content


def find_place(content: Any, keys: str) -> Place:
    """Return the place that dotted keys lead to, such as `optimizer_states.0`; a list takes indices.

    `*` is the first key of a mapping. Keys may contain dots themselves. Keys that lead nowhere are returned as they are
    written.
    """
    if not keys:
        return ()
    parts = keys.split(".")
    for count in range(1, len(parts) + 1):
        key: Any = ".".join(parts[:count])
        if isinstance(content, (list, tuple)) and key.isdecimal():
            key = int(key)
        elif isinstance(content, Mapping) and key == "*":
            key = next(iter(content), key)
        inner = value_at(content, (key,))
        if inner is not None:
            rest = find_place(inner, ".".join(parts[count:]))
            if value_at(inner, rest) is not None:
                return (key, *rest)
    return tuple(parts)


def place_name(place: Place) -> str:
    """Format a place: `optimizer/state/0/exp_avg`."""
    return "/".join(map(str, place))


def replace_at(content: Any, place: Place, value: Any) -> Any:
    """Return a copy of nested mappings and sequences with another value at a place."""
    if not place:
        return value
    key = place[0]
    changed = replace_at(content[key], place[1:], value)
    if isinstance(content, Mapping):
        return type(content)({**content, key: changed})  # type: ignore[call-arg]
    return type(content)([*content[:key], changed, *content[key + 1 :]])
