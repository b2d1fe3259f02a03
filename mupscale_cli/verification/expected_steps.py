"""What the wide model should do in training, learned from the narrow one and from a disturbed copy of it.

The narrow model trains together with a copy of itself whose parameters move to a neighboring number before each step.
How far the two come apart is what one rounding grows into in this model with this optimizer, and the wide model may be
a multiple of that away from the planned steps (page `theory`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mupscale_cli.plan import TensorPlan
from mupscale_cli.text import counted
from mupscale_cli.verification.planned import (
    FRESH_START,
    planned_change,
    planned_copies,
    planned_gradient,
    planned_weight,
)
from mupscale_cli.verification.precision import everything_in
from mupscale_cli.verification.result import CannotVerify, StepComparison
from mupscale_cli.verification.trainees import Loss, Start, make_trainee, take_step

_FAR = 100  # a parameter must move this many times farther than rounding may: a step that is off by 1% is noticed


@dataclass(frozen=True)
class ExpectedParameter:
    """What a wide parameter should be after a step.

    Attributes:
        tensor: plan of the parameter.
        narrow: the narrow parameter after the step, on the CPU.
        allowed: largest absolute difference of a wide element that rounding explains.
        moved: how far an element has come in these steps, in the wide model's units.
        ignored: elements of the narrow parameter whose gradients have all been rounding errors.
        zeros: other elements whose gradients have all been 0. Rounding errors may cancel there, but not in the wide
            model.
        gradient_rounding: by how much rounding may change a gradient of the narrow parameter; 0 if it changes none.
        has_rate: whether its learning rate is not 0.
        has_gradient: whether some element has a gradient that is more than a rounding error.
    """

    tensor: TensorPlan
    narrow: Tensor
    allowed: float
    moved: float
    ignored: Tensor
    zeros: Tensor
    gradient_rounding: float
    has_rate: bool
    has_gradient: bool

    @property
    def trains(self) -> bool:
        return self.has_rate and self.has_gradient

    @property
    def is_uncertain(self) -> bool:
        """Whether only the gradients of the wide parameter tell which of its elements cannot be compared."""
        return self.gradient_rounding > 0 and bool(self.zeros.any())

    def ignored_copies(self, gradients: Tensor | None) -> Tensor:
        """Return a mask of the wide elements whose gradients are rounding errors, so that nothing can be compared.

        A copy of an element without gradient is one of them if its own gradient is not 0 and no larger than rounding
        explains.

        Args:
            gradients: the largest magnitude of each wide element's gradient in these steps; None if it has none.
        """
        found = planned_copies(self.tensor, self.ignored)
        if gradients is None or not self.is_uncertain:
            return found
        rounding = torch.full(self.zeros.shape, self.gradient_rounding, dtype=torch.float64)
        is_rounding = (gradients > 0) & (gradients <= planned_gradient(self.tensor, rounding))
        return found | planned_copies(self.tensor, self.zeros) & is_rounding


@dataclass
class Expected:
    """What the wide model should do, learned from the narrow one.

    Attributes:
        losses: loss before each step.
        loss_response: largest relative change of a loss by the disturbance.
        first: what the wide parameters should be after the first step, by name.
        last: the same after the last step.
    """

    losses: list[float] = field(default_factory=list)
    loss_response: float = 0.0
    first: dict[str, ExpectedParameter] = field(default_factory=dict)
    last: dict[str, ExpectedParameter] = field(default_factory=dict)

    @property
    def uncertain(self) -> set[str]:
        """The names of the wide parameters whose gradients tell which elements cannot be compared."""
        steps = (self.first, self.last)
        return {name for parameters in steps for name, each in parameters.items() if each.is_uncertain}

    @property
    def ignored(self) -> int:
        return sum(int(each.ignored.sum()) for each in self.last.values())


def train_narrow(
    narrow: nn.Module,
    start: Start,
    tensors: Mapping[str, tuple[TensorPlan, str]],
    initial: Mapping[str, Tensor],
    loss: Loss,
    steps: int,
    factor: float,
) -> Expected:
    """Train the narrow model, whose initial parameters are also given, and a disturbed copy of it.

    Returns:
        What the wide model should do.
    """
    twins = tuple(make_trainee(model, start) for model in (narrow, copy.deepcopy(narrow)))
    plain, disturbed = (dict(twin.model.named_parameters(remove_duplicate=False)) for twin in twins)
    names = {source for _, source in tensors.values()}
    gradients = {name: GradientHistory(plain[name], factor) for name in names}
    rates = {id(p): group["lr"] for group in twins[0].optimizer.param_groups for p in group["params"]}
    generator = torch.Generator().manual_seed(0)
    expected = Expected()

    def expect() -> dict[str, ExpectedParameter]:
        parameters = {}
        for name, (tensor, source) in tensors.items():
            history, now = gradients[source], plain[source].detach().to("cpu", copy=True)
            ignored = history.only_rounding.cpu()
            # The few elements of a small parameter may have been moved back; one rounding of them is always possible.
            unit = torch.finfo(torch.float64).eps * now.abs()
            change = torch.maximum((disturbed[source].detach().cpu() - now).abs(), unit)
            response = _largest(planned_change(tensor, change * ~ignored))
            moved = _largest(planned_change(tensor, (now - initial[source]) * ~ignored))
            parameters[name] = ExpectedParameter(
                tensor=tensor,
                narrow=now,
                allowed=factor * response,
                moved=moved,
                ignored=ignored,
                zeros=history.zeros.cpu(),
                gradient_rounding=history.rounding,
                has_rate=rates.get(id(plain[source]), 0) != 0,
                has_gradient=history.has_gradient,
            )
        return parameters

    with everything_in(torch.float64):
        for step in range(steps):
            _disturb(twins[1].model, generator)
            value, changed = (take_step(twin, loss, step) for twin in twins)
            expected.losses.append(value)
            unit = torch.finfo(torch.float64).eps  # a difference cannot be known more closely
            change = abs(changed - value) / abs(value) if value else abs(changed)
            expected.loss_response = max(expected.loss_response, change, unit)
            for name, history in gradients.items():
                history.add(plain[name].grad, disturbed[name].grad)
            if step == 0:
                expected.first = expect()
    expected.last = expect()
    # Rounding errors may all cancel in the first step, above all in a small parameter, and show their size later.
    expected.first = {
        name: replace(first, gradient_rounding=first.gradient_rounding or expected.last[name].gradient_rounding)
        for name, first in expected.first.items()
    }
    return expected


def _disturb(model: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter to the next floating-point number above or below, at random."""
    for parameter in model.parameters():
        up = torch.randint(0, 2, parameter.shape, generator=generator).bool().to(parameter.device)
        limit = torch.full_like(parameter, math.inf)
        parameter.data = torch.nextafter(parameter.data, torch.where(up, limit, -limit))


class GradientHistory:
    """Finds the elements of a parameter whose gradients are only rounding errors.

    If the loss does not depend on an element (such as a bias of attention's keys, which cancels in the softmax), its
    gradient is a rounding error, and an optimizer that normalizes gradients moves the element at random.
    """

    def __init__(self, parameter: Tensor, factor: float) -> None:
        self._factor = factor
        self._largest = torch.zeros_like(parameter)
        self._response = 0.0

    def add(self, gradient: Tensor | None, disturbed: Tensor | None) -> None:
        """Add the gradients of both narrow models in the step just taken."""
        if gradient is not None and disturbed is not None:
            self._largest = torch.maximum(self._largest, torch.maximum(gradient.abs(), disturbed.abs()))
            self._response = max(self._response, _largest(disturbed - gradient))

    @property
    def only_rounding(self) -> Tensor:
        """A mask of the elements whose gradients never exceeded what rounding may change a gradient by.

        A gradient of 0 counts only if all gradients of the parameter are rounding errors, some of which cancel: the
        bias in front of a BatchNorm over two values has two gradients of opposite sign.
        """
        is_small = self._largest <= self.rounding
        return is_small if self._response and bool(is_small.all()) else is_small & (self._largest > 0)

    @property
    def has_gradient(self) -> bool:
        """Whether the gradient of some element is more than a rounding error."""
        return bool((self._largest > self.rounding).any())

    @property
    def zeros(self) -> Tensor:
        """A mask of the other elements whose gradients have all been 0."""
        return (self._largest == 0) & ~self.only_rounding

    @property
    def rounding(self) -> float:
        """By how much rounding may change a gradient."""
        return self._factor * self._response


def compare_parameters(
    expected: Mapping[str, ExpectedParameter], parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> StepComparison:
    """Compare all wide parameters; return the one whose difference exceeds what is allowed by the largest factor.

    Args:
        expected: what each parameter should be.
        parameters: the wide parameters.
        gradients: the largest magnitudes of the gradients of those that are `uncertain`.
    """
    comparisons = (
        _compare_parameter(name, expected[name], value, gradients.get(name)) for name, value in parameters.items()
    )
    return max(comparisons, key=lambda comparison: comparison.ratio)


def _compare_parameter(
    name: str, expected: ExpectedParameter, wide: Tensor, gradients: Tensor | None
) -> StepComparison:
    ideal = planned_weight(expected.tensor, expected.narrow)
    errors = (wide.detach().cpu() - ideal).abs()
    if bool(expected.ignored.any()) or expected.is_uncertain:
        errors[expected.ignored_copies(gradients)] = 0
    scale = _largest(ideal) or 1.0
    return StepComparison(name, _largest(errors) / scale, expected.allowed / scale, expected.moved / scale)


def refuse_standstill(expected: Mapping[str, ExpectedParameter], steps: int) -> None:
    """Refuse to call steps equal that moved a parameter no farther than rounding may, or that moved none."""
    trained = {name: each for name, each in expected.items() if each.trains}
    drowned = [
        each for each in expected.values() if each.has_rate and not each.has_gradient and bool(each.ignored.any())
    ]
    if not trained and drowned:
        raise CannotVerify(
            f"{counted(steps, 'step')} cannot show that both models train alike: training amplifies rounding errors "
            "until they are as large as the gradients",
            hint="take fewer `--steps`",
        )
    if not trained:
        raise CannotVerify("the steps move no parameter: every gradient or every learning rate is 0", hint=FRESH_START)
    name, least = min(trained.items(), key=lambda item: item[1].moved / (item[1].allowed or 1e-300))
    if least.moved <= _FAR * least.allowed:
        raise CannotVerify(
            f"{counted(steps, 'step')} cannot show that both models train alike: `{name}` moves by {least.moved:.1e}, "
            f"and rounding explains a difference of {least.allowed:.1e}",
            hint=FRESH_START,
        )


def _largest(values: Tensor) -> float:
    """Return the largest magnitude; infinity if any value is NaN."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return math.inf if math.isnan(largest) else largest
