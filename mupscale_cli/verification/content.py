"""Comparing nested structures of mappings, sequences and plain values: settings of optimizers, config.json, records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.text import shown

_MAX_SHOWN = 60  # characters of a value in a message


def content_differences(planned: Any, stored: Any, place: Place = ()) -> Iterator[str]:
    """Yield the differences of two nested structures, except those of tensors: a sentence with the place of each.

    Values of different types differ: 1 is neither 1.0 nor true. NaN equals NaN.
    """
    if isinstance(planned, torch.Tensor) or isinstance(stored, torch.Tensor):
        return  # `weights` compares tensors, and reports missing ones
    if isinstance(planned, Mapping) and isinstance(stored, Mapping):
        for key in (*planned, *(key for key in stored if key not in planned)):
            inner = (*place, key)
            if key in planned and key in stored:
                yield from content_differences(planned[key], stored[key], inner)
            else:
                yield from _one_sided((planned if key in planned else stored)[key], inner, is_planned=key in planned)
    elif isinstance(planned, (list, tuple)) and isinstance(stored, (list, tuple)) and len(planned) == len(stored):
        for index, pair in enumerate(zip(planned, stored, strict=True)):
            yield from content_differences(*pair, (*place, index))
    elif repr(planned) != repr(stored):
        yield f"`{place_name(place)}` is {shown(stored, _MAX_SHOWN)}, expected {shown(planned, _MAX_SHOWN)}"


def _one_sided(value: Any, place: Place, *, is_planned: bool) -> Iterator[str]:
    """Yield the values that only one structure has.

    An empty mapping is not a difference: distributed checkpoints do not keep it.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _one_sided(inner, (*place, key), is_planned=is_planned)
    elif not isinstance(value, torch.Tensor):
        yield f"`{place_name(place)}` is {'missing' if is_planned else 'not in the plan'}"
