"""Training the narrow and the wide model side by side, and comparing their steps.

The stored weights and optimizer state are compared first: they must be what the plan makes of the narrow ones, up to
one rounding in their type. Training then starts from the unrounded values in float64, so the rounding of stored values
can neither hide a wrong rule nor look like one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale_cli.dtypes import DTYPES, DType, dtype_of
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.content import scales_by_parameter
from mupscale_cli.optimizers.groups import WideGroup, widen_groups
from mupscale_cli.optimizers.multipliers import state_scale
from mupscale_cli.optimizers.rules import OptimizerRule, default_settings, infer_optimizer, state_kind
from mupscale_cli.optimizers.state_plan import ParameterNames, rescale
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.inputs import Inputs
from mupscale_cli.verification.optimizers import make_optimizer
from mupscale_cli.verification.precision import everything_in, tolerance
from mupscale_cli.verification.result import Comparison, StoredCheck, TrainingVerification

_PASSES = 3  # forward, backward to activations, backward to weights: each computes as many products
Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class TrainingSetup:
    """A model with its optimizer."""

    rule: OptimizerRule
    parameters: Mapping[str, nn.Parameter]
    model: nn.Module
    optimizer: torch.optim.Optimizer


def verify_training(
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    loss: Loss,
    steps: int,
    *,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
) -> TrainingVerification:
    """Train both models for some optimizer steps, and compare losses and weights.

    Args:
        narrow: model in float64 with the weights of the source.
        wide: model in float64 with the weights of the widened checkpoint; they are replaced by the planned ones.
        plan: plan of the weights.
        loss: returns the loss of a model on the batch of a step, which is the same for both models.
        steps: number of steps.
        state: state of the narrow optimizer. Default: AdamW without a state.
        wide_state: the carried state, which is compared with what the plan makes of `state`.

    Raises:
        VerifyError: a model cannot be trained, or the plan does not match the weights.
    """
    for model in (narrow, wide):
        _use_batch_statistics(model)
    tensors = _by_parameter(plan, narrow, wide)
    stored = [_replace_by_planned(tensor, before, after) for tensor, before, after in tensors.values()]
    groups, wide_groups = _groups(plan, state, wide_state, narrow)
    narrow_states = dict(state.states) if state else {}
    wide_states, checks = _wide_states(plan, narrow_states, wide_state)
    setups = (
        _set_up(narrow, groups, narrow_states, dict(narrow.named_parameters())),
        _set_up(wide, wide_groups, wide_states, dict(wide.named_parameters())),
    )
    allowed, reason = _tolerance(plan, steps)
    gradients = _GradientHistory({name: before for name, (_, before, _) in tensors.items()}, allowed)
    losses: list[tuple[float, float]] = []
    first: Comparison | None = None
    with everything_in(torch.float64):
        for step in range(steps):
            losses.append(tuple(_step(setup, loss, step) for setup in setups))  # type: ignore[arg-type]
            gradients.update()
            deviations = [
                _deviation(name, tensor, before, after, gradients.only_rounding(name))
                for name, (tensor, before, after) in tensors.items()
            ]
            worst = max(deviations, key=lambda deviation: deviation.max_rel)
            first_loss = abs(losses[-1][0] - losses[-1][1]) / max(abs(losses[-1][0]), 1e-300)
            if first is None and not first_loss <= allowed:
                first = replace(worst, what=f"{worst.what} (step {step + 1})")
    return TrainingVerification(
        steps=steps,
        optimizer=_optimizer_text(setups[0].rule, groups[0][0]),
        losses=tuple(losses),
        weights=worst,
        stored=_worst_check([*stored, *checks]),
        carried=wide_state is not None,
        start="carried state" if wide_state is not None else "a fresh start",
        first_difference=first,
        tolerance=allowed,
        tolerance_reason=reason,
        weights_tolerance=allowed * getattr(setups[0].optimizer, "condition", 1.0),
    )


def _tolerance(plan: Plan, steps: int) -> tuple[float, str]:
    forward, reason = tolerance(plan, torch.float64)
    return forward * _PASSES * steps, f"{reason}; times {_PASSES} passes and {steps} steps"


# Stored values -------------------------------------------------------------------------------------


def _by_parameter(
    plan: Plan, narrow: nn.Module, wide: nn.Module
) -> dict[str, tuple[TensorPlan, nn.Parameter, nn.Parameter]]:
    """Return the plan, the narrow and the wide parameter for each parameter name of the wide model."""
    before, after = (dict(model.named_parameters(remove_duplicate=False)) for model in (narrow, wide))
    canonical = {id(parameter): name for name, parameter in wide.named_parameters()}
    matched = {}
    for tensor in (*plan.tensors, *plan.parameters):
        source = name_in(narrow, plan.recipe.parameter_name(tensor.source.name), before)
        target = name_in(wide, plan.recipe.parameter_name(tensor.target.name), after)
        if source is not None and target is not None:
            matched[canonical[id(after[target])]] = tensor, before[source], after[target]
    unplanned = set(canonical.values()) - matched.keys()
    if unplanned:
        raise VerifyError(f"the wide model has a parameter `{min(unplanned)}` that is not in the plan")
    return matched


def planned_weight(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    """Compute C R(W) (page `theory`) in float64, without rounding.

    Args:
        tensor: plan of the weight W.
        narrow: W, of the plan's source shape.

    Returns:
        The wide weight, of the plan's target shape.
    """
    exact = replace(rescale(tensor, lambda c, _: c), offset=tensor.offset)
    return _planned(exact, narrow)


def _planned(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    source = narrow.detach().to("cpu", torch.float64).contiguous()
    spec = replace(tensor.source, dtype="F64")
    return expand_whole(replace(tensor, source=spec, target=replace(tensor.target, dtype="F64")), source)


def _replace_by_planned(tensor: TensorPlan, narrow: nn.Parameter, wide: nn.Parameter) -> StoredCheck:
    """Compare a stored weight with the planned one, then replace it by the planned one, in place."""
    ideal = planned_weight(tensor, narrow)
    check = _check(tensor.target.name, DTYPES[tensor.target.dtype], ideal, wide)
    wide.data.copy_(ideal)
    return check


def _check(name: str, dtype: DType, ideal: Tensor, stored: Tensor) -> StoredCheck:
    """Measure the distance of a stored tensor from the planned one in units in the last place of its type.

    A share of an exact split is off by up to one such unit, which is twice the unit roundoff.
    """
    unit = 2 * dtype.unit_roundoff
    error = (stored.detach().cpu().double() - ideal).abs()
    smallest = torch.finfo(dtype.torch).tiny
    ratio = float((error / (ideal.abs() * unit).clamp_min(smallest * unit)).max()) if ideal.numel() else 0.0
    return StoredCheck(name, ratio if math.isfinite(ratio) else math.inf)


def _worst_check(checks: Sequence[StoredCheck]) -> StoredCheck:
    return max(checks, key=lambda check: check.units)


# State and groups ----------------------------------------------------------------------------------


def _groups(
    plan: Plan, state: OptimizerTree | None, wide_state: OptimizerTree | None, narrow: nn.Module
) -> tuple[list[tuple[Mapping[str, Any], Sequence[str]]], list[tuple[Mapping[str, Any], Sequence[str]]]]:
    """Return the parameter groups of both optimizers as settings and parameter names.

    They are read from the state files. Without them, the narrow optimizer has default settings, and the rules derive
    the settings of the wide one.
    """
    groups = list(state.groups) if state and state.groups else []
    if not groups:
        names = [name for name, _ in narrow.named_parameters()]
        keys = {key for entries in (state.states.values() if state else ()) for key in entries}
        groups = [(default_settings(keys), names)]
    if wide_state and wide_state.groups:
        return groups, list(wide_state.groups)
    keys_of = {name: entries.keys() for name, entries in (state.states if state else {}).items()}
    wide_groups: list[WideGroup] = widen_groups(groups, keys_of, scales_by_parameter(plan))
    return groups, [(group.settings, group.names) for group in wide_groups]


def _wide_states(
    plan: Plan, states: Mapping[str, Mapping[str, Any]], carried: OptimizerTree | None
) -> tuple[dict[str, dict[str, Any]], list[StoredCheck]]:
    """Return the planned state of every wide parameter, and the distance of the carried state from it."""
    names = ParameterNames(plan)
    planned_states: dict[str, dict[str, Any]] = {}
    checks = []
    for parameter, entries in states.items():
        for tensor in names.find(parameter):
            wide = names.wide_name(parameter, tensor)
            for key, value in entries.items():
                planned = _planned_state(tensor, key, value, set(entries))
                planned_states.setdefault(wide, {})[key] = planned
                if carried is None or not isinstance(value, Tensor):
                    continue
                stored = carried.states.get(wide, {}).get(key)
                if not isinstance(stored, Tensor) or stored.shape != planned.shape:
                    raise VerifyError(f"the carried state of `{wide}` has no `{key}` of shape {tuple(planned.shape)}")
                if stored.is_floating_point():
                    checks.append(_check(f"{key} of {wide}", dtype_of(stored.dtype), planned.double(), stored))
    return planned_states, checks


def _planned_state(tensor: TensorPlan, key: str, value: Any, keys: set[str]) -> Any:
    if not isinstance(value, Tensor) or tuple(value.shape) != tensor.source.shape:
        return value.clone() if isinstance(value, Tensor) else value
    kind = state_kind(key, keys)
    if kind == "weight":
        return planned_weight(tensor, value)
    return _planned(rescale(tensor, lambda c, m: state_scale(kind, c, m)), value)  # type: ignore[arg-type]


def _set_up(
    model: nn.Module,
    groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]],
    states: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
) -> TrainingSetup:
    """Make an optimizer for a model, with the given parameter groups and state."""
    by_name = {
        name: parameters[in_model]
        for name in (n for _, names in groups for n in names)
        if (in_model := name_in(model, name, parameters)) is not None
    }
    missing = next((name for _, names in groups for name in names if name not in by_name), None)
    if missing:
        raise VerifyError(f"the optimizer has a parameter `{missing}` that the model lacks")
    settings, names = groups[0]
    inferred = infer_optimizer(settings, {key for name in names for key in states.get(name, ())})
    if inferred is None:
        raise VerifyError("cannot tell which optimizer the state belongs to")
    torch_groups = [{**settings, "params": [by_name[name] for name in names]} for settings, names in groups]
    optimizer = make_optimizer(*inferred, torch_groups)
    for name, entries in states.items():
        if name in by_name:
            optimizer.state[by_name[name]] = {key: _as_float64(value) for key, value in entries.items()}
    return TrainingSetup(inferred[0], parameters, model, optimizer)


def _as_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone().double() if value.is_floating_point() else value.clone()
    return value


def _optimizer_text(rule: OptimizerRule, settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {settings[key]:g}" for key in ("lr", "weight_decay", "momentum") if settings.get(key))
    return f"{rule.name} ({shown})"


# Steps ---------------------------------------------------------------------------------------------


def _use_batch_statistics(model: nn.Module) -> None:
    """Make BatchNorm normalize by the batch, as in training. Dropout stays off, since it is random."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def _step(setup: TrainingSetup, loss: Loss, step: int) -> float:
    """Take an optimizer step; return the loss before it."""
    try:
        value = loss(setup.model, step)
        setup.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
    except (RuntimeError, TypeError, ValueError) as error:
        raise VerifyError(f"the model failed to train: {error}") from error
    return float(value.detach())


class _GradientHistory:
    """Tracks which elements of the narrow parameters have had only rounding errors as gradients.

    If the loss does not depend on an element (such as a bias of attention's keys, which cancels in the softmax), its
    gradient is rounding error, and an optimizer that uses its sign moves the element at random.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], allowed: float) -> None:
        self._parameters = parameters
        self._allowed = allowed
        self._real = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}
        self._noise = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}

    def update(self) -> None:
        """Add the gradients of the step just taken."""
        sizes = {name: p.grad.abs() for name, p in self._parameters.items() if p.grad is not None}
        limit = self._allowed * max((float(size.max()) for size in sizes.values()), default=0.0)
        for name, size in sizes.items():
            self._real[name] |= size > limit
            self._noise[name] |= (size > 0) & (size <= limit)

    def only_rounding(self, name: str) -> Tensor:
        """Return a mask of the elements of a parameter whose gradients have all been rounding errors so far."""
        return self._noise[name] & ~self._real[name]


def _deviation(name: str, tensor: TensorPlan, narrow: Tensor, wide: Tensor, ignored: Tensor) -> Comparison:
    """Measure the distance of a wide parameter from c R(narrow), except for the ignored elements."""
    ideal = planned_weight(tensor, narrow)
    errors = (wide.detach().cpu() - ideal).abs()
    if bool(ignored.any()):
        errors[_planned(rescale(tensor, lambda _c, _m: 1.0), ignored) > 0] = 0
    error = float(errors.max())
    scale = float(ideal.abs().max())
    return Comparison(name, error, error / scale if scale else (0.0 if error == 0 else math.inf))


def batch_loss(inputs: Callable[[int], Inputs], output: Callable[[Any], Tensor], seed: int) -> Loss:
    """Make a loss for any model: next-token cross-entropy if it takes tokens, else the distance to random targets.

    Args:
        inputs: returns the inputs of a step.
        output: returns the tensor to compute the loss from, given a model's output.
        seed: random seed of the targets.
    """

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = inputs(step)
        result = output(model(*batch.arguments, **batch.keywords))
        tokens: Any = batch.keywords.get("input_ids", batch.arguments[0] if batch.arguments else None)
        is_text = isinstance(tokens, Tensor) and not tokens.is_floating_point() and result.dim() == 3
        if is_text and result.shape[-1] > int(tokens.max()):
            return nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        generator = torch.Generator().manual_seed(seed + step)
        target = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        return (result - target).square().mean()

    return loss
