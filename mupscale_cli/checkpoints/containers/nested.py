"""Nested mappings and sequences with tensors, which training checkpoints consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.places import Place
from mupscale_cli.errors import CheckpointError

_MAX_VALUES = 5_000_000
_MAX_DEPTH = 64


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
