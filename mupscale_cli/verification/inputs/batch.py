"""Random inputs of a model as one batch: their type and their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.verification.result import CannotVerify

BATCH = 2
LENGTH = 16


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model's forward pass.

    Attributes:
        arguments: positional arguments.
        keywords: keyword arguments.
        description: a phrase for reports, such as "2 sequences of 16 random tokens".
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    description: str

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Move all tensors to a device and convert the floating-point ones to `dtype`."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(inner) for key, inner in value.items()}
            if isinstance(value, Tensor):
                return value.to(device, dtype) if value.is_floating_point() else value.to(device)
            return value

        return Inputs(
            tuple(map(move, self.arguments)), {key: move(v) for key, v in self.keywords.items()}, self.description
        )


def random_tokens(vocab_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw a batch of token ids of shape (BATCH, length)."""
    return torch.randint(vocab_size, (BATCH, length), generator=generator)


def unknown_kind(name: str) -> CannotVerify:
    """Create the error for a kind of inputs that is named by its argument."""
    return CannotVerify(
        f"cannot make random inputs of kind `{name}`; give your own model with `--model module.py:build`"
    )
