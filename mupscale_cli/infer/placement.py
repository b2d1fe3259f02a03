"""Find which value on disk becomes which value in memory, where a class converts its tensors while it loads them.

Conversions stack, split, transpose and rename tensors: each value in memory is one of those on disk. Loading the
numbers of the values once, instead of the values, therefore shows the whole conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FIRST = 2**40  # the number of the first value; no class computes such a value itself


@dataclass(frozen=True)
class Placement:
    """Where the tensors of a model take their values from.

    Attributes:
        order: the names of the tensors on disk, in the order of the numbers of their values.
        numbers: for each tensor in memory, by name, the numbers of its values.
    """

    order: tuple[str, ...]
    numbers: Mapping[str, Tensor]

    def fill(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Give a model the values of tensors with the shapes that the placement was found with, and return it.

        Raises:
            RuntimeError: a tensor of the model has another shape.
        """
        values = torch.cat([tensors[name].reshape(-1).to(torch.float64) for name in self.order])
        model.load_state_dict({name: values[numbers] for name, numbers in self.numbers.items()}, strict=False)
        return model


def numbered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the same names and shapes, which hold the numbers of their values."""
    result, first = {}, _FIRST
    for name, tensor in tensors.items():
        result[name] = torch.arange(first, first + tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        first += tensor.numel()
    return result


def find_placement(model: nn.Module, tensors: Mapping[str, Tensor]) -> Placement | None:
    """Find how loading placed the values of tensors.

    Args:
        model: a model that has loaded `numbered(tensors)`.
        tensors: the tensors on disk.

    Returns:
        The placement, or None if some value on disk is not one in memory.
    """
    end = _FIRST + sum(tensor.numel() for tensor in tensors.values())
    numbers = {}
    for name, target in model.state_dict().items():
        is_number = (target >= _FIRST) & (target < end) & (target == target.round())
        if bool(is_number.all()) and target.is_floating_point():
            numbers[name] = target.to(torch.int64) - _FIRST
    placed = torch.cat([each.reshape(-1) for each in numbers.values()]) if numbers else torch.empty(0)
    is_complete = bool((torch.bincount(placed.long(), minlength=end - _FIRST) > 0).all())
    return Placement(tuple(tensors), numbers) if is_complete else None
