"""Finding the main output of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mupscale_cli.errors import VerifyError


def output_tensor(output: Any) -> Tensor:
    """Return a model's main output: its logits, else its last hidden state, else the first tensor.

    Raises:
        VerifyError: the output contains no tensor.
    """
    named = output if isinstance(output, Mapping) else {}
    for name in ("logits", "last_hidden_state", *named):
        value = named.get(name) if named else getattr(output, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise VerifyError(f"the model returns {type(output).__name__}, expected a tensor")
    return output
