"""Nested mappings and sequences with tensors, which training checkpoints consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.base import Place
from mupscale_cli.errors import CheckpointError

_MAX_VALUES = 5_000_000
_MAX_DEPTH = 64


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

    Keys may contain dots themselves. Keys that lead nowhere are returned as they are written.
    """
    if not keys:
        return ()
    parts = keys.split(".")
    for count in range(1, len(parts) + 1):
        key: Any = ".".join(parts[:count])
        key = int(key) if isinstance(content, (list, tuple)) and key.isdecimal() else key
        inner = value_at(content, (key,))
        if inner is not None:
            rest = find_place(inner, ".".join(parts[count:]))
            if value_at(inner, rest) is not None:
                return (key, *rest)
    return tuple(parts)


def walk(content: Any, place: Place = ()) -> Iterator[tuple[Place, torch.Tensor]]:
    """Yield every tensor in nested mappings and sequences, with its place."""
    if isinstance(content, torch.Tensor):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from walk(value, (*place, key))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from walk(value, (*place, index))


def map_tensors(content: Any, place: Place, change: Callable[[Place, torch.Tensor], Any]) -> Any:
    """Copy nested mappings and sequences, replacing every tensor."""
    if isinstance(content, torch.Tensor):
        return change(place, content)
    if isinstance(content, Mapping):
        changed = {key: map_tensors(value, (*place, key), change) for key, value in content.items()}
        return changed if type(content) is dict else type(content)(changed)  # type: ignore[call-arg]
    if isinstance(content, (list, tuple)):
        changed_items = [map_tensors(value, (*place, index), change) for index, value in enumerate(content)]
        return changed_items if type(content) is list else type(content)(changed_items)
    return content


def place_name(place: Place) -> str:
    """Format a place: `optimizer/state/0/exp_avg`."""
    return "/".join(map(str, place))


def check_structure(content: Any, path: Path) -> None:
    """Refuse content that cannot be traversed: a pickle may contain itself, or one list a million times.

    Raises:
        CheckpointError: the content has too many values or is nested too deeply.
    """
    level, remaining = [content], _MAX_VALUES
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, (Mapping, list, tuple, set)):
                remaining -= len(value) + 1
                if remaining < 0:
                    break
                inner.extend(value.values() if isinstance(value, Mapping) else value)
        level = inner
        if not level or remaining < 0:
            break
    if level or remaining < 0:
        raise CheckpointError(
            f"`{path}` holds more than {_MAX_VALUES} values, or is nested deeper than {_MAX_DEPTH} levels"
        )
