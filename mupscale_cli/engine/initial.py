"""Initial weights of fresh elements. They depend only on tensor name, seed and element, like noise."""

from __future__ import annotations

import torch
from torch import Tensor

from mupscale_cli.engine.random import fill_normal, noise_key
from mupscale_cli.plan.copies import FRESH
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.plan.types import TensorPlan


class InitialWeights:
    """The initial weights of a tensor's fresh elements, except those that must be 0 or the mean of others.

    Rows of old units are initialized in the columns of fresh ones, rows of fresh units in all columns. Each of the two
    kinds of rows has a sequence of random numbers of its own, so that rows can be filled in any blocks.
    """

    def __init__(self, tensor: TensorPlan) -> None:
        assert tensor.init is not None
        rows_fresh, rows_fixed = _fresh_units(tensor.dims[0])
        fresh, fixed = torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
        for dim in tensor.dims[1:]:
            is_fresh, is_fixed = _fresh_units(dim)
            fresh, fixed = _either(fresh, is_fresh), _either(fixed, is_fixed)
        free = ~fixed
        self._kinds = tuple(
            (noise_key(tensor.init.seed, f"{tensor.init.name}\0{kind}"), rows, _indices(columns))
            for kind, rows, columns in (
                ("old rows", ~rows_fresh, fresh & free),
                ("fresh rows", rows_fresh & ~rows_fixed, free),
            )
            if bool(columns.any())
        )

    def fill(self, rows: Tensor, first: int, std: float) -> None:
        """Fill the elements of some rows of the wide tensor.

        Args:
            rows: the rows, (rows, ...).
            first: number of the first of them in the tensor.
            std: standard deviation of the initial weights.
        """
        flat = rows.view(len(rows), -1)
        for key, of_kind, columns in self._kinds:
            chosen = of_kind[first : first + len(flat)]
            if not bool(chosen.any()):
                continue
            width = len(flat[0, columns])
            numbers = torch.empty(len(flat) * width, dtype=torch.float32)
            fill_normal(numbers, key, first * width, std)
            values = numbers.view(len(flat), width).to(flat.dtype)
            if bool(chosen.all()):
                flat[:, columns] = values
            else:
                flat[:, columns] = torch.where(chosen[:, None], values, flat[:, columns])


def _fresh_units(dim: DimMap) -> tuple[Tensor, Tensor]:
    """Return which new indices of a dimension copy none, and which of those hold no initial weights."""
    whole = torch.zeros(2, dim.wide_size, dtype=torch.bool)
    for strip in dim.strips:
        place = torch.tensor([strip.wide_offset])
        fresh, fixed = torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
        for digit in strip.digits:
            place = (place[:, None] + torch.arange(digit.units.wide_size) * digit.wide_stride).flatten()
            is_fresh = torch.tensor(digit.units.all_sources) == FRESH
            fresh, fixed = _either(fresh, is_fresh), _either(fixed, is_fresh & (digit.fill != "init"))
        whole[0, place], whole[1, place] = fresh, fixed
    return whole[0], whole[1]


def _either(slow: Tensor, fast: Tensor) -> Tensor:
    """Return the disjunction of all pairs of an outer and an inner flag; the inner index varies fastest."""
    return (slow[:, None] | fast).flatten()


def _indices(chosen: Tensor) -> slice | Tensor:
    """Return the indices of chosen elements, as a slice if they are consecutive, which is faster."""
    indices = chosen.nonzero().flatten()
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last + 1 - first == len(indices) else indices
