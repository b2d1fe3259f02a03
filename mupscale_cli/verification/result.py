"""What a verification found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mupscale_cli.errors import VerifyError
from mupscale_cli.record.figures import figure

if TYPE_CHECKING:
    from mupscale_cli.record import types as recorded


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

    def as_record(self) -> recorded.Comparison:
        """The figures as mupscale.json and `--json` show them."""
        return {"what": self.what, "max_abs": figure(self.max_abs), "max_rel": figure(self.max_rel)}


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
        training: whether both take the same steps, None where that was not tried.
        keeps_function: whether the models are to agree; else the comparisons say how far apart they are.
        unperturbed: the same comparison with the noise taken away, None where there is none.
        weights: whether what is stored is what was planned, None where that was not tried.
        modules: the comparison of every module, in the order of execution.
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
    training: TrainingVerification | None = None
    keeps_function: bool = True
    unperturbed: Verification | None = None
    weights: WeightsCheck | None = None
    modules: tuple[Comparison, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether everything holds that the method promises."""
        if any(part is not None and not part.agrees for part in (self.training, self.unperturbed, self.weights)):
            return False
        return not self.keeps_function or self.is_equal

    @property
    def is_equal(self) -> bool:
        """Whether both models compute the same, up to rounding."""
        return self.first_difference is None and all(c.max_rel <= self.tolerance for c in self.comparisons)

    @property
    def max_rel(self) -> float:
        """Largest relative difference of the outputs; NaN if any is."""
        errors = [comparison.max_rel for comparison in self.comparisons]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def as_record(self) -> recorded.Verification:
        """The figures as mupscale.json has them."""
        return {
            "agrees": self.agrees,
            "dtype": self.dtype,
            "device": self.device,
            "inputs": self.inputs,
            "tolerance": self.tolerance,
            "tolerance_reason": self.tolerance_reason,
            "comparisons": [comparison.as_record() for comparison in self.comparisons],
            "modules_compared": self.num_modules,
            "worst_module": self.worst_module.as_record() if self.worst_module else None,
            "first_difference": self.first_difference.as_record() if self.first_difference else None,
            "rounding": self.rounding.as_record() if self.rounding else None,
            "rounded_tensors": self.rounded_tensors,
            "training": self.training.as_record() if self.training else None,
            "keeps_function": self.keeps_function,
            "unperturbed": self.unperturbed.as_record() if self.unperturbed else None,
            "weights": self.weights.as_record() if self.weights else None,
        }

    def as_document(self) -> recorded.Verification:
        """The figures as `--json` shows them: with those of every module."""
        return {
            **self.as_record(),
            "modules": [module.as_record() for module in self.modules],
            "unperturbed": self.unperturbed.as_document() if self.unperturbed else None,
        }


@dataclass(frozen=True, slots=True)
class StoredCheck:
    """How far a stored tensor is from the planned one.

    Attributes:
        what: which tensor.
        units: largest distance of an element, in units in the last place of its type; at most 1 is rounding.
    """

    what: str
    units: float


@dataclass(frozen=True, slots=True)
class TrainingVerification:
    """Whether two models take the same steps.

    Attributes:
        steps: how many were taken.
        optimizer: which, with what.
        losses: of the narrow and the wide model, before each step.
        weights: the parameter that is farthest from c R(narrow) in the end, relative to its largest element.
        stored: the stored weight or state that is farthest from the planned one.
        carried: whether a carried optimizer state was compared.
        first_difference: in the first step whose loss differs, the parameter that is farthest off.
        tolerance: largest relative difference of losses that rounding explains.
        tolerance_reason: how that follows.
        weights_tolerance: the same for weights; larger where a step multiplies errors (Muon).
        without_noise: the wide model was trained without the noise that it is stored with.
        start: from which state both began.
    """

    steps: int
    optimizer: str
    losses: tuple[tuple[float, float], ...]
    weights: Comparison
    stored: StoredCheck
    carried: bool
    first_difference: Comparison | None
    tolerance: float
    tolerance_reason: str
    weights_tolerance: float
    without_noise: bool = False
    start: str = "a fresh start"

    @property
    def max_rel(self) -> float:
        """Largest relative difference of the losses of a step."""
        errors = [abs(a - b) / abs(a) if a else abs(b) for a, b in self.losses]
        return math.inf if any(map(math.isnan, errors)) else max(errors)

    @property
    def steps_agree(self) -> bool:
        """Whether both models were trained alike, each from what it should have been stored as."""
        return self.max_rel <= self.tolerance and self.weights.max_rel <= self.weights_tolerance

    @property
    def is_stored_well(self) -> bool:
        """Whether weights and state are stored as planned, up to rounding."""
        return self.stored.units <= 1

    @property
    def agrees(self) -> bool:
        return self.steps_agree and self.is_stored_well

    def as_record(self) -> recorded.Training:
        """The figures as mupscale.json and `--json` show them."""
        first = self.first_difference
        return {
            "agrees": self.agrees,
            "steps": self.steps,
            "optimizer": self.optimizer,
            "max_rel": figure(self.max_rel),
            "tolerance": self.tolerance,
            "tolerance_reason": self.tolerance_reason,
            "losses": [[figure(a), figure(b)] for a, b in self.losses],
            "weights_tolerance": self.weights_tolerance,
            "weights": {"what": self.weights.what, "max_rel": figure(self.weights.max_rel)},
            "stored": {"what": self.stored.what, "units": figure(self.stored.units)},
            "state_compared": self.carried,
            "without_noise": self.without_noise,
            "start": self.start,
            "first_difference": None if first is None else {"what": first.what, "max_rel": figure(first.max_rel)},
        }


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """Whether what is stored is what the plan makes of the source.

    Attributes:
        num_tensors: how many were compared.
        num_bytes: of their data.
        differences: what is wrong with the others, each with the tensor's name.
        state: the same for the optimizer's state, where there is one.
        without_state: why that was not compared, where there is one.
    """

    num_tensors: int
    num_bytes: int
    differences: tuple[str, ...]
    state: WeightsCheck | None = None
    without_state: str | None = None

    @property
    def agrees(self) -> bool:
        return not self.differences and (self.state is None or self.state.agrees)

    def as_record(self) -> recorded.Weights:
        """The figures as mupscale.json and `--json` show them."""
        found: recorded.Weights = {
            "agrees": self.agrees,
            "tensors": self.num_tensors,
            "bytes": self.num_bytes,
            "differences": list(self.differences),
        }
        if self.state:
            found["optimizer_state"] = self.state.as_record()
        if self.without_state:
            found["optimizer_state_skipped"] = self.without_state
        return found


def compare(what: str, narrow: Tensor, wide: Tensor) -> Comparison:
    """Compare two tensors of one shape; a NaN anywhere, or another shape, is an infinite difference."""
    if narrow.shape != wide.shape or not narrow.numel():
        return Comparison(what, math.inf, math.inf)
    difference = float((narrow.double() - wide.double()).abs().max())
    scale = float(narrow.double().abs().max())
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return Comparison(what, math.inf, math.inf)
    return Comparison(what, difference, difference / scale if scale else (0.0 if difference == 0 else math.inf))
