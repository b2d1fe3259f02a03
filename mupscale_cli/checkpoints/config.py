"""Checks of config.json that need no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mupscale_cli.errors import CheckpointError

CONFIG = "config.json"
_IS_DEPTH = re.compile(r"^(n|num|encoder|decoder)_(\w+_)?(layers?|blocks?|stages)$|depths?$")


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """Return the class name of the reference model, the first of `architectures`; None if the config has none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def check_depth(config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse a config with more layers than the checkpoint has tensors, before a model is built from it.

    Args:
        config: the content of config.json; nested configs are checked too.
        num_tensors: number of tensors in the checkpoint.

    Raises:
        CheckpointError: a depth in the config exceeds the number of tensors.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_depth(value, num_tensors)
            continue
        counts = value if isinstance(value, list) else [value]
        if _IS_DEPTH.search(key) and any(isinstance(count, (int, float)) and count > num_tensors for count in counts):
            raise CheckpointError(
                f"config.json sets `{key}` to {str(value)[:40]}, but the checkpoint has only {num_tensors} tensors",
                hint="config.json and the weights belong to different models; download or save the checkpoint again",
            )
