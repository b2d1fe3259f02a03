"""Checks of config.json that need no model."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError

CONFIG = "config.json"
# Numbers that a model class makes lists or tables of, and what each may be whatever the tensors' dimensions are.
_SIZES = (
    (re.compile(r"(^|_)(labels|experts)$"), 1 << 16),  # a base model keeps the names of a head's classes
    (re.compile(r"(^|_)(positions|seq_len|seq_length|sequence_length|context_length|ctx)$"), 1 << 20),
    (re.compile(r"(^|_)(position_embeddings|size|dim|heads|channels|buckets|window)$"), 1 << 24),
)
_IS_DEPTH = re.compile(r"^((n|num|encoder|decoder)_(\w+_)?)?(layers?|blocks?|stages)$|depths?$")


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """Return the class name of the reference model, the first of `architectures`; None if the config has none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def untagged(values: Any) -> Any:
    """Return a value of config.json with numbers where transformers writes tags such as `{"__float__": "Infinity"}`.

    The files keep the tags, since JSON has no infinity; classes of configs take the numbers. Everything is copied.
    """
    if isinstance(values, Mapping):
        tag = values.get("__float__")
        return float(tag) if isinstance(tag, str) else {key: untagged(value) for key, value in values.items()}
    return [untagged(value) for value in values] if isinstance(values, list) else values


def set_key(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a key in place, dotted for nested configs; missing or null sections are created.

    `key[0]` is an item of a list, and `key[0][1]` an item of that. The lists must have these items.
    """
    *path, last = name.split(".")
    for part in path:
        if config.get(part) is None:
            config[part] = {}
        config = config[part]
    key, *places = last.replace("]", "").split("[")
    if not places:
        config[key] = value
        return
    items = config[key]
    for place in places[:-1]:
        items = items[int(place)]
    items[int(places[-1])] = value


def check_limits(config: Mapping[str, Any], specs: Collection[TensorSpec]) -> None:
    """Refuse a config that asks for much more than its tensors show, before a list or a model is made from it.

    Model classes make a list of that many layers, names for that many labels, and tables of that many positions. A
    context length may exceed every dimension, because rotary positions have no table.

    Args:
        config: the content of config.json; nested configs are checked too.
        specs: tensors of the checkpoint.

    Raises:
        CheckpointError: a number in the config exceeds its limit.
    """
    largest = max((size for spec in specs for size in spec.shape), default=0)
    _check(config, len(specs), largest)


def _check(config: Mapping[Any, Any], num_tensors: int, largest: int) -> None:
    for key, value in ((str(name), value) for name, value in config.items()):  # a trainer's own may be numbers
        if isinstance(value, Mapping):
            _check(value, num_tensors, largest)
            continue
        if _IS_DEPTH.search(key):
            limit: float = num_tensors
            shown = f"the checkpoint has only {num_tensors} tensors"
        else:
            limit = max(largest, next((least for pattern, least in _SIZES if pattern.search(key)), math.inf))
            shown = f"the largest dimension of a tensor is {largest}"
        counts = value if isinstance(value, list) else [value]
        if any(isinstance(count, (int, float)) and count > limit for count in counts):
            raise CheckpointError(
                f"config.json sets `{key}` to {str(value)[:40]}, but {shown}",
                hint="config.json and the weights belong to different models; download or save the checkpoint again",
            )
