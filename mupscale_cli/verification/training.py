"""Taking the same optimizer steps with the narrow and the wide model, and comparing losses and parameters.

The narrow model trains together with a copy of itself whose parameters move to a neighboring number before each step.
How far the two come apart is what one rounding grows into in this model with this optimizer, and the wide model may be
a multiple of that away from the planned steps (page `theory`). It trains afterwards, alone in memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.caveats import inexact_parts
from mupscale_cli.optimizers.identity import Kind, Kinds, identify_all
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, ScaledTensor, spreads
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import counted
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.optimizers import OptimizersOfModel, decayed_parameters, make_optimizers
from mupscale_cli.verification.placement import free_unused
from mupscale_cli.verification.planned import (
    FRESH_START,
    Group,
    States,
    is_finished,
    is_stored,
    narrow_groups,
    narrow_tensors,
    plan_start,
    planned_change,
    planned_copies,
    planned_weight,
    restart,
)
from mupscale_cli.verification.precision import everything_in, rounding_factor
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.result import CannotVerify, StepComparison, TrainingVerification
from mupscale_cli.verification.weights import without_noise

_FAR = 100  # a parameter must move this many times farther than rounding may: a step that is off by 1% is noticed
Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class _Trainee:
    """A model with its optimizer."""

    model: nn.Module
    optimizer: OptimizersOfModel


@dataclass(frozen=True)
class _Start:
    """What the optimizer of a model starts from.

    Attributes:
        groups: its parameter groups.
        states: its state.
        named: optimizers that the user says these are; empty to let settings and keys tell.
    """

    groups: Sequence[Group]
    states: States
    named: Sequence[str] = ()

    @cached_property
    def kinds(self) -> Kinds:
        return identify_all(self.groups, self.states, self.named)

    @property
    def description(self) -> str:
        settings = self.groups[0][0]
        shown = ", ".join(f"{key} {settings[key]:g}" for key in ("lr", "weight_decay", "momentum") if settings.get(key))
        return f"{' and '.join(self.kinds.names)} ({shown})"


def verify_training(
    load_narrow: Callable[[], nn.Module],
    load_wide: Callable[[], nn.Module],
    plan: Plan,
    loss: Loss,
    steps: int,
    *,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
    events: Events = SILENT,
) -> TrainingVerification:
    """Train both models for some optimizer steps, and compare losses and parameters.

    New blocks of a deeper model are frozen, since they learn what the narrow model cannot.

    Args:
        load_narrow: returns a model in float64 with the weights of the source.
        load_wide: returns a model in float64 with the weights of the widened checkpoint, without noise. It trains from
            the planned weights, which are not rounded.
        plan: plan of the widening.
        loss: returns the loss of a model on the batch of a step, which is the same for all models.
        steps: number of steps. Only the first one is compared if some parameter has parts that no single value of a
            setting fits, and then only the other parameters.
        state: state of the narrow optimizer. Default: AdamW without a state.
        wide_state: the carried state, which must be what the plan makes of `state`.
        events: receive the progress.

    Raises:
        CannotVerify: the steps move some parameter no farther than rounding may, or no parameter has exact settings.
        VerifyError: a model cannot be trained, or the plan does not match the weights.
    """
    state, wide_state = (tree and tree.renamed(plan.wrapping.plain) for tree in (state, wide_state))
    narrow = _prepared(load_narrow())
    tensors = dict(narrow_tensors(without_noise(plan), narrow))
    groups = narrow_groups(state, _decays(narrow, tensors.values()))
    states: States = state.states if state else {}
    named = state.kinds if state else ()
    start = plan_start(plan, groups, states, wide_state, named)
    wide_groups = start.groups
    if is_finished(groups):
        groups, wide_groups = restart(groups), restart(wide_groups)
    names = dict(narrow.named_parameters(remove_duplicate=False))
    initial = {name: names[name].detach().to("cpu", copy=True) for _, name in tensors.values()}
    factor, reason = rounding_factor(plan, torch.float64)
    trained = {name: found for name, found in tensors.items() if not found[0].is_new}
    start_narrow = _Start(groups, states, named)
    inexact, caveats = _inexact(trained, start_narrow)
    if trained.keys() <= inexact:
        raise CannotVerify(f"no parameter has settings that fit all of its parts: {'; '.join(caveats)}")
    steps = 1 if inexact else steps  # the first gradients are the planned ones, and further steps follow inexact ones
    events.phase("training narrow model", 2 * steps * count_weights(narrow, events.advance))
    expected = _train_narrow(narrow, start_narrow, trained, initial, loss, steps, factor)
    description = start_narrow.description
    device = next(narrow.parameters()).device
    del narrow, names
    free_unused(device)  # the wide model trains alone in memory

    wide = _prepared(load_wide())
    events.phase("training wide model", steps * count_weights(wide, events.advance))
    parameters = _wide_parameters(wide, tensors)
    stored = list(start.differences)
    for name, parameter in parameters.items():
        tensor, source = tensors[name]
        if not is_stored(tensor, initial[source], parameter):
            stored.append(name)
        parameter.data.copy_(planned_weight(tensor, initial[source]))
        parameter.requires_grad_(parameter.requires_grad and not tensor.is_new)
    initial.clear()
    parameters = {name: parameter for name, parameter in parameters.items() if name in trained}
    compared = {name: parameter for name, parameter in parameters.items() if name not in inexact}
    trainee = _trainee(wide, _Start(wide_groups, start.states, named))
    losses, first = [], None
    with everything_in(torch.float64):
        for step in range(steps):
            losses.append((expected.losses[step], _step(trainee, loss, step)))
            if step == 0:
                first = _compare(expected.first, compared)
                expected.first.clear()  # it takes as much memory as the narrow model
    last = _compare(expected.last, compared)
    result = TrainingVerification(
        steps=steps,
        optimizer=description,
        losses=tuple(losses),
        loss_response=expected.loss_response,
        factor=factor,
        factor_reason=reason,
        weights=last,
        first_difference=next((c for c in (first, last) if c is not None and not c.agrees), None),
        ignored=expected.ignored,
        stored_differences=tuple(stored),
        carried=wide_state is not None,
        start="carried state" if wide_state is not None else "a fresh start",
        frozen=tuple(plan.blocks),
        inexact=tuple(sorted(inexact)),
        caveats=caveats,
    )
    if result.agrees:
        _refuse_standstill({name: expected.last[name] for name in compared}, steps)
    return result


# Models --------------------------------------------------------------------------------------------


def _prepared(model: nn.Module) -> nn.Module:
    """Prepare a model for training: BatchNorm uses the batch. Dropout stays off, since it is random.

    What the model's class freezes, such as a table of sines, stays frozen.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return model


def _decays(narrow: nn.Module, tensors: Iterable[tuple[TensorPlan, str]]) -> dict[str, bool]:
    """Tell for every trained parameter whether weight decay applies to it after a fresh start.

    It does not apply to scaled gains that are stored as their difference from 1: decay acts on that difference, and the
    wide model cannot take the same step (page `theory`).
    """
    scaled = {source for tensor, source in tensors if tensor.offset and any(c != 1 for c, _ in tensor.parts)}
    return {name: is_decayed and name not in scaled for name, is_decayed in decayed_parameters(narrow).items()}


def _inexact(tensors: Mapping[str, tuple[TensorPlan, str]], start: _Start) -> tuple[set[str], tuple[str, ...]]:
    """Return the wide parameters whose parts no single value of a setting fits, and what there is to say about them."""
    by_rule: dict[str, tuple[Kind, Mapping[str, Any], list[ScaledTensor]]] = {}
    for (settings, names), kind in zip(start.groups, start.kinds.groups, strict=True):
        members = set(names)
        _, _, found = by_rule.setdefault(kind.rule.name, (kind, settings, []))
        scaled = [ScaledTensor.of(tensor, name) for name, (tensor, source) in tensors.items() if source in members]
        for tensor in scaled:
            if len(tensor.parts) > 1 and spreads(tensor, kind.rule, kind.decoupled, settings).keys() - {CLIP_WEIGHT}:
                found.append(tensor)
    texts = [
        text
        for kind, settings, found in by_rule.values()
        for text in inexact_parts(kind.rule, found, kind.decoupled, settings)
    ]
    return {tensor.name for _, _, found in by_rule.values() for tensor in found}, tuple(texts)


def _wide_parameters(wide: nn.Module, planned_names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the wide parameter of each planned name."""
    names = dict(wide.named_parameters(remove_duplicate=False))
    targets = {name: name_in(wide, name, names) for name in planned_names}
    found = {name: names[target] for name, target in targets.items() if target is not None}
    planned = set(map(id, found.values()))
    trained = ((name, parameter) for name, parameter in wide.named_parameters() if parameter.requires_grad)
    unplanned = [name for name, parameter in trained if id(parameter) not in planned]
    if unplanned:
        raise VerifyError(f"the wide model has a parameter `{min(unplanned)}` that is not in the plan")
    return found


def _trainee(model: nn.Module, start: _Start) -> _Trainee:
    """Make an optimizer for a model, with the given parameter groups and state."""
    parameters = dict(model.named_parameters())
    by_name = {
        name: parameters[in_model]
        for name in (n for _, names in start.groups for n in names)
        if (in_model := name_in(model, name, parameters)) is not None
    }
    missing = next((name for _, names in start.groups for name in names if name not in by_name), None)
    if missing:
        raise VerifyError(f"the optimizer has a parameter `{missing}` that the model lacks")
    torch_groups = [{**settings, "params": [by_name[name] for name in names]} for settings, names in start.groups]
    optimizer = make_optimizers(torch_groups, start.kinds.groups)
    for name, entries in start.states.items():
        in_model = name_in(model, name, parameters)
        if in_model is None:
            raise VerifyError(f"the optimizer has state for `{name}`, which the model lacks")
        optimizer.load(parameters[in_model], {key: _as_float64(key, value) for key, value in entries.items()})
    return _Trainee(model, optimizer)


def _as_float64(key: str, value: Any) -> Any:
    if key == "step" and not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64)  # torch counts in tensors
    if isinstance(value, Tensor):
        return value.clone().double() if value.is_floating_point() else value.clone()
    return value


# Steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ExpectedParameter:
    """What a wide parameter should be after a step.

    Attributes:
        tensor: plan of the parameter.
        narrow: the narrow parameter after the step, on the CPU.
        allowed: largest absolute difference of a wide element that rounding explains.
        moved: how far an element has come in these steps, in the wide model's units.
        ignored: elements of the narrow parameter whose gradients have all been rounding errors.
        has_rate: whether its learning rate is not 0.
        has_gradient: whether some element has a gradient that is more than a rounding error.
    """

    tensor: TensorPlan
    narrow: Tensor
    allowed: float
    moved: float
    ignored: Tensor
    has_rate: bool
    has_gradient: bool

    @property
    def trains(self) -> bool:
        return self.has_rate and self.has_gradient


@dataclass
class _Expected:
    """What the wide model should do, learned from the narrow one.

    Attributes:
        losses: loss before each step.
        loss_response: largest relative change of a loss by the disturbance.
        first: what the wide parameters should be after the first step, by name.
        last: the same after the last step.
    """

    losses: list[float] = field(default_factory=list)
    loss_response: float = 0.0
    first: dict[str, _ExpectedParameter] = field(default_factory=dict)
    last: dict[str, _ExpectedParameter] = field(default_factory=dict)

    @property
    def ignored(self) -> int:
        return sum(int(each.ignored.sum()) for each in self.last.values())


def _train_narrow(
    narrow: nn.Module,
    start: _Start,
    tensors: Mapping[str, tuple[TensorPlan, str]],
    initial: Mapping[str, Tensor],
    loss: Loss,
    steps: int,
    factor: float,
) -> _Expected:
    """Train the narrow model, whose initial parameters are also given, and a disturbed copy of it.

    Returns:
        What the wide model should do.
    """
    twins = tuple(_trainee(model, start) for model in (narrow, copy.deepcopy(narrow)))
    plain, disturbed = (dict(twin.model.named_parameters(remove_duplicate=False)) for twin in twins)
    names = {source for _, source in tensors.values()}
    gradients = {name: _GradientHistory(plain[name], factor) for name in names}
    rates = {id(p): group["lr"] for group in twins[0].optimizer.param_groups for p in group["params"]}
    generator = torch.Generator().manual_seed(0)
    expected = _Expected()

    def expect() -> dict[str, _ExpectedParameter]:
        parameters = {}
        for name, (tensor, source) in tensors.items():
            history, now = gradients[source], plain[source].detach().to("cpu", copy=True)
            ignored = history.only_rounding.cpu()
            # The few elements of a small parameter may have been moved back; one rounding of them is always possible.
            unit = torch.finfo(torch.float64).eps * now.abs()
            change = torch.maximum((disturbed[source].detach().cpu() - now).abs(), unit)
            response = _largest(planned_change(tensor, change * ~ignored))
            moved = _largest(planned_change(tensor, (now - initial[source]) * ~ignored))
            parameters[name] = _ExpectedParameter(
                tensor=tensor,
                narrow=now,
                allowed=factor * response,
                moved=moved,
                ignored=ignored,
                has_rate=rates.get(id(plain[source]), 0) != 0,
                has_gradient=history.has_gradient,
            )
        return parameters

    with everything_in(torch.float64):
        for step in range(steps):
            _disturb(twins[1].model, generator)
            value, changed = (_step(twin, loss, step) for twin in twins)
            expected.losses.append(value)
            unit = torch.finfo(torch.float64).eps  # a difference cannot be known more closely
            change = abs(changed - value) / abs(value) if value else abs(changed)
            expected.loss_response = max(expected.loss_response, change, unit)
            for name, history in gradients.items():
                history.add(plain[name].grad, disturbed[name].grad)
            if step == 0:
                expected.first = expect()
    expected.last = expect()
    return expected


def _disturb(model: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter to the next floating-point number above or below, at random."""
    for parameter in model.parameters():
        up = torch.randint(0, 2, parameter.shape, generator=generator).bool().to(parameter.device)
        limit = torch.full_like(parameter, math.inf)
        parameter.data = torch.nextafter(parameter.data, torch.where(up, limit, -limit))


def _step(trainee: _Trainee, loss: Loss, step: int) -> float:
    """Take an optimizer step; return the loss before it."""
    try:
        value = loss(trainee.model, step)
        trainee.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        trainee.optimizer.step()
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise VerifyError(f"the model failed to train: {error}") from error
    return float(value.detach())


class _GradientHistory:
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
        is_small = self._largest <= self._factor * self._response
        return is_small if self._response and bool(is_small.all()) else is_small & (self._largest > 0)

    @property
    def has_gradient(self) -> bool:
        """Whether the gradient of some element is more than a rounding error."""
        return bool((self._largest > self._factor * self._response).any())


# Comparing -----------------------------------------------------------------------------------------


def _compare(expected: Mapping[str, _ExpectedParameter], parameters: Mapping[str, Tensor]) -> StepComparison:
    """Compare all wide parameters; return the one whose difference exceeds what is allowed by the largest factor."""
    comparisons = (_compare_parameter(name, expected[name], value) for name, value in parameters.items())
    return max(comparisons, key=lambda comparison: comparison.ratio)


def _compare_parameter(name: str, expected: _ExpectedParameter, wide: Tensor) -> StepComparison:
    ideal = planned_weight(expected.tensor, expected.narrow)
    errors = (wide.detach().cpu() - ideal).abs()
    if bool(expected.ignored.any()):
        errors[planned_copies(expected.tensor, expected.ignored)] = 0
    scale = _largest(ideal) or 1.0
    return StepComparison(name, _largest(errors) / scale, expected.allowed / scale, expected.moved / scale)


def _refuse_standstill(expected: Mapping[str, _ExpectedParameter], steps: int) -> None:
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


def batch_loss(inputs: Callable[[nn.Module, int], Inputs], output: Callable[[Any], Tensor], seed: int) -> Loss:
    """Make a loss for any model: next-token cross-entropy if it has logits for each token, else a distance.

    The tokens are those of the decoder, if there is one; the distance is that to random targets.

    Args:
        inputs: returns the inputs of a step, given the model.
        output: returns the tensor to compute the loss from, given a model's output.
        seed: random seed of the targets.
    """

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = inputs(model, step)
        result = output(model(*batch.arguments, **batch.keywords))
        first = batch.arguments[0] if batch.arguments else None
        tokens: Any = next(
            (batch.keywords[key] for key in ("decoder_input_ids", "input_ids") if key in batch.keywords), first
        )
        is_text = isinstance(tokens, Tensor) and not tokens.is_floating_point() and result.dim() == 3
        if is_text and result.shape[:2] == tokens.shape and result.shape[-1] > int(tokens.max()):
            return nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        generator = torch.Generator().manual_seed(seed + step)
        target = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        return (result - target).square().mean()

    return loss
