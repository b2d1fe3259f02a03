"""Results of a verification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mupscale_cli.errors import VerifyError
from mupscale_cli.record.figures import figure
from mupscale_cli.verification.options import PARTS

if TYPE_CHECKING:
    from mupscale_cli.record import types as recorded


# Classes hide scores with the lowest number of a type; bfloat16's is the one nearest to 0 of those types that models
# compute with here.
LOWEST = torch.finfo(torch.bfloat16).min


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
class FunctionCheck:
    """Comparison of two models that ran on the same inputs: whether they agree, and how closely.

    Attributes:
        comparisons: comparisons of the models' outputs, each for its own inputs.
        num_modules: number of modules whose outputs were compared.
        worst_module: the module with the largest relative difference.
        first_difference: the first module, in the order of execution, whose difference exceeds the tolerance.
        tolerance: largest relative difference that rounding can explain.
        tolerance_reason: derivation of the tolerance, in a line.
        module_by_module: whether each module of the wide model started from the narrow model's values, so that
            differences did not add up.
        dtype: type in which both models ran.
        device: device on which the wide model ran.
        inputs: description of the inputs.
        rounding: change of the outputs when scaled values, and the means that fresh units hold, are rounded to their
            stored type; None if none is rounded. The comparisons are without that rounding, which therefore cannot
            hide a wrong rule: the narrow model's values are rounded as those of the wide model, and its means are not.
        rounded_tensors: number of rounded tensors.
        keeps_function: whether the models should agree; otherwise the comparisons tell how different they are.
        unperturbed: comparison with the wide model without its noise; None if it has none.
        modules: comparisons of all modules, in the order of execution.
        missing: parameters of the reference class that the checkpoint lacks; outputs that depend on them are left out.
        unused: tensors of the checkpoint that the reference class ignores, so that they are no part of the function.
    """

    comparisons: tuple[Comparison, ...]
    num_modules: int
    worst_module: Comparison | None
    first_difference: Comparison | None
    tolerance: float
    tolerance_reason: str
    module_by_module: bool
    dtype: str
    device: str
    inputs: str
    rounding: Comparison | None = None
    rounded_tensors: int = 0
    keeps_function: bool = True
    unperturbed: FunctionCheck | None = None
    modules: tuple[Comparison, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the wide model computes what its method promises."""
        if self.unperturbed is not None and not self.unperturbed.agrees:
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

    def as_record(self) -> recorded.Function:
        """Return the object that mupscale.json contains."""
        return {
            "agrees": self.agrees,
            "dtype": self.dtype,
            "device": self.device,
            "inputs": self.inputs,
            "tolerance": self.tolerance,
            "tolerance_reason": self.tolerance_reason,
            "module_by_module": self.module_by_module,
            "comparisons": [comparison.as_record() for comparison in self.comparisons],
            "modules_compared": self.num_modules,
            "worst_module": self.worst_module.as_record() if self.worst_module else None,
            "first_difference": self.first_difference.as_record() if self.first_difference else None,
            "rounding": self.rounding.as_record() if self.rounding else None,
            "rounded_tensors": self.rounded_tensors,
            "keeps_function": self.keeps_function,
            "unperturbed": self.unperturbed.as_record() if self.unperturbed else None,
            "missing": list(self.missing),
            "unused": list(self.unused),
        }

    def as_document(self) -> recorded.Function:
        """Return the object that `--json` prints: the record's, and the comparison of every module."""
        return {
            **self.as_record(),
            "modules": [module.as_record() for module in self.modules],
            "unperturbed": self.unperturbed.as_document() if self.unperturbed else None,
        }


@dataclass(frozen=True, slots=True)
class StepComparison:
    """Difference of a wide parameter from the planned one after some steps, all relative to its largest element.

    Attributes:
        what: name of the parameter.
        max_rel: largest difference of an element.
        allowed: the largest difference that rounding explains.
        moved: how far an element has come since the first step.
    """

    what: str
    max_rel: float
    allowed: float
    moved: float

    @property
    def ratio(self) -> float:
        """The difference in units of what is allowed; infinity if it is NaN."""
        if math.isnan(self.max_rel):
            return math.inf
        return self.max_rel / self.allowed if self.allowed else (0.0 if self.max_rel == 0 else math.inf)

    @property
    def agrees(self) -> bool:
        return self.ratio <= 1

    def as_record(self) -> recorded.StepComparison:
        """Return the object that mupscale.json and `--json` contain."""
        return {
            "what": self.what,
            "max_rel": figure(self.max_rel),
            "allowed": figure(self.allowed),
            "moved": figure(self.moved),
        }


@dataclass(frozen=True, slots=True)
class TrainingVerification:
    """Comparison of two models that took the same optimizer steps.

    Attributes:
        steps: number of optimizer steps.
        optimizer: name and main settings of the optimizer.
        losses: loss of the narrow and of the wide model before each step.
        loss_response: largest relative change of the narrow model's losses if its parameters move to neighboring
            numbers before each step.
        factor: how many times such a change rounding explains.
        factor_reason: formula of the factor.
        weights: the parameter that is farthest off after the last step, in units of what it is allowed.
        first_difference: the same after the first step, if it is not allowed; else after the last; None if it is.
        ignored: number of narrow elements that were not compared, because their gradients were only rounding errors.
        stored_differences: stored weights, state entries and settings that are not exactly the planned ones.
        carried: whether a carried optimizer state was compared.
        removed: what was removed from the wide weights before training, see `Plan.additions`.
        start: the optimizer state that both models started from, as a phrase.
        frozen: the stacks of blocks that are deeper in the wide model, whose new blocks were frozen.
        inexact: wide parameters that were not compared, since no single value of some setting fits all of their parts.
        caveats: what these need, as sentences.
    """

    steps: int
    optimizer: str
    losses: tuple[tuple[float, float], ...]
    loss_response: float
    factor: float
    factor_reason: str
    weights: StepComparison
    first_difference: StepComparison | None
    ignored: int
    stored_differences: tuple[str, ...]
    carried: bool
    removed: tuple[str, ...] = ()
    start: str = "a fresh start"
    frozen: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float:
        """Largest relative difference of the losses that rounding explains."""
        return self.factor * self.loss_response

    @property
    def max_rel(self) -> float:
        """Largest relative difference of the losses before a step."""
        errors = [abs(a - b) / abs(a) if a else abs(b) for a, b in self.losses]
        return math.inf if any(map(math.isnan, errors)) else max(errors)

    @property
    def steps_agree(self) -> bool:
        """Whether both models took the same steps from the planned weights and state."""
        return self.max_rel <= self.tolerance and self.first_difference is None

    @property
    def agrees(self) -> bool:
        return self.steps_agree and not self.stored_differences

    def as_record(self) -> recorded.Training:
        """Return the object that mupscale.json and `--json` contain."""
        return {
            "agrees": self.agrees,
            "steps": self.steps,
            "optimizer": self.optimizer,
            "losses": [[figure(a), figure(b)] for a, b in self.losses],
            "max_rel": figure(self.max_rel),
            "tolerance": figure(self.tolerance),
            "response": figure(self.loss_response),
            "factor": self.factor,
            "factor_reason": self.factor_reason,
            "weights": self.weights.as_record(),
            "first_difference": self.first_difference.as_record() if self.first_difference else None,
            "ignored_elements": self.ignored,
            "stored_differences": list(self.stored_differences),
            "state_compared": self.carried,
            "removed": list(self.removed),
            "start": self.start,
            "frozen": list(self.frozen),
            "inexact": list(self.inexact),
        }


@dataclass(frozen=True, slots=True)
class TensorsCheck:
    """Comparison of stored tensors with the planned ones, byte by byte.

    Attributes:
        num_tensors: number of tensors that were compared.
        num_bytes: size of their data.
        differences: one sentence per difference, with the name of the tensor or setting.
    """

    num_tensors: int
    num_bytes: int
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.differences

    def __add__(self, other: TensorsCheck) -> TensorsCheck:
        return TensorsCheck(
            self.num_tensors + other.num_tensors,
            self.num_bytes + other.num_bytes,
            (*self.differences, *other.differences),
        )

    def as_record(self) -> recorded.Tensors:
        """Return the object that mupscale.json and `--json` contain."""
        return {
            "agrees": self.agrees,
            "tensors": self.num_tensors,
            "bytes": self.num_bytes,
            "differences": list(self.differences),
        }


@dataclass(frozen=True, slots=True)
class ConfigCheck:
    """Comparison of config.json with the planned one.

    Attributes:
        num_keys: number of keys that were compared, those of nested objects included.
        differences: one sentence per difference, with its key.
    """

    num_keys: int
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.differences

    def __add__(self, other: ConfigCheck) -> ConfigCheck:
        return ConfigCheck(self.num_keys + other.num_keys, (*self.differences, *other.differences))

    def as_record(self) -> recorded.ConfigKeys:
        """Return the object that mupscale.json and `--json` contain."""
        return {"agrees": self.agrees, "keys": self.num_keys, "differences": list(self.differences)}


@dataclass(frozen=True, slots=True)
class FilesCheck:
    """Comparison of every other file: the tokenizer's, the index, the optimizer state, the record itself.

    Attributes:
        names: the files that were compared.
        differences: one sentence per difference, with the name of the file.
        state: comparison of the optimizer's state; None if it was not compared.
        state_skipped: reason why an existing state was not compared.
    """

    names: tuple[str, ...]
    differences: tuple[str, ...]
    state: TensorsCheck | None = None
    state_skipped: str | None = None

    @property
    def agrees(self) -> bool:
        return not self.differences and (self.state is None or self.state.agrees)

    def as_record(self) -> recorded.Files:
        """Return the object that mupscale.json and `--json` contain."""
        record: recorded.Files = {
            "agrees": self.agrees,
            "files": list(self.names),
            "differences": list(self.differences),
        }
        if self.state:
            record["optimizer_state"] = self.state.as_record()
        if self.state_skipped:
            record["optimizer_state_skipped"] = self.state_skipped
        return record


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that a verification found; a part that was not requested is None.

    Attributes:
        function: comparison of what both models compute.
        training: comparison of optimizer steps.
        weights: comparison of every element with source and rule.
        config: comparison of config.json with the planned one.
        files: comparison of all other files.
        skipped: parts that were requested and could not be compared, and why.
        hint: what makes the comparison of those parts possible, if that is known.
    """

    function: FunctionCheck | None = None
    training: TrainingVerification | None = None
    weights: TensorsCheck | None = None
    config: ConfigCheck | None = None
    files: FilesCheck | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    hint: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether nothing differs in the parts that were compared."""
        parts = (self.function, self.training, self.weights, self.config, self.files)
        return all(part is None or part.agrees for part in parts)

    @property
    def incomplete(self) -> CannotVerify | None:
        """The error that says which requested parts could not be compared; None if all were."""
        if not self.skipped:
            return None
        reasons = "; ".join(f"{part}: {reason}" for part, reason in self.skipped.items())
        rest = " ".join(f"--only {part}" for part in PARTS if part not in self.skipped)
        hint = "; ".join(filter(None, (self.hint, f"`{rest}` skips the comparison")))
        return CannotVerify(f"not everything could be verified: {reasons}", hint=hint)

    def as_record(self) -> recorded.Verification:
        """Return the object that mupscale.json contains."""
        return {
            "agrees": self.agrees,
            "function": self.function.as_record() if self.function else None,
            "training": self.training.as_record() if self.training else None,
            "weights": self.weights.as_record() if self.weights else None,
            "config": self.config.as_record() if self.config else None,
            "files": self.files.as_record() if self.files else None,
            "skipped": dict(self.skipped),
        }

    def as_document(self) -> recorded.Verification:
        """Return the object that `--json` prints: the record's, and the comparison of every module."""
        return {**self.as_record(), "function": self.function.as_document() if self.function else None}


def _without_hidden(narrow: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    if not bool(narrow.min() <= LOWEST):
        return narrow, wide
    is_hidden = (narrow <= LOWEST) & (narrow == wide)
    return narrow.masked_fill(is_hidden, 0), wide.masked_fill(is_hidden, 0)


def compare(what: str, narrow: Tensor, wide: Tensor) -> Comparison:
    """Compare two tensors of the same shape, in float64.

    Tensors without elements, of different shapes, or with NaN or infinity are infinitely different. Scores that both
    hide with the lowest number of their type count as 0: beside them, every other difference would look like rounding.
    """
    if narrow.shape != wide.shape or not narrow.numel():
        return Comparison(what, math.inf, math.inf)
    expected, actual = _without_hidden(narrow.double(), wide.double())
    difference = float((expected - actual).abs().max())
    scale = float(expected.abs().max())
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return Comparison(what, math.inf, math.inf)
    return Comparison(what, difference, difference / scale if scale else (0.0 if difference == 0 else math.inf))
