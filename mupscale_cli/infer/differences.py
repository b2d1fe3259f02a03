"""How far the outputs of a wide model are from those of the narrow one; outputs may be the widened units themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mupscale_cli.verification.result import LOWEST

TOLERANCE = 1e-9
_PREDICTED = re.compile(r"(?<!router_)logits|boxes")  # outputs that count classes or objects, which no width changes
_MATCHED_VALUES = 256  # of a unit, which tell it from the others


def outputs_error(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> float | str:
    """Return the largest relative difference of any output, or what is wrong with the shape of one of them."""
    worst = 0.0
    for name, narrow in expected.items():
        wide = actual.get(name)
        if wide is None:
            return f"the wide model has no output `{name}`"
        is_resized = narrow.shape != wide.shape and _PREDICTED.search(name) is not None
        error = None if is_resized else output_error(narrow, wide)
        if error is None:
            return f"the output `{name}` has the shape {tuple(wide.shape)}, expected {tuple(narrow.shape)}"
        worst = max(worst, error)
    return worst


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference over the largest value; infinity if others are hidden, or one is no number."""
    size = expected.abs().max().item() if expected.numel() else 0.0
    if not size < -LOWEST:  # hidden scores are minus infinity or the lowest number
        shown = expected.abs() < -LOWEST
        masked = torch.equal(expected[~shown], actual[~shown])
        return relative_error(expected[shown], actual[shown]) if masked else math.inf
    error = (expected - actual).abs().max().item() if expected.numel() else 0.0
    return error / size if size > 0 and math.isfinite(error / size) else (0.0 if error == 0 else math.inf)


def output_error(expected: Tensor, actual: Tensor) -> float | None:
    """Return the largest relative difference of outputs; one of their dimensions may hold copies of units.

    A model without a head returns its widened units themselves, in an order that depends on the layouts. Each column
    is compared with the unit that it is closest to, and each unit must have the same number of columns. With fresh
    units among them, each unit is compared with its closest column. The copies in vectors of length 1 are smaller.

    Returns:
        The difference; infinity if units have unequal numbers of columns; None if the shapes do not fit.
    """
    if expected.shape == actual.shape:
        return relative_error(expected, actual)
    wider = [dim for dim, (old, new) in enumerate(zip(expected.shape, actual.shape, strict=False)) if old != new]
    if expected.dim() != actual.dim() or len(wider) != 1 or actual.shape[wider[0]] < expected.shape[wider[0]]:
        return None
    narrow, wide = (each.movedim(wider[0], 0).flatten(1) for each in (expected, actual))
    some = slice(_MATCHED_VALUES)
    if len(wide) % len(narrow):
        return relative_error(narrow, wide[torch.cdist(narrow[:, some], wide[:, some], p=math.inf).argmin(1)])
    if _has_length_1(narrow) and _has_length_1(wide):
        wide = wide * math.sqrt(len(wide) // len(narrow))
    units = torch.cdist(wide[:, some], narrow[:, some], p=math.inf).argmin(1)
    if not bool((units.bincount(minlength=len(narrow)) == len(wide) // len(narrow)).all()):
        return math.inf
    return relative_error(narrow[units], wide)


def _has_length_1(vectors: Tensor) -> bool:
    """Tell whether the vectors in the columns of a matrix have the length 1."""
    return bool(((vectors.norm(dim=0) - 1).abs() < TOLERANCE).all())
