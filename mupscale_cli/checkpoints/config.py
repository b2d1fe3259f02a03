"""What config.json says of the reference model, before anyone builds that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mupscale_cli.errors import CheckpointError

CONFIG = "config.json"
_IS_DEPTH = re.compile(r"^(n|num|encoder|decoder)_(\w+_)?(layers?|blocks?|stages)$|depths?$")


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The class of the reference model that a config names; None if it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def check_depth(config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse, before a model is built from a config, one of more layers than there are tensors.

    Raises:
        CheckpointError: it says so.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_depth(value, num_tensors)
            continue
        counts = value if isinstance(value, list) else [value]
        if _IS_DEPTH.search(key) and any(isinstance(count, (int, float)) and count > num_tensors for count in counts):
            raise CheckpointError(
                f"config.json says `{key}`: {str(value)[:40]}, and there are only {num_tensors} tensors",
                hint="config.json and the weights do not belong together",
            )
