"""Finding the outputs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    found = next((value for _, value in _tensors(output, "")), output)  # such as the first feature map of a backbone
    if not isinstance(found, Tensor):
        raise VerifyError(f"the model returns {type(output).__name__}, expected a tensor")
    return found


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Return every floating-point tensor that a model returns, by the path to it: `text_model_output.pooler_output`.

    Caches, which are objects of their own, are left out.

    Raises:
        VerifyError: the output contains no tensor.
    """
    return dict(_tensors(output, "")) or {"output": output_tensor(output)}


def _tensors(output: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield path or "output", output
    entries: Any = enumerate(output) if isinstance(output, (tuple, list)) else ()
    for key, value in output.items() if isinstance(output, Mapping) else entries:
        yield from _tensors(value, f"{path}.{key}" if path else str(key))
