"""Finding the outputs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mupscale_cli.errors import VerifyError

_OTHER = "output "  # in front of the number of an output without a name


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


def main_and_others(output: Any) -> dict[str, Tensor]:
    """Return every floating-point tensor that a model returns, by the path to it, the main one first.

    A main output that has no name is called `logits`.

    Raises:
        VerifyError: the output contains no tensor.
    """
    main, named = output_tensor(output), named_outputs(output)
    names: dict[int, str] = {}  # of each tensor, which may be returned twice
    for name, value in named.items():
        names.setdefault(id(value), name)
    first = names.pop(id(main), "")
    others = {_OTHER + name if name[0].isdigit() else name: named[name] for name in names.values()}
    has_name = first and not first[0].isdigit() and not isinstance(output, Tensor)
    return {first if has_name else "logits": main, **others}


def _tensors(output: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield path or "output", output
    for key, value in _entries(output):
        yield from _tensors(value, f"{path}.{key}" if path else str(key))


def _entries(output: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a container holds, by name or number; nothing for anything else."""
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, (tuple, list)):
        return enumerate(output)
    if dataclasses.is_dataclass(output):
        return ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    return ()
