"""Results of a verification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mupscale_cli.errors import VerifyError
from mupscale_cli.record.figures import figure

if TYPE_CHECKING:
    from mupscale_cli.record import types as recorded


class CannotVerify(VerifyError):  # noqa: N818 (the checkpoint has no error)
    """A verification that is not possible here, through no fault of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of two tensors that should be equal.

    Attributes:
        what: what the tensors are.
        max_abs: largest absolute difference of two elements.
        max_rel: `max_abs` divided by the largest magnitude in the narrow model's tensor.
    """

    what: str
    max_abs: float
    max_rel: float

    def as_record(self) -> recorded.Comparison:
        """Return the object that mupscale.json and `--json` contain."""
        return {"what": self.what, "max_abs": figure(self.max_abs), "max_rel": figure(self.max_rel)}


@dataclass(frozen=True, slots=True)
class Verification:
    """Comparison of two models: whether they agree, and how closely.

    Attributes:
        comparisons: comparisons of the models' outputs, each for its own inputs.
        num_modules: number of modules whose outputs were compared.
        worst_module: the module with the largest relative difference.
        first_difference: the first module, in the order of execution, whose difference exceeds the tolerance.
        tolerance: largest relative difference that rounding can explain.
        tolerance_reason: derivation of the tolerance, in a line.
        dtype: type in which both models ran.
        device: device on which the wide model ran.
        inputs: description of the inputs.
        rounding: change of the outputs when scaled tensors are rounded to their stored type; None if none is
            rounded. The comparisons are with the narrow model after that rounding, which therefore cannot
            hide a wrong rule.
        rounded_tensors: number of rounded tensors.
        training: comparison of optimizer steps; None if there was none.
        keeps_function: whether the models should agree; otherwise the comparisons tell how different they are.
        unperturbed: comparison with the wide model without its noise; None if it has none.
        weights: comparison of the stored bytes with the planned ones; None if there was none.
        modules: comparisons of all modules, in the order of execution.
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
        """Whether the wide model is what its method promises."""
        if any(part is not None and not part.agrees for part in (self.training, self.unperturbed, self.weights)):
            return False
        return not self.keeps_function or self.is_equal

    @property
    def is_equal(self) -> bool:
        """Whether both models compute the same function, up to rounding."""
        return self.first_difference is None and all(c.max_rel <= self.tolerance for c in self.comparisons)

    @property
    def max_rel(self) -> float:
        """Largest relative difference of the outputs; NaN if any of them is NaN."""
        errors = [comparison.max_rel for comparison in self.comparisons]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def as_record(self) -> recorded.Verification:
        """Return the object that mupscale.json contains."""
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
        """Return the object that `--json` prints: the record's, and the comparison of every module."""
        return {
            **self.as_record(),
            "modules": [module.as_record() for module in self.modules],
            "unperturbed": self.unperturbed.as_document() if self.unperturbed else None,
        }


@dataclass(frozen=True, slots=True)
class StoredCheck:
    """Distance of a stored tensor from the planned one.

    Attributes:
        what: name of the tensor.
        units: largest distance of an element, in units in the last place of the stored type; rounding explains
            up to 1.
    """

    what: str
    units: float


@dataclass(frozen=True, slots=True)
class TrainingVerification:
    """Comparison of two models that were trained side by side.

    Attributes:
        steps: number of optimizer steps.
        optimizer: name and main settings of the optimizer.
        losses: loss of the narrow and of the wide model before each step.
        weights: the parameter that is farthest from c R(narrow) after the last step, relative to its largest element.
        stored: the stored weight or state that is farthest from the planned one.
        carried: whether a carried optimizer state was compared.
        first_difference: the parameter that is farthest off after the first step whose losses differ.
        tolerance: largest relative difference of the losses that rounding can explain.
        tolerance_reason: derivation of the tolerance, in a line.
        weights_tolerance: largest relative difference of the weights that rounding can explain; larger than
            `tolerance` if a step multiplies errors, as Muon's does.
        without_noise: whether the wide model was trained without its stored noise.
        start: the optimizer state that both models started from, as a phrase.
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
        """Largest relative difference of the losses before a step."""
        errors = [abs(a - b) / abs(a) if a else abs(b) for a, b in self.losses]
        return math.inf if any(map(math.isnan, errors)) else max(errors)

    @property
    def steps_agree(self) -> bool:
        """Whether both models took the same steps from the planned weights and state."""
        return self.max_rel <= self.tolerance and self.weights.max_rel <= self.weights_tolerance

    @property
    def is_stored_correctly(self) -> bool:
        """Whether the stored weights and state are the planned ones, up to rounding."""
        return self.stored.units <= 1

    @property
    def agrees(self) -> bool:
        return self.steps_agree and self.is_stored_correctly

    def as_record(self) -> recorded.Training:
        """Return the object that mupscale.json and `--json` contain."""
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
    """Comparison of stored tensors with the planned ones, byte by byte.

    Attributes:
        num_tensors: number of tensors that were compared.
        num_bytes: size of their data.
        differences: one sentence per difference, with the name of the tensor or setting.
        state: comparison of the optimizer's state; None if it was not compared.
        state_skipped: reason why an existing state was not compared.
    """

    num_tensors: int
    num_bytes: int
    differences: tuple[str, ...]
    state: WeightsCheck | None = None
    state_skipped: str | None = None

    @property
    def agrees(self) -> bool:
        return not self.differences and (self.state is None or self.state.agrees)

    def as_record(self) -> recorded.Weights:
        """Return the object that mupscale.json and `--json` contain."""
        record: recorded.Weights = {
            "agrees": self.agrees,
            "tensors": self.num_tensors,
            "bytes": self.num_bytes,
            "differences": list(self.differences),
        }
        if self.state:
            record["optimizer_state"] = self.state.as_record()
        if self.state_skipped:
            record["optimizer_state_skipped"] = self.state_skipped
        return record


def compare(what: str, narrow: Tensor, wide: Tensor) -> Comparison:
    """Compare two tensors of the same shape, in float64.

    Tensors without elements, of different shapes, or with NaN or infinity are infinitely different.
    """
    if narrow.shape != wide.shape or not narrow.numel():
        return Comparison(what, math.inf, math.inf)
    difference = float((narrow.double() - wide.double()).abs().max())
    scale = float(narrow.double().abs().max())
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return Comparison(what, math.inf, math.inf)
    return Comparison(what, difference, difference / scale if scale else (0.0 if difference == 0 else math.inf))
