"""What a verification found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mupscale_cli.errors import VerifyError


class CannotVerify(VerifyError):  # noqa: N818 (it is a reason, and read as one)
    """A verification that is not possible here, for a reason that is not the checkpoint's fault."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two tensors that should be equal, or copies of one another.

    Attributes:
        what: which ones.
        max_abs: largest absolute difference.
        max_rel: the same over the largest magnitude of the narrow model's.
    """

    what: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether two models agree, and how closely.

    Attributes:
        comparisons: of the outputs, each on its own inputs.
        num_modules: modules whose outputs were compared as well.
        worst_module: the one with the largest relative difference.
        first_difference: the first module, in the order of execution, beyond the tolerance.
        tolerance: largest relative difference that rounding explains.
        tolerance_reason: how that follows from the data types.
        dtype: in which both models ran.
        device: where they ran.
        inputs: what they were given.
        rounding: how far storing scaled tensors in their type moves the outputs, None where nothing
            is rounded. The comparisons are with the narrow model after that rounding, so that it
            hides no wrong rule.
        rounded_tensors: how many tensors that are.
    """

    comparisons: tuple[Comparison, ...]
    num_modules: int
    worst_module: Comparison | None
    first_difference: Comparison | None
    tolerance: float
    tolerance_reason: str
    dtype: str
    device: str
    inputs: str
    rounding: Comparison | None = None
    rounded_tensors: int = 0

    @property
    def agrees(self) -> bool:
        return self.first_difference is None and all(c.max_rel <= self.tolerance for c in self.comparisons)

    @property
    def max_rel(self) -> float:
        """Largest relative difference of the outputs; NaN if any is."""
        errors = [comparison.max_rel for comparison in self.comparisons]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def as_record(self) -> dict[str, Any]:
        """The figures as mupscale.json and `--json` show them."""

        def plain(comparison: Comparison | None) -> dict[str, Any] | None:
            if comparison is None:
                return None
            return {"what": comparison.what, "max_abs": _json(comparison.max_abs), "max_rel": _json(comparison.max_rel)}

        return {
            "agrees": self.agrees,
            "dtype": self.dtype,
            "device": self.device,
            "inputs": self.inputs,
            "tolerance": self.tolerance,
            "tolerance_reason": self.tolerance_reason,
            "comparisons": [plain(comparison) for comparison in self.comparisons],
            "modules_compared": self.num_modules,
            "worst_module": plain(self.worst_module),
            "first_difference": plain(self.first_difference),
            "rounding": plain(self.rounding),
            "rounded_tensors": self.rounded_tensors,
        }


def _json(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)


def compare(what: str, narrow: Tensor, wide: Tensor) -> Comparison:
    """Compare two tensors of one shape; a NaN anywhere, or another shape, is an infinite difference."""
    if narrow.shape != wide.shape or not narrow.numel():
        return Comparison(what, math.inf, math.inf)
    difference = float((narrow.double() - wide.double()).abs().max())
    scale = float(narrow.double().abs().max())
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return Comparison(what, math.inf, math.inf)
    return Comparison(what, difference, difference / scale if scale else (0.0 if difference == 0 else math.inf))
